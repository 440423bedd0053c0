"""What is known when all cells of a plan have run: of each model, and of the comparison."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fla_mesa.eval.compare.cell import CellResult
from fla_mesa.eval.compare.columns import COLUMNS, Figures
from fla_mesa.eval.compare.plan import Plan, Point
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.measure.trained import Trained
from fla_mesa.provenance import commit
from fla_mesa.report.tables import Spread
from fla_mesa.train.command import scale

# What the runs of a comparison have in common, as each records it.
_CIRCUMSTANCES = [
    "steps",
    "sequences_per_step",
    "seq_len",
    "data",
    "yardsticks",
    "device",
    "processes",
    "versions",
    "settings",
]


@dataclass(frozen=True)
class ModelResult:
    """A row of the report: a variant at its best point of the grid, over the seeds.

    Attributes:
        runs: Of that point, one for each seed; none if nothing was finished.
        figures: By the name of the column.
        mean_loss: By point of the grid: validation loss over the seeds of the grid; None where a seed diverged or failed.
        failures: Runs that diverged, failed or could not be measured.
    """

    variant: Variant
    runs: tuple[CellResult, ...]
    figures: Mapping[str, Figures]
    mean_loss: Mapping[Point, float | None]
    failures: tuple[CellResult, ...]

    @property
    def label(self) -> str:
        return self.variant.label

    @property
    def point(self) -> Point | None:
        """Its best point of the grid; None if nothing finished."""
        return self.runs[0].cell.point if self.runs else None

    @property
    def by_seed(self) -> dict[int, Trained]:
        """The finished runs, as columns take them."""
        return {result.cell.seed: result.run for result in self.runs if result.run is not None}

    @property
    def trained(self) -> list[Trained]:
        """The same without their seeds."""
        return list(self.by_seed.values())

    def values(self, name: str, key: str = "") -> dict[int, float]:
        """The values of a column under a key by seed, of the runs that have one."""
        found = {seed: COLUMNS[name].of(run) for seed, run in self.by_seed.items()}
        picked = {seed: value.get(key) if isinstance(value, dict) else value for seed, value in found.items()}
        return {seed: value for seed, value in picked.items() if isinstance(value, float | int)}

    def spread(self, name: str, key: str = "") -> Spread | None:
        """The value of a column under a key, over the runs; None if there is none."""
        found = self.figures.get(name)
        return found.get(key) if isinstance(found, Mapping) else None

    def curve(self, name: str) -> list[float] | None:
        """The value of a column that is a curve; None if there is none."""
        found = self.figures.get(name)
        return found if isinstance(found, list) else None


def _by_point(results: Sequence[CellResult]) -> dict[Point, list[CellResult]]:
    points = dict.fromkeys(result.cell.point for result in results)
    return {point: [result for result in results if result.cell.point == point] for point in points}


def _mean_loss(results: Sequence[CellResult]) -> float | None:
    """Over the seeds that ran the whole grid; None if any seed diverged or failed."""
    if any(result.run is None for result in results):
        return None
    of_grid = (result.run for result in results if result.cell.seed in result.cell.plan.grid_seeds)
    return statistics.fmean(run.metrics.loss for run in of_grid if run is not None)


def best(results: Sequence[CellResult]) -> list[CellResult]:
    """Those of a variant at the point of the grid with the least mean validation loss; none if there is no such point."""
    losses = {point: loss for point, of in _by_point(results).items() if (loss := _mean_loss(of)) is not None}
    return _by_point(results)[min(losses, key=losses.__getitem__)] if losses else []


def summarize(plan: Plan, results: Sequence[CellResult]) -> list[ModelResult]:
    """The results of each variant, in the plan's order."""
    models = []
    for variant in plan.variants:
        own = [result for result in results if result.cell.variant is variant]
        chosen = tuple(best(own))
        runs = [result.run for result in chosen if result.run is not None]
        figures = {name: column.over(runs) for name, column in COLUMNS.items()}
        losses = {point: _mean_loss(of) for point, of in _by_point(own).items()}
        failures = [r for r in own if r.outcome.status != "done"] + [r for r in own if r.problem is not None]
        models.append(ModelResult(variant, chosen, figures, losses, tuple(failures)))
    return models


def devices(models: Sequence[ModelResult]) -> list[str]:
    """On which models were trained; speeds of several do not compare."""
    return sorted({run.metrics.everything["device"] for model in models for run in model.trained})


@dataclass(frozen=True)
class Report:
    """A comparison that has run.

    Attributes:
        line: The command that made it.
        run: Data, recipe, versions and commits of its runs.
    """

    plan: Plan
    models: Sequence[ModelResult]
    line: Sequence[str]
    run: Mapping[str, Any]

    @classmethod
    def of(cls, plan: Plan, models: Sequence[ModelResult], line: Sequence[str]) -> Report:
        """The circumstances are those that the first finished run recorded, and the commits and devices of all."""
        made = {"machine": platform.platform(), "commit": commit()}
        finished = [run.metrics.everything for model in models for run in model.trained]
        if not finished:
            return cls(plan, models, line, made)
        kept = {name: finished[0].get(name) for name in _CIRCUMSTANCES}
        kept["settings"] = {name: value for name, value in finished[0]["settings"].items() if name in plan.fixed}
        if len(plan.weight_decays) > 1:
            kept["settings"]["weight_decay"] = list(plan.weight_decays)
        kept["settings"]["config_overrides"] = plan.settings.config_overrides  # of all, not of this one
        commits = sorted({metrics.get("commit") or "unknown" for metrics in finished})
        return cls(plan, models, line, kept | made | {"trained_at": commits, "devices": devices(models)})

    @property
    def finished(self) -> list[ModelResult]:
        return [model for model in self.models if model.runs]

    @property
    def failures(self) -> list[str]:
        """A line for each run that diverged, failed or could not be measured."""
        found = [failure(result) for model in self.models for result in model.failures]
        return [f"- {one['cell']}: {one['status']}: {one['reason']}" for one in found]

    @property
    def baseline(self) -> ModelResult | None:
        """The model that the others are compared with, if it finished."""
        return next((model for model in self.finished if model.label == self.plan.baseline), None)

    @property
    def losses(self) -> str:
        """The unit of the losses, in words."""
        of_vectors = any(model.curve("squared_error_by_position") is not None for model in self.models)
        return "squared errors" if of_vectors else "in nats a token"

    @property
    def yardsticks(self) -> list[str]:
        known = self.run.get("yardsticks")
        return [f"For scale, bits per byte on the same text: {scale(known)}."] if known else []


def failure(result: CellResult) -> dict[str, object]:
    """What report.json says of a run that did not finish or could not be measured."""
    if result.problem is not None:
        return {"cell": str(result.cell), "status": "not measured", "step": None, "reason": result.problem}
    outcome = result.outcome
    return {"cell": str(result.cell), "status": outcome.status, "step": outcome.step, "reason": outcome.reason}
