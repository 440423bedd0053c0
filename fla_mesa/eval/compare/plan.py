"""What a comparison is of, checked before anything is trained: one parser, presets, and the plans that a command line asks for."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from transformers import AutoModelForCausalLM, HfArgumentParser

from fla_mesa.data import synthetic
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.eval.compare.variants import Variant, parse_variants, split_outside_brackets
from fla_mesa.models import zoo
from fla_mesa.train import settings as training
from fla_mesa.train.optimization import check_optimization, needs_model
from fla_mesa.train.recipe import make_config

Values = Mapping[str, Any]  # of flags, by their names
Number = TypeVar("Number", int, float)

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}

# What `--suite` names: sources of `fla-mesa train --data`, one comparison for each.
SUITES: dict[str, list[str]] = {
    "text": ["stdlib"],
    "mqar": ["mqar"],
    "mad": [name for name in synthetic.suites() if name.startswith("mad-")],
    "regbench": ["regbench"],
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
    """A comparison: `variants` under one parametrisation at one size, each at its best learning rate with every seed.

    Attributes:
        grid_seeds: The first of `seeds`: those that are trained with every learning rate.
        position_tokens: Validation tokens for the loss by position.
        extrapolation: Up to how many times the training length that goes.
        baseline: The variant, by its label, that the others are held against, pair by pair of runs; or None.
        training: Settings of `fla-mesa train` by name, the same for all.
        fixed: What must be the same whenever the comparison goes on.
    """

    variants: tuple[Variant, ...]
    parametrization: str
    size: str
    seeds: tuple[int, ...]
    grid_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    folder: Path
    position_tokens: int
    extrapolation: int
    baseline: str | None
    training: Values = field(repr=False)
    fixed: Values = field(repr=False)

    @cached_property
    def settings(self) -> training.RecipeSettings:
        """What is trained on what, with the first variant for a model."""
        return training.build(self.training)[0]


class _Taken(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        raise UserError(f"{self.dest}: a comparison sets it for each of its runs; use {_TAKEN[self.dest]}")


def _parser() -> HfArgumentParser:
    """That of `fla-mesa train`, whose flags it does not show, with the comparison's own."""
    parser = training.parser(
        prog="fla-mesa compare",
        usage="fla-mesa compare [--models A,B,C] [--size A,B] [--seeds 1,2,3] [--lr 1e-3,3e-3] [flags of fla-mesa train]",
        description="Train models on the same tokens in the same order, evaluate them alike, and leave report.md, report.json and "
        "pictures in --output_dir. What is finished is kept: interrupted, the same command goes on where it was.",
        epilog="All other flags are those of fla-mesa train and hold for every model. In an object of --config_overrides, the name of "
        'a model holds changes for it alone: {"fuse_norm": false, "mesanet": {"gamma_init": [0.5, 0.98]}}.',
        conflict_handler="resolve",
    )
    for action in parser._actions:
        action.help = action.help if action.dest == "help" else argparse.SUPPRESS
    for name in _TAKEN:
        parser.add_argument(
            f"--{name}", action=_Taken, nargs="?", default=parser.get_default(name), help=argparse.SUPPRESS
        )
    parser.set_defaults(data=None)  # to tell whether it is given
    add = parser.add_argument_group("what to compare").add_argument
    add("--preset", help=f"start from a named set of flags, {', '.join(PRESETS)}; flags given beside it win")
    add(
        "--models",
        default="mesanet,gated_deltanet,delta_net,gla,mamba2,transformer",
        help=f"comma-separated; available: {', '.join(zoo.names('released'))}. A model may have settings of its own, by the names of its "
        "config.json: mesanet,mesanet@max_cg_step_training=5,mesanet@cg_tolerance=0.1@backend=pytorch are three rows",
    )
    sizes = f"{', '.join(zoo.sizes())}, or LAYERSxWIDTH such as 2x64"
    add("--size", default="tiny", help=f"comma-separated; available: {sizes}")
    add(
        "--seeds",
        default="1",
        help="comma-separated integers; each sets initial weights and order of data",
    )
    add("--lr", default="3e-3", help="comma-separated learning rates; each model keeps its best")
    add(
        "--grid_seeds",
        help="so many of --seeds, from the front, run with every learning rate, the others with each model's best (default: all)",
    )
    add(
        "--parametrization",
        default="released",
        help="released: each model as fla or transformers ships it; matched: one layer for all, in which only the "
        f"recurrence rule differs (arXiv 2506.05233, appendix E.1), for {', '.join(zoo.names('matched'))}",
    )
    add(
        "--suite",
        help=f"what to learn and to be scored on: {', '.join(SUITES)}, or a synthetic task with its settings, such as "
        "mqar:vocab_size=256,length=64,num_pairs=4,train=20000; the score is that of its test split",
    )
    add("--position_tokens", default="131072", help="validation tokens for the loss by position")
    add("--extrapolation", default="4", help="loss by position up to so many times the training length")
    add(
        "--baseline",
        help="one of --models: the report shows how the others differ from it, in pairs of runs of one seed, with 95 %% intervals",
    )
    add("--output_dir", help="folder for all results (default: runs/compare-<size>, or runs/compare-<size>-matched)")
    return parser


def read_preset(name: str) -> dict[str, str]:
    """The flags that a preset stands for. Raises UserError if there is none of this name."""
    if name not in PRESETS:
        raise UserError(f"preset: allowed are {', '.join(PRESETS)}; got {name!r}")
    flags = yaml.safe_load(PRESETS[name].read_text(encoding="utf-8"))

    def written(value: object) -> str:
        if isinstance(value, list):
            return ",".join(map(str, value))
        return json.dumps(value) if isinstance(value, dict) else str(value)

    return {flag: written(value) for flag, value in flags.items()}


def parse(argv: list[str], preset: str | None = None) -> list[Plan]:
    """The comparisons that a command line asks for: for each task of a suite and each size, in a folder of its own if there are several.

    Args:
        argv: The flags.
        preset: What `--preset` is where it is not given.

    Raises:
        UserError: A value is not allowed; the message names the flag, and for names lists what exists.
    """
    parser = _parser()
    given = training.read(parser, argv)
    of_own_data = given["data"] is not None
    if (preset := given["preset"] or preset) is not None:
        flags = read_preset(preset)
        if of_own_data and given["suite"] is None:
            flags.pop("suite", None)
        parser.set_defaults(**flags)
        own_baseline, given = given["baseline"], training.read(parser, argv)
        if own_baseline is None and given["baseline"] not in split_outside_brackets(given["models"], ","):
            given["baseline"] = None  # the preset's, which is none of the models that are asked for
    if given["suite"] is not None and of_own_data:
        raise UserError("suite, data: each says what to learn; give one of the two")
    tasks = [given["data"] or training.RecipeSettings.data] if given["suite"] is None else _tasks(given["suite"])
    sizes = list(dict.fromkeys(_names("size", given["size"])))
    matched = "-matched" if given["parametrization"] == "matched" and len(sizes) == 1 else ""
    folder = Path(given["output_dir"] or f"runs/compare-{'-'.join(sizes)}{matched}")
    plans = []
    for task in tasks:
        for size in sizes:
            own = [part for part, of in ((task, tasks), (size, sizes)) if len(of) > 1]
            plans.append(_plan({**given, "data": task, "size": size}, folder.joinpath(*own)))
    return plans


def _plan(given: Values, folder: Path) -> Plan:
    """The comparison on one task at one size."""
    parametrization = given["parametrization"]
    variants, others = parse_variants(given["models"], parametrization, given["config_overrides"])
    seeds = _several("seeds", given["seeds"], lambda text: _integer("seeds", text, 0))
    rates = _several("lr", given["lr"], _rate)
    of_grid = len(seeds) if given["grid_seeds"] is None else _integer("grid_seeds", given["grid_seeds"], 1)
    if of_grid > len(seeds):
        raise UserError(f"grid_seeds: allowed are 1 to {len(seeds)}, as many as --seeds names; got {of_grid}")
    labels = [variant.label for variant in variants]
    if given["baseline"] is not None and given["baseline"] not in labels:
        raise UserError(f"baseline: allowed are the models compared, {', '.join(labels)}; got {given['baseline']!r}")
    values = {name: given[name] for name in training.names()}
    values |= {"model": variants[0].zoo_name, "output_dir": str(folder)}
    settings, arguments = training.build(values)
    for variant in (*variants, *others):  # an unknown size, or an override that only some of them know
        changed = replace(settings, model=variant.zoo_name, config_overrides=variant.overrides)
        with mistakes_of(ValueError, TypeError, prefix=f"models: {variant.label}: "):  # the configuration's own checks
            config = make_config(changed, None)
        if variant is variants[0]:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config) if needs_model(arguments) else None
            check_optimization(arguments, model)
    fixed = _fixed(given, settings, arguments)
    return Plan(
        variants=tuple(variants),
        parametrization=parametrization,
        size=given["size"],
        seeds=seeds,
        grid_seeds=seeds[:of_grid],
        learning_rates=rates,
        folder=folder,
        position_tokens=fixed["position_tokens"],
        extrapolation=fixed["extrapolation"],
        baseline=given["baseline"],
        training=values,
        fixed=fixed,
    )


def _fixed(given: Values, settings: training.RecipeSettings, arguments: training.RecipeArguments) -> Values:
    return {
        "parametrization": given["parametrization"],
        "position_tokens": _integer("position_tokens", given["position_tokens"], 1),
        "extrapolation": _integer("extrapolation", given["extrapolation"], 1),
        **{name: value for name, value in asdict(settings).items() if name not in _FREE},
        **{name: value for name, value in arguments.to_sanitized_dict().items() if name not in _FREE},
    }


def fixed_settings() -> Values:
    """What ``Plan.fixed`` holds where no flag is given."""
    given = {**training.read(_parser(), []), "data": training.RecipeSettings.data}
    return _fixed(given, *training.build(given))


def _tasks(suite: str) -> list[str]:
    """The sources that a suite is of."""
    if suite in SUITES:
        return SUITES[suite]
    try:
        return [synthetic.get(suite).spec]
    except ValueError as error:
        raise UserError(f"suite: allowed are {', '.join(SUITES)}, or a synthetic task; {error}") from None


def _names(flag: str, text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"{flag}: expected a comma-separated list; got {text!r}")
    return parts


def _several(flag: str, text: str, one: Callable[[str], Number]) -> tuple[Number, ...]:
    values = tuple(map(one, _names(flag, text)))
    if len(set(values)) < len(values):
        raise UserError(f"{flag}: each value once; got {text}")
    return values


def _integer(flag: str, text: str, least: int) -> int:
    return _number(flag, text, int, lambda value: value >= least, f"integers >= {least}")


def _rate(text: str) -> float:
    return _number("lr", text, float, lambda value: value > 0, "numbers > 0, such as 1e-3,3e-3")


def _number(
    flag: str, text: str, kind: Callable[[str], Number], holds: Callable[[Number], bool], allowed: str
) -> Number:
    with contextlib.suppress(ValueError):
        if math.isfinite(value := kind(text)) and holds(value):
            return value
    raise UserError(f"{flag}: allowed are {allowed}; got {text!r}")
