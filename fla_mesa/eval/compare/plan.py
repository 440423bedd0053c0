"""What a comparison is of, checked before anything is trained: the plans that a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.eval.compare import flags
from fla_mesa.eval.compare.variants import Variant, parse_variants
from fla_mesa.train import settings as training
from fla_mesa.train.optimization import check_optimization, needs_model
from fla_mesa.train.overrides import split_outside_brackets
from fla_mesa.train.recipe import make_config

Values = Mapping[str, Any]  # of flags, by their names

# What may differ between two calls that go on with one comparison, beside its models, seeds and learning rates.
_FREE = {"model", "output_dir", "seed", "learning_rate", "resume", "disable_tqdm", "run_name", "logging_dir"}


@dataclass(frozen=True)
class Point:
    """A point of the grid, of which each model keeps its best.

    Attributes:
        name: In the names of its cells' folders.
    """

    learning_rate: float
    weight_decay: float
    name: str
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Plan:
    """A comparison: `variants` under one parametrisation at one size, each at its best point of the grid with every seed.

    Attributes:
        grid_seeds: The first of `seeds`: those that run the whole grid.
        weight_decays: The first is that of the folder: its cells have the names that they have without a grid of weight decays.
        baseline: The variant, by its label, that the others are held against, pair by pair of runs; or None.
        training: Settings of `fla-mesa train` by name, the same for all.
        fixed: What must be the same whenever the comparison goes on: among it `position_tokens`, validation tokens for the loss by
            position, and `extrapolation`, up to how many times the training length that goes.
    """

    variants: tuple[Variant, ...]
    parametrization: str
    size: str
    seeds: tuple[int, ...]
    grid_seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...]
    folder: Path
    baseline: str | None
    training: Values = field(repr=False)
    fixed: Values = field(repr=False)

    @property
    def grid(self) -> list[Point]:
        """Every learning rate with every weight decay."""

        def point(rate: float, decay: float) -> Point:
            name = f"lr{rate:g}" if decay == self.weight_decays[0] else f"lr{rate:g}-wd{decay:g}"
            return Point(rate, decay, name, f"{rate:g}" + f" weight decay {decay:g}" * (len(self.weight_decays) > 1))

        return [point(rate, decay) for decay in self.weight_decays for rate in self.learning_rates]

    @cached_property
    def settings(self) -> training.RecipeSettings:
        """What is trained on what, with the first variant for a model."""
        return training.build(self.training)[0]


def parse(argv: list[str], preset: str | None = None) -> list[Plan]:
    """The comparisons that a command line asks for: for each task of a suite and each size, in a folder of its own if there are several.

    Args:
        argv: The flags.
        preset: What `--preset` is where it is not given.

    Raises:
        UserError: A value is not allowed; the message names the flag, and for names lists what exists.
    """
    parser = flags.parser()
    given = training.read(parser, argv)
    of_own_data = given["data"] is not None
    if (preset := given["preset"] or preset) is not None:
        defaults = flags.read_preset(preset)
        if of_own_data and given["suite"] is None:
            defaults = {name: value for name, value in defaults.items() if name not in ("suite", "data", "data_config")}
        parser.set_defaults(**defaults)
        asked = training.read(parser, argv)["parametrization"]
        if asked != defaults["parametrization"]:  # the preset's overrides are settings of the other layers
            parser.set_defaults(config_overrides=None, output_dir=f"{defaults['output_dir']}-{asked}")
        own_baseline, given = given["baseline"], training.read(parser, argv)
        if own_baseline is None and given["baseline"] not in split_outside_brackets(given["models"], ","):
            given["baseline"] = None  # the preset's, which is none of the models that are asked for
    if given["suite"] is not None and of_own_data:
        raise UserError("suite, data: each says what to learn; give one of the two")
    tasks = [given["data"] or training.RecipeSettings.data] if given["suite"] is None else flags.tasks(given["suite"])
    sizes = list(dict.fromkeys(flags.names("size", given["size"])))
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
    seeds, rates, decays = (flags.numbers(flag, str(given[flag])) for flag in ("seeds", "lr", "weight_decay"))
    of_grid = len(seeds) if given["grid_seeds"] is None else flags.number("grid_seeds", given["grid_seeds"])
    if of_grid > len(seeds):
        raise UserError(f"grid_seeds: allowed are 1 to {len(seeds)}, as many as --seeds names; got {of_grid}")
    labels = [variant.label for variant in variants]
    if given["baseline"] is not None and given["baseline"] not in labels:
        raise UserError(f"baseline: allowed are the models compared, {', '.join(labels)}; got {given['baseline']!r}")
    values = {name: given[name] for name in training.names()}
    values |= {"model": variants[0].zoo_name, "output_dir": str(folder), "weight_decay": decays[0]}
    settings, arguments = training.build(values)
    for variant in (*variants, *others):  # an unknown size, or an override that only some of them know
        changed = replace(settings, model=variant.zoo_name, config_overrides=variant.overrides)
        with mistakes_of(ValueError, TypeError, prefix=f"models: {variant.label}: "):  # the configuration's own checks
            config = make_config(changed, None)
        if variant is variants[0]:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config) if needs_model(arguments) else None
            check_optimization(arguments, model)
    return Plan(
        variants=tuple(variants),
        parametrization=parametrization,
        size=given["size"],
        seeds=seeds,
        grid_seeds=seeds[:of_grid],
        learning_rates=rates,
        weight_decays=decays,
        folder=folder,
        baseline=given["baseline"],
        training=values,
        fixed=_fixed(given, settings, arguments),
    )


def _fixed(given: Values, settings: training.RecipeSettings, arguments: training.RecipeArguments) -> Values:
    # max_steps says how long a stream trains: one that ended before goes on with more passes.
    free = _FREE | {"num_train_epochs"} if settings.streaming else _FREE
    return {
        "parametrization": given["parametrization"],
        **{flag: flags.number(flag, given[flag]) for flag in ("position_tokens", "extrapolation")},
        **{name: value for name, value in asdict(settings).items() if name not in free},
        **{name: value for name, value in arguments.to_sanitized_dict().items() if name not in free},
    }


def fixed_settings() -> Values:
    """What ``Plan.fixed`` holds where no flag is given."""
    given = {**training.read(flags.parser(), []), "data": training.RecipeSettings.data}
    return _fixed(given, *training.build(given))
