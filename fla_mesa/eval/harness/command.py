"""`fla-mesa eval`: lm-eval's command line with this package's models, tasks and suites.

    fla-mesa eval --checkpoint runs/mesa runs/gla --suite synthetic --output_path results
    fla-mesa eval --model_args pretrained=runs/mesa,cg_tolerance=1e-2 --tasks lambada_openai,piqa --batch_size 8
    fla-mesa eval ls tasks

All flags are lm-eval's, but for:

    --checkpoint DIR [DIR ...]   evaluate each of these and print one table; the same as --model_args pretrained=DIR for one.
                                 The folder of a PEFT adapter is evaluated with the model that it names
    --use_cache FILE             keeps answers in FILE_<fingerprint>_rank0.db, a file for each model, solver setting, dtype, ...
    --suite NAME                 tasks of a suite, added to those of --tasks; the table ends in the suite's averages

All rows of a table use one context length: 2,048 tokens, what a suite asks for, or --model_args max_length=N. Longer inputs are cut on
the left, and counted.
`--model` defaults to `fla_mesa`. Tasks that cannot be run (for example without network access to their data) are listed as skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fla_mesa.commands import command
from fla_mesa.errors import UserError, check_folder, mistakes_of

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from fla_mesa.eval.harness.results import Evaluation

_COMMANDS = ("run", "ls", "validate")  # lm-eval's; a flag without one of them before it means `run`


@command("eval")
def main(argv: list[str]) -> int:
    """Run `fla-mesa eval` with these arguments.

    Raises:
        UserError: lm-eval is not installed, or a flag does not belong to the command.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; run: pip install 'fla-mesa[eval]'")
    from fla_mesa.eval.harness.suites import SUITES

    own = _own_parser(SUITES)
    given, rest = own.parse_known_args(argv)
    arguments = rest if rest and rest[0] in _COMMANDS else ["run", *rest]
    if given.help and arguments[0] == "run" and "run" not in rest:
        own.print_help()
        print()
    parsed = _their_parser().parse_args([*arguments, *(["--help"] if given.help else [])])
    if parsed.command == "run":
        return _run(given.checkpoint, given.suite, parsed)
    if given.checkpoint or given.suite:
        raise UserError(f"--checkpoint and --suite belong to run, not to {parsed.command}")
    return _list(parsed) if parsed.command == "ls" else _validate(parsed)


def _own_parser(suites: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa eval",
        description="Run lm-eval with this package's models and tasks. These flags are added to those of lm-eval, which are listed below.",
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show both lists of flags")
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=[],
        metavar="DIR",
        help="checkpoints to evaluate; several are shown side by side",
    )
    parser.add_argument(
        "--suite",
        action="append",
        default=[],
        metavar="NAME",
        help=f"add the tasks of a suite: {', '.join(suites)}; may be repeated",
    )
    return parser


def _their_parser() -> argparse.ArgumentParser:
    """lm-eval's parsers of its subcommands, so that the flags are its own in every version."""
    from lm_eval._cli.ls import List
    from lm_eval._cli.run import Run
    from lm_eval._cli.validate import Validate

    parser = argparse.ArgumentParser(prog="fla-mesa eval")
    commands = parser.add_subparsers(dest="command", required=True)
    for subcommand in (Run, List, Validate):
        subcommand.create(commands)
    return parser


def _list(parsed: argparse.Namespace) -> int:
    from fla_mesa.eval.harness.tasks import Tasks

    what = parsed.what or "tasks"
    tasks = Tasks([parsed.include_path] if parsed.include_path else [])
    print(
        tasks.list_all_tasks(
            list_groups=what in ("tasks", "groups"),
            list_tags=what in ("tasks", "tags"),
            list_subtasks=what in ("tasks", "subtasks"),
        )
    )
    return 0


def _validate(parsed: argparse.Namespace) -> int:
    from fla_mesa.eval.harness.tasks import Tasks

    names = parsed.tasks.split(",")
    Tasks.holding(names, [parsed.include_path] if parsed.include_path else []).find(names)
    print(f"All of these tasks exist: {', '.join(names)}")
    return 0


def _run(checkpoints: list[str], suites: list[str], parsed: argparse.Namespace) -> int:
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from fla_mesa.eval.harness.evaluation import evaluate
    from fla_mesa.eval.harness.side_by_side import compare, short_names
    from fla_mesa.eval.harness.suites import SUITES, context_of, suite
    from fla_mesa.eval.harness.tasks import Tasks

    parsed.tasks = [*(parsed.tasks or []), *(task for name in suites for task in suite(name).tasks)]
    if not parsed.tasks and not parsed.config:
        raise UserError(f"no tasks: pass --tasks NAME,... or --suite {'|'.join(SUITES)}")
    if parsed.model is None and not parsed.config:
        parsed.model = "fla_mesa"
    with mistakes_of(ValueError, TypeError):  # lm-eval's checks of what its flags say
        config = EvaluatorConfig.from_cli(parsed)
    config.tasks = config.tasks.split(",") if isinstance(config.tasks, str) else config.tasks
    if checkpoints and "pretrained" in config.model_args:
        raise UserError("pass the model either as --checkpoint or as pretrained= in --model_args, not both")
    if config.model == "fla_mesa" and "max_length" not in config.model_args and (context := context_of(suites)):
        config.model_args.update(max_length=context, truncation=True)
    _check_all(checkpoints, config, parsed.device)

    names = short_names(checkpoints) if checkpoints else ["model"]
    include = [config.include_path] if config.include_path else []
    evaluations: dict[str, Evaluation] = {}
    for name, checkpoint in zip(names, checkpoints or [None], strict=True):
        one = config if checkpoint is None else _with_checkpoint(config, checkpoint)
        evaluation = evaluate(one, Tasks.holding(config.tasks, include, one.metadata))
        if evaluation is not None:
            evaluations[name] = evaluation
    comparison = compare(evaluations, averages=[(name, suite(name)) for name in suites if suite(name).averaged])
    averaged = any(row.of_a_suite for row in comparison.rows)
    if len(evaluations) > 1 or comparison.skipped or comparison.cut or averaged:
        print(comparison.markdown())
    if (len(evaluations) > 1 or averaged) and config.output_path:
        for path in comparison.save(_output_folder(config.output_path)):
            print(f"wrote {path}")
    return 0


def _with_checkpoint(config: EvaluatorConfig, path: str) -> EvaluatorConfig:
    return dataclasses.replace(
        config,
        model_args={**config.model_args, "pretrained": path},
        metadata={"pretrained": path, **config.metadata},
    )


def _check_all(checkpoints: list[str], config: EvaluatorConfig, device: str | None) -> None:
    """Raise UserError for what would end the evaluation of a later checkpoint, before the first is evaluated."""
    if config.output_path:
        check_folder("output_path", _output_folder(config.output_path))
    if config.model != "fla_mesa":
        return
    from transformers import AutoConfig

    from fla_mesa.devices import check_device
    from fla_mesa.eval.harness.model import check_context, check_positions
    from fla_mesa.models.checkpoint import adapted_model, check_checkpoint, looks_local

    length = config.model_args.get("max_length")
    check_context(length)
    if device is not None:  # config.device may be lm-eval's default, which is taken where it is there
        check_device(device)
    for path in checkpoints:
        check_checkpoint(path)
        model = adapted_model(path) or path
        if looks_local(model):
            trusted = bool(config.model_args.get("trust_remote_code"))
            check_positions(AutoConfig.from_pretrained(model, trust_remote_code=trusted), length)


def _output_folder(path: str) -> Path:
    """lm-eval takes the name of a results file, too."""
    return Path(path).parent if path.endswith(".json") else Path(path)
