"""The flags of `fla-mesa compare`, their presets, and how their values are read."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser

from fla_mesa.data import regression, synthetic
from fla_mesa.errors import UserError
from fla_mesa.eval.suites import SUITES as LEARNT
from fla_mesa.models import zoo
from fla_mesa.train import settings as training

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}

# Beside those that `fla-mesa eval` asks for, too, what has no tokens.
SUITES = {**LEARNT, regression.NAME: [regression.NAME, f"{regression.NAME}:drift=0.02"]}

# Flags of `fla-mesa train` that a comparison sets itself, and what to say instead.
_TAKEN = {
    "model": "--models",
    "seed": "--seeds",
    "learning_rate": "--lr",
    "resume": "no flag, since it always resumes",
    "resume_from_checkpoint": "no flag, since it always resumes",
    "overwrite": "another --output_dir, or remove the old one",
}


class _Taken(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"{self.dest}: a comparison sets it for each of its runs; use {_TAKEN[self.dest]}")


def _spellings(name: str) -> list[str]:
    """Both that transformers' parser knows: one that kept the old meaning would set what is asked for elsewhere."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


def parser() -> HfArgumentParser:
    """That of `fla-mesa train`, whose flags it does not show, with the comparison's own."""
    made = training.parser(
        prog="fla-mesa compare",
        usage="fla-mesa compare [--models A,B,C] [--size A,B] [--seeds 1,2,3] [--lr 1e-3,3e-3] [flags of fla-mesa train]",
        description="Train models on the same tokens in the same order, evaluate them in the same way, and write report.html, report.md, "
        "report.json and pictures to --output_dir. Finished runs are kept: after an interruption, run the same command to continue.",
        epilog="All other flags are those of fla-mesa train and apply to every model. In a JSON object for --config_overrides, settings "
        'under the name of a model apply to that model only: {"fuse_norm": false, "mesanet": {"gamma_init": [0.5, 0.98]}}.',
        conflict_handler="resolve",
    )
    for action in made._actions:
        action.help = action.help if action.dest == "help" else argparse.SUPPRESS
    for name in _TAKEN:
        default = made.get_default(name)
        made.add_argument(*_spellings(name), action=_Taken, nargs="?", default=default, help=argparse.SUPPRESS)
    made.set_defaults(data=None)  # to tell whether it is given
    sizes = f"{', '.join(zoo.sizes())}, or LAYERSxWIDTH such as 2x64"
    own: dict[str, tuple[object, str]] = {  # default and help
        "preset": (
            None,
            f"start from a named set of flags ({', '.join(PRESETS)}); flags on the command line override it. Another "
            "parametrization leaves its config_overrides out",
        ),
        "models": (
            "mesanet,gated_deltanet,delta_net,gla,mamba2,transformer",
            f"comma-separated; available: {', '.join(zoo.names('released'))}. Settings of one model follow its name, as they are called in "
            "its config.json: mesanet,mesanet@max_cg_step_training=5,mesanet@cg_tolerance=0.1@backend=pytorch are three rows",
        ),
        "size": ("tiny", f"comma-separated; available: {sizes}"),
        "seeds": ("1", "comma-separated integers; a seed sets the initial weights and the order of the data"),
        "lr": ("3e-3", "comma-separated learning rates; each model is reported at its best one"),
        "weight_decay": (
            made.get_default("weight_decay"),
            "comma-separated; each model is reported at its best pair of learning rate and weight decay. A later command may add values "
            "after the first one",
        ),
        "grid_seeds": (
            None,
            "how many of --seeds, from the first on, run with every learning rate; the others run with each model's best (default: all)",
        ),
        "parametrization": (
            "released",
            "released: each model as fla or transformers ships it; matched: one layer for all models, in which only the "
            f"recurrence rule differs (arXiv 2506.05233, appendix E.1), for {', '.join(zoo.names('matched'))}",
        ),
        "suite": (
            None,
            f"what to train on and score: {', '.join(SUITES)}, or a synthetic task with its settings, such as "
            "mqar:vocab_size=256,length=64,num_pairs=4,train=20000; the score is taken on its test split; several, separated by commas, "
            "end in one table",
        ),
        "position_tokens": ("131072", "number of validation tokens for the loss by position"),
        "extrapolation": ("4", "measure the loss by position up to this many times the training length"),
        "baseline": (
            None,
            "one of --models: the report shows how the others differ from it over pairs of runs with the same seed, with 95 %% intervals",
        ),
        "output_dir": (
            None,
            "folder for all results (default: runs/compare-<size>, or runs/compare-<size>-matched)",
        ),
    }
    group = made.add_argument_group("what to compare")
    for name, (default, described) in own.items():
        group.add_argument(*_spellings(name), default=default, help=described)
    return made


def read_preset(name: str) -> dict[str, str]:
    """The flags that a preset stands for, over those of another that it is `like`.

    Raises:
        UserError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise UserError(f"preset: allowed are {', '.join(PRESETS)}; got {name!r}")
    flags = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))

    def written(value: object) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value))
        return json.dumps(value) if isinstance(value, dict) else str(value)

    base = read_preset(flags.pop("like")) if "like" in flags else {}
    return {**base, "output_dir": f"runs/{name}", **{flag: written(value) for flag, value in flags.items()}}


def tasks(suite: str) -> list[str]:
    """The data sources of the suites named, one for each of their tasks.

    Raises:
        UserError: There is no such suite, or their scores do not belong in one table.
    """
    # What a setting follows is a task's own comma: mqar:length=64,num_pairs=4.
    found = list(dict.fromkeys(task for name in re.split(r",(?!\w+=)", suite) for task in _tasks(name)))
    kinds = {
        task if task in LEARNT["text"] else regression.NAME if _is_regression(task) else "accuracy" for task in found
    }
    if len(kinds) > 1:
        raise UserError(
            f"suite: text, regression and the other tasks have different scores; compare each by itself, not {suite}"
        )
    return found


def _tasks(suite: str) -> list[str]:
    if suite in SUITES:
        return SUITES[suite]
    if _is_regression(suite):
        regression.Regression.parse(suite)
        return [suite]
    try:
        return [synthetic.get(suite).spec]
    except ValueError as error:
        raise UserError(f"suite: allowed are {', '.join(SUITES)}, or a synthetic task; {error}") from None


def _is_regression(suite: str) -> bool:
    return suite.partition(":")[0] == regression.NAME


# Values

# Of flags that take numbers: what they are, and what is allowed.
_NUMBERS: dict[str, tuple[Callable[[str], float], Callable[[float], bool], str]] = {
    "seeds": (int, lambda value: value >= 0, "integers >= 0"),
    "grid_seeds": (int, lambda value: value >= 1, "integers >= 1"),
    "position_tokens": (int, lambda value: value >= 1, "integers >= 1"),
    "extrapolation": (int, lambda value: value >= 1, "integers >= 1"),
    "lr": (float, lambda value: value > 0, "numbers > 0, such as 1e-3,3e-3"),
    "weight_decay": (float, lambda value: value >= 0, "numbers >= 0, such as 0,0.1"),
}


def names(flag: str, text: str) -> list[str]:
    """The parts of a comma-separated list, without empty ones.

    Raises:
        UserError: There is none.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag}: expected a comma-separated list; got {text!r}")
    return parts


def number(flag: str, text: str) -> Any:
    """The value of a flag in :data:`_NUMBERS`.

    Raises:
        UserError: It is not a number that the flag allows.
    """
    kind, holds, allowed = _NUMBERS[flag]
    with contextlib.suppress(ValueError):
        if math.isfinite(value := kind(text)) and holds(value):
            return value
    raise UserError(f"{flag}: allowed are {allowed}; got {text!r}")


def numbers(flag: str, text: str) -> tuple[Any, ...]:
    """The values of a comma-separated list.

    Raises:
        UserError: One of them is not allowed, or occurs twice.
    """
    values = tuple(number(flag, part) for part in names(flag, text))
    if len(set(values)) < len(values):
        raise UserError(f"{flag}: each value once; got {text}")
    return values
