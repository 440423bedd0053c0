"""`fla-mesa eval`: lm-eval's command line with this package's models, tasks and suites.

    fla-mesa eval --checkpoint runs/mesa runs/gla --suite synthetic --output_path results
    fla-mesa eval --model_args pretrained=runs/mesa,cg_tolerance=1e-2 --tasks lambada_openai,piqa --batch_size 8
    fla-mesa eval ls tasks

All flags are lm-eval's, but for:

    --checkpoint DIR [DIR ...]   evaluate each of these and print one table; the same as --model_args pretrained=DIR for one.
                                 The folder of a PEFT adapter is evaluated with the model that it names
    --use_cache FILE             keeps answers in FILE_<fingerprint>_rank0.db, a file for each model, solver setting, dtype, ...
    --suite NAME                 tasks of a suite (paper-zeroshot, paper-recall, synthetic), added to those of --tasks

The context is one for all rows of a table: 2,048 tokens, or --model_args max_length=N; what is longer is cut on the left, and counted.
`--model` is `fla_mesa` unless given. Tasks that cannot be run (no network for their data, say) are named and the others' results kept.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fla_mesa.commands import command
from fla_mesa.errors import UserError, mistakes_of

TASKS = Path(__file__).parent / "tasks"

# lm-eval's names of the tasks in tables 14 and 16 of arXiv 2506.05233. The paper also has RACE-M, which lm-eval has not (its `race` is
# RACE-H); and its TQA, NQ and DROP are rewritten as completions after arXiv 2402.18668, where lm-eval has them as questions.
SUITES = {
    "paper-zeroshot": (
        "lambada_openai",
        "hellaswag",
        "piqa",
        "arc_easy",
        "arc_challenge",
        "winogrande",
        "social_iqa",
        "boolq",
        "openbookqa",
        "storycloze_2016",
        "race",
    ),
    "paper-recall": ("swde", "squad_completion", "fda", "triviaqa", "nq_open", "drop"),
    "synthetic": (
        *(f"mqar_{setting}" for setting in ("64x4", "64x8", "64x16", "128x32", "256x64", "512x128", "1024x256")),
        "mad_in_context_recall",
        "mad_noisy_in_context_recall",
        "mad_fuzzy_in_context_recall",
        "mad_memorization",
        "mad_compression",
        "mad_selective_copying",
        "regbench",
        *(f"own_haystack_niah_{variant}" for variant in (1, 2, 3)),
    ),
}


@command("eval")
def main(argv: list[str]) -> int:
    """Run `fla-mesa eval` with these arguments.

    Returns:
        0, or 2 after printing one line on stderr about a bad argument, checkpoint or task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; run: pip install 'fla-mesa[eval]'")
    own, rest = _own_parser().parse_known_args(argv)
    if own.help and not any(command in rest for command in ("run", "ls", "validate")):
        _own_parser().print_help()
        print()
        rest = ["run", "--help"]
    elif own.help:
        rest.append("--help")
    with mistakes_of(ValueError, TypeError, OSError, KeyError):  # lm-eval's own, which say what is wrong with a task
        return _run(own.checkpoint, own.suite, rest)


def _own_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa eval",
        description="lm-eval with this package's models and tasks. These flags are its own; all others are lm-eval's, listed below.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show both lists of flags")
    parser.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="DIR", help="checkpoints to evaluate, side by side if several"
    )
    parser.add_argument(
        "--suite", action="append", default=[], choices=list(SUITES), help="a suite's tasks; may be given again"
    )
    return parser


def _run(checkpoints: list[str], suites: list[str], rest: list[str]) -> int:
    from lm_eval._cli import HarnessCLI

    from fla_mesa.eval.one_by_one import OneByOne

    register()
    evaluate = OneByOne(TASKS)
    # lm-eval reads sys.argv; a flag with no subcommand before it means `run`.
    commands = ("run", "ls", "validate")
    arguments = rest if rest and rest[0] in commands else ["run", *rest]
    if arguments == ["run"]:  # alone it would mean help, but --checkpoint and --suite may have been given
        arguments = ["run", "--model", "fla_mesa"]
    with patch.object(sys, "argv", ["lm-eval", *arguments]):
        cli = HarnessCLI()
        parsed = cli.parse_args()
    if parsed.command != "run":
        if checkpoints or suites:
            raise UserError(f"--checkpoint and --suite belong to run, not to {parsed.command}")
        with _with_our_tasks():
            cli.execute(parsed)
        return 0
    suite_tasks = [task for suite in suites for task in SUITES[suite]]
    if suite_tasks:
        parsed.tasks = [*(parsed.tasks or []), *suite_tasks]
    if not parsed.tasks and not parsed.config:
        raise UserError(f"no tasks: pass --tasks NAME,... or --suite {'|'.join(SUITES)}")
    if parsed.model is None and not parsed.config:
        parsed.model = "fla_mesa"
    if checkpoints and "pretrained" in (parsed.model_args or {}):
        raise UserError("pass the model either as --checkpoint or as pretrained= in --model_args, not both")

    _check_all(checkpoints, parsed)
    from fla_mesa.eval.table import compare, short_names

    results: dict[str, dict[str, Any] | None] = {}
    names = short_names(checkpoints) if checkpoints else ["model"]
    wanted = [name for task in parsed.tasks or [] for name in task.split(",")]
    with _with_our_tasks(wanted), patch("lm_eval.simple_evaluate", evaluate):
        for name, checkpoint in zip(names, checkpoints or [None], strict=True):
            each = copy.deepcopy(parsed)
            if checkpoint is not None:
                each.model_args = {**(parsed.model_args or {}), "pretrained": checkpoint}
            cli.execute(each)
            results[name] = evaluate.results
    comparison = compare(results)
    if len(results) > 1 or comparison.skipped or comparison.cut:
        print(comparison.markdown())
    if len(results) > 1 and parsed.output_path:
        output = Path(parsed.output_path)
        for path in comparison.save(output.parent if output.suffix == ".json" else output):
            print(f"wrote {path}")
    return 0


def _check_all(checkpoints: list[str], parsed: argparse.Namespace) -> None:
    """Raise ValueError for what would end the evaluation of a later checkpoint, before the first is evaluated."""
    if parsed.output_path and (file := _no_folder(Path(parsed.output_path))):
        raise UserError(f"output_path: {str(file)!r} is a file, so nothing can be written below it")
    if parsed.model != "fla_mesa":
        return
    from transformers import AutoConfig

    from fla_mesa.eval.checkpoint import adapted_model, check_checkpoint, looks_local
    from fla_mesa.eval.devices import check_device
    from fla_mesa.eval.lm import check_context, check_positions

    arguments = parsed.model_args or {}
    check_context(arguments.get("max_length"))
    if parsed.device is not None:
        check_device(parsed.device)
    for path in checkpoints:
        check_checkpoint(path)
        model = adapted_model(path) or path
        if looks_local(model):
            trusted = bool(arguments.get("trust_remote_code") or getattr(parsed, "trust_remote_code", False))
            check_positions(AutoConfig.from_pretrained(model, trust_remote_code=trusted), arguments.get("max_length"))


def _no_folder(path: Path) -> Path | None:
    """The file that keeps a path from being a folder or in one; a results file by that name may exist."""
    places = [path, *path.parents] if path.suffix != ".json" else list(path.parents)
    return next((place for place in places if place.is_file()), None)


def register() -> None:
    """Make `--model fla_mesa` known to lm-eval; its class is imported when it is first used."""
    import lm_eval.models  # noqa: F401 (registers lm-eval's own models; without it they would be missing)
    from lm_eval.api.registry import model_registry

    if "fla_mesa" not in model_registry:
        model_registry.register("fla_mesa", target="fla_mesa.eval.lm:FlaMesaLM")


@contextmanager
def _with_our_tasks(wanted: list[Any] | None = None) -> Iterator[None]:
    """lm-eval's task index with this package's tasks, and the user's --include_path after them.

    Indexing the thousands of files that lm-eval ships takes long. It is left out where all `wanted` tasks are found without it, and
    done once, not for every checkpoint.
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import TaskIndex

    indexed: dict[tuple[str, ...], Any] = {}
    build = TaskIndex.build

    def build_once(paths: Any, **options: Any) -> Any:
        key = tuple(map(str, paths))
        if key not in indexed:
            indexed[key] = build(paths, **options)
        return indexed[key]

    class WithOurTasks(TaskManager):
        def __init__(self, *args: Any, include_path: Any = None, **kwargs: Any) -> None:
            given = include_path if isinstance(include_path, list | tuple) else [include_path] if include_path else []
            missing = [str(path) for path in given if not os.path.exists(path)]
            if missing:
                raise UserError(f"--include_path: there is no {', '.join(missing)}")
            paths = [TASKS, *given]
            ours = build_once([Path(path) for path in paths])
            if wanted and all(name in ours for name in wanted):
                kwargs["include_defaults"] = False
            super().__init__(*args, include_path=paths, **kwargs)

    with (
        patch("lm_eval.tasks.TaskManager", WithOurTasks),
        patch.object(TaskIndex, "build", staticmethod(build_once)),
    ):
        yield
