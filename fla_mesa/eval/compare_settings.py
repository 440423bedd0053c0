"""What a comparison is of: its flags, checked before anything is trained."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fla_mesa.data import synthetic
from fla_mesa.errors import UserError
from fla_mesa.models import zoo
from fla_mesa.train import overrides
from fla_mesa.train.optimization import check_optimization, needs_model
from fla_mesa.train.recipe import make_config
from fla_mesa.train.settings import RecipeSettings
from fla_mesa.train.settings import parse as parse_training

# Each is a set of flags that the command line can override. On two cores `demo` takes minutes, `mqar` under an hour.
PRESETS: dict[str, dict[str, str]] = {
    "demo": {
        "models": "mesanet,gated_deltanet,delta_net,gla,mamba2,transformer",
        "size": "tiny",
        "seeds": "1",
        "lr": "3e-3",
        "output_dir": "runs/demo",
        "position_tokens": "32768",
        "max_steps": "220",
        "per_device_train_batch_size": "4",
        "eval_steps": "22",
        "save_steps": "110",
        "eval_tokens": "8192",
        "final_eval_tokens": "65536",
        "per_device_eval_batch_size": "16",
    },
    # Recall against width: 16 pairs among 64 symbols of 8,192, a setting of arXiv 2312.04927.
    "mqar": {
        "models": "mesanet,gated_deltanet,delta_net,gla,mamba2,transformer",
        "suite": "mqar:length=64,num_pairs=16,train=20000,validation=256",
        "size": "2x32,2x64,2x128",
        "seeds": "1",
        "lr": "1e-2",
        "output_dir": "runs/mqar",
        "max_steps": "600",
        "per_device_train_batch_size": "32",
        "eval_steps": "100",
        "save_steps": "600",
        # Few positions are scored: the others need no logits.
        # One parametrisation, in which all forget gates start alike, spread over the heads: those that start at 1/2 learn recall
        # several times later (docs/log.md), so that a comparison in which they did not start alike would be one of starts.
        "parametrization": "matched",
        "config_overrides": '{"fuse_linear_cross_entropy": true, "fuse_cross_entropy": false, '
        + ", ".join(
            f'"{rule}": {{"gamma_init": [0.5, 0.98]}}' for rule in ("mesanet", "gated_deltanet", "gla", "mamba2")
        )
        + "}",
    },
}

# What `--suite` names: sources of `fla-mesa train --data`, one comparison for each.
SUITES: dict[str, list[str]] = {
    "text": ["stdlib"],
    "mqar": ["mqar"],
    "mad": [name for name in synthetic.suites() if name.startswith("mad-")],
    "regbench": ["regbench"],
}

_OWN_DEFAULTS = {
    "models": "mesanet,gated_deltanet,delta_net,gla,mamba2,transformer",
    "size": "tiny",
    "seeds": "1",
    "lr": "3e-3",
    "parametrization": "released",
    "position_tokens": "131072",
}
# Flags of `fla-mesa train` that a comparison sets itself, and what to say instead.
_TAKEN = {
    "model": "--models",
    "seed": "--seeds",
    "learning_rate": "--lr",
    "resume": "nothing: it always goes on",
    "resume_from_checkpoint": "nothing: it always goes on",
    "overwrite": "another --output_dir, or remove the old one",
}
# What may differ between two calls that go on with one comparison, beside its models, seeds and learning rates.
_FREE = {"model", "output_dir", "seed", "learning_rate", "resume", "disable_tqdm", "run_name", "logging_dir"}


@dataclass(frozen=True)
class Plan:
    """A comparison: `models` under one parametrisation at one size, each trained with every learning rate and seed.

    Attributes:
        training: Flags for `fla-mesa train`, the same for all.
        overrides: Its `--config_overrides` by model.
        fixed: What they amount to, to be the same whenever the comparison goes on.
        position_tokens: Validation tokens for the loss by position.
    """

    models: list[str]
    parametrization: str
    size: str
    seeds: list[int]
    learning_rates: list[float]
    folder: Path
    training: list[str]
    position_tokens: int
    overrides: dict[str, str | None]
    settings: RecipeSettings
    fixed: dict[str, Any] = field(repr=False)

    def full_name(self, model: str) -> str:
        """The zoo's name of a model under this parametrisation."""
        return zoo.resolve(model, self.parametrization)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa compare",
        usage="fla-mesa compare [--models A,B,C] [--size A,B] [--seeds 1,2,3] [--lr 1e-3,3e-3] [flags of fla-mesa train]",
        description="Train models on the same tokens in the same order, evaluate them alike, and leave report.md, report.json and "
        "pictures in --output_dir. What is finished is kept: interrupted, the same command goes on where it was.",
        epilog="All other flags are those of fla-mesa train and hold for every model. In an object of --config_overrides, the name of "
        'a model holds changes for it alone: {"fuse_norm": false, "mesanet": {"gamma_init": [0.5, 0.98]}}.',
        allow_abbrev=False,
    )
    matched = ", ".join(zoo.names("matched"))
    parser.add_argument(
        "--preset", help=f"start from a named set of flags, {', '.join(PRESETS)}; flags given beside it win"
    )
    parser.add_argument("--models", help=f"comma-separated; available: {', '.join(zoo.names('released'))}")
    parser.add_argument(
        "--size",
        help=f"comma-separated; available: {', '.join(zoo.sizes())}, or LAYERSxWIDTH such as 2x64 (default: {_OWN_DEFAULTS['size']})",
    )
    parser.add_argument(
        "--seeds", help="comma-separated integers; each sets initial weights and order of the data (default: 1)"
    )
    parser.add_argument("--lr", help="comma-separated learning rates; each model keeps its best (default: 3e-3)")
    parser.add_argument(
        "--parametrization",
        help="released: each model as fla or transformers ships it (default); matched: one layer for all, in which only the "
        f"recurrence rule differs (arXiv 2506.05233, appendix E.1), for {matched}",
    )
    parser.add_argument(
        "--suite",
        help=f"what to learn and to be scored on: {', '.join(SUITES)}, or a synthetic task with its settings, such as "
        "mqar:vocab_size=256,length=64,num_pairs=4,train=20000; the score is that of its test split",
    )
    parser.add_argument("--position_tokens", help="validation tokens for the loss by position (default: 131072)")
    parser.add_argument(
        "--output_dir", help="folder for all results (default: runs/compare-<size>, or runs/compare-<size>-matched)"
    )
    return parser


def parse_all(argv: list[str]) -> list[Plan]:
    """The comparisons that a command line asks for: for each task of a suite and each size, in a folder of its own if there are several.

    Raises:
        ValueError, TypeError: As :func:`parse`.
    """
    argv = _without_preset(argv)
    several = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    several.add_argument("--suite")
    several.add_argument("--size")
    several.add_argument("--output_dir")
    given, rest = several.parse_known_args(argv)
    tasks: list[str | None] = [None]
    if given.suite is not None:
        if any(word.split("=")[0] == "--data" for word in rest):
            raise UserError("suite, data: each says what to learn; give one of the two")
        tasks = _tasks(given.suite)
    sizes: list[str | None] = [None] if given.size is None else [*dict.fromkeys(_names("size", given.size))]
    folder = given.output_dir or (f"runs/compare-{'-'.join(map(str, sizes))}" if len(sizes) > 1 else None)
    plans = []
    for task in tasks:
        for size in sizes:
            named = {"data": task, "size": size, "output_dir": folder}
            flags = [word for name, value in named.items() if value is not None for word in (f"--{name}", value)]
            plan = parse([*rest, *flags])
            own = [str(part) for part, of in ((task, tasks), (size, sizes)) if len(of) > 1]
            plans.append(replace(plan, folder=plan.folder.joinpath(*own)))
    return plans


def _without_preset(argv: list[str]) -> list[str]:
    """A command line that says in full what `--preset` is short for; what is given beside it comes later, and wins."""
    preset = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    preset.add_argument("--preset")
    given, rest = preset.parse_known_args(argv)
    if given.preset is None:
        return argv
    if given.preset not in PRESETS:
        raise UserError(f"preset: allowed are {', '.join(PRESETS)}; got {given.preset!r}")
    flags = PRESETS[given.preset]
    if any(word.split("=")[0] == "--data" for word in rest):
        flags = {name: value for name, value in flags.items() if name != "suite"}
    return [word for name, value in flags.items() for word in (f"--{name}", value)] + rest


def _tasks(suite: str) -> list[str | None]:
    """The sources that a suite is of."""
    if suite in SUITES:
        return [*SUITES[suite]]
    try:
        return [synthetic.get(suite).spec]
    except ValueError as error:
        raise UserError(f"suite: allowed are {', '.join(SUITES)}, or a synthetic task; {error}") from None


def parse(argv: list[str]) -> Plan:
    """The comparison that a command line without `--preset` and `--suite` and with one size asks for.

    Raises:
        ValueError, TypeError: A value is not allowed; the message names the flag, and for names lists what exists.
    """
    given, training = _parser().parse_known_args(argv)
    asked = {name: value for name, value in vars(given).items() if value is not None}
    own = {**_OWN_DEFAULTS, **asked}
    for flag in training:
        name = flag.lstrip("-").split("=")[0]
        if flag.startswith("--") and name in _TAKEN:
            raise UserError(f"{name}: a comparison sets it for each of its runs; use {_TAKEN[name]}")

    models = _names("models", own["models"])
    full_names = [zoo.resolve(model, own["parametrization"]) for model in models]
    size = own["size"]
    seeds = [_integer("seeds", part, 0) for part in _names("seeds", own["seeds"])]
    rates = [_rate(part) for part in _names("lr", own["lr"])]
    for name, values in (("seeds", seeds), ("lr", rates)):
        if len(set(values)) < len(values):
            raise UserError(f"{name}: each value once; got {own[name]}")
    folder = Path(
        own.get("output_dir", f"runs/compare-{size}" + ("-matched" if own["parametrization"] == "matched" else ""))
    )

    flags = ["--model", full_names[0], "--size", size, "--output_dir", str(folder), *training]
    settings, arguments = parse_training(flags)
    changes = _overrides(settings.config_overrides, models)
    for model, text in changes.items():  # an unknown size, or an override that only some of them know
        name = zoo.resolve(model, own["parametrization"])
        make_config(replace(settings, model=name, config_overrides=text), None)
    check_optimization(arguments, _without_weights(settings) if needs_model(arguments) else None)
    fixed = {
        "parametrization": own["parametrization"],
        "position_tokens": _integer("position_tokens", own["position_tokens"], 1),
        **{name: value for name, value in asdict(settings).items() if name not in _FREE},
        **{name: value for name, value in arguments.to_sanitized_dict().items() if name not in _FREE},
    }
    return Plan(
        models=models,
        parametrization=own["parametrization"],
        size=size,
        seeds=seeds,
        learning_rates=rates,
        folder=folder,
        training=training,
        position_tokens=fixed["position_tokens"],
        overrides=changes,
        settings=settings,
        fixed=fixed,
    )


def _without_weights(settings: RecipeSettings) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(make_config(settings, None))


def _overrides(text: str | None, models: list[str]) -> dict[str, str | None]:
    """`--config_overrides` of each model, and of those beside them that it names, which may join in a later call.

    A key that names an architecture holds changes for it alone.
    """
    if text is None:
        return dict.fromkeys(models)
    common = overrides.parse(text)
    own = {key: common.pop(key) for key in list(common) if key in zoo.names("released")}
    for name, changes in own.items():
        if not isinstance(changes, dict):
            raise UserError(
                f"config_overrides: {name} is an architecture, and takes an object of its settings; got {changes!r}"
            )
    return {model: json.dumps({**common, **own.get(model, {})}) for model in dict.fromkeys([*models, *own])}


def _names(flag: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag}: expected a comma-separated list; got {text!r}")
    return list(dict.fromkeys(parts)) if flag == "models" else parts


def _integer(flag: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UserError(f"{flag}: allowed are integers >= {least}; got {text!r}")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"lr: allowed are numbers > 0, such as 1e-3,3e-3; got {text!r}")
    return value
