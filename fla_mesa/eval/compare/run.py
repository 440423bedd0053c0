"""Runs the cells of a plan, one after the other, each unless it is stored; then what is known of each model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fla_mesa.eval.compare import cell as cells
from fla_mesa.eval.compare.cell import Cell, CellResult
from fla_mesa.eval.compare.columns import COLUMNS, Spread
from fla_mesa.eval.compare.display import Display, Estimate
from fla_mesa.eval.compare.plan import Plan
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.compare.worker import Worker
from fla_mesa.eval.measure.trained import Metrics
from fla_mesa.json_files import Unreadable
from fla_mesa.train.progress import clock


@dataclass(frozen=True)
class ModelResult:
    """A row of the report: a variant at its best learning rate, over the seeds.

    Attributes:
        runs: Of that learning rate, one for each seed; none if nothing was finished.
        figures: By the name of the column: a spread by key, a curve, or None where it does not apply.
        mean_loss_by_learning_rate: Validation loss; None where a seed diverged or failed.
        failures: Runs that ended otherwise than they should.
    """

    variant: Variant
    runs: tuple[CellResult, ...]
    figures: Mapping[str, Mapping[str, Spread] | list[float] | None]
    mean_loss_by_learning_rate: Mapping[float, float | None]
    failures: tuple[CellResult, ...]

    @property
    def label(self) -> str:
        return self.variant.label

    @property
    def learning_rate(self) -> float | None:
        return self.runs[0].cell.learning_rate if self.runs else None

    @property
    def metrics(self) -> list[Metrics]:
        """Of each seed."""
        return [run.metrics for run in self.runs if run.metrics is not None]

    def spread(self, name: str, key: str = "") -> Spread | None:
        """A value of a column."""
        found = self.figures.get(name)
        return found.get(key) if isinstance(found, Mapping) else None

    def curve(self, name: str) -> list[float] | None:
        """A column that is a curve."""
        found = self.figures.get(name)
        return found if isinstance(found, list) else None


def work(plan: Plan) -> int:
    """How many pieces of work a plan has: trainings, and measurements of the best."""
    return len(plan.variants) * len(plan.seeds) * (len(plan.learning_rates) + 1)


def run(plan: Plan, worker: Worker, display: Display) -> list[CellResult]:
    """Trains and measures what is not stored yet; returns every cell in the plan's order.

    Raises:
        OSError: Results cannot be stored.
    """
    return _Runner(plan, worker, display).run()


class _Runner:
    def __init__(self, plan: Plan, worker: Worker, display: Display):
        self.plan, self.worker, self.display = plan, worker, display
        measurements = len(plan.variants) * len(plan.seeds)
        self.estimate = Estimate(measurements * len(plan.learning_rates), measurements)

    def run(self) -> list[CellResult]:
        results = []
        for variant in self.plan.variants:
            trained = [self._train(cell) for cell in cells.cells_of(self.plan, variant)]
            chosen = best(trained)
            for place, result in enumerate(trained):
                if result in chosen:
                    trained[place] = self._measure(result, first=result is chosen[0])
            for _ in range(len(self.plan.seeds) - len(chosen)):
                self.estimate.finish("measure", ran=False)
            results += trained
        return results

    def _line(self, text: str) -> None:
        self.display.line(f"[{self.estimate.done}/{self.estimate.total}] {text}")

    def _show(self, kind: str, cell: Cell) -> cells.Show:
        def show(share: float, what: str) -> None:
            self.display.move(self.estimate.done, self.estimate.left(kind, share), str(cell), share, what)

        return show

    def _train(self, cell: Cell) -> CellResult:
        for sentence in cells.set_aside_unreadable(cell):
            self.display.line(f"{cell}: {sentence}")
        self.estimate.start()
        try:
            found = cells.stored(cell)
        except Unreadable:  # what could not be set aside
            found = None
        result = found or cells.train(self.plan, cell, self.worker, self._show("train", cell))
        self.estimate.finish("train", ran=found is None)
        outcome = result.outcome
        how = _figure(result.metrics) if result.metrics else f"{outcome.status.upper()}: {outcome.reason}"
        left = self.estimate.left() if any(self.estimate.todo.values()) else ""
        self._line(f"{cell}: {how} ({'stored' if found else clock(outcome.seconds)}){f', {left}' if left else ''}")
        return result

    def _measure(self, result: CellResult, *, first: bool) -> CellResult:
        self.estimate.start()
        show = self._show("measure", result.cell)
        measured = cells.measure(self.plan, result, self.worker, show, first=first)
        self.estimate.finish("measure", ran=measured is not result)
        if measured.problem is not None:
            self._line(f"{result.cell}: MEASUREMENT FAILED: {measured.problem}")
        return measured


def _figure(metrics: Metrics) -> str:
    """A finished run in a few words."""
    bits = metrics.bits_per_byte
    return f"{bits:.4f} bits per byte" if bits is not None else f"accuracy {metrics.accuracy:.4f}"


def _by_rate(results: Sequence[CellResult]) -> dict[float, list[CellResult]]:
    rates = dict.fromkeys(result.cell.learning_rate for result in results)
    return {rate: [result for result in results if result.cell.learning_rate == rate] for rate in rates}


def _mean_loss(results: Sequence[CellResult]) -> float | None:
    """None if a seed diverged or failed."""
    losses = [result.metrics.loss for result in results if result.metrics is not None]
    return statistics.fmean(losses) if len(losses) == len(results) else None


def best(results: Sequence[CellResult]) -> list[CellResult]:
    """Those of a variant at the learning rate with the least mean validation loss; none if there is no such rate."""
    losses = {rate: loss for rate, of in _by_rate(results).items() if (loss := _mean_loss(of)) is not None}
    return _by_rate(results)[min(losses, key=losses.__getitem__)] if losses else []


def summarize(plan: Plan, results: Sequence[CellResult]) -> list[ModelResult]:
    """What is known of each model."""
    models = []
    for variant in plan.variants:
        own = [result for result in results if result.cell.variant is variant]
        chosen = best(own)
        runs = [result.trained(plan.position_tokens) for result in chosen]
        models.append(
            ModelResult(
                variant,
                tuple(chosen),
                {name: column.over(runs) for name, column in COLUMNS.items()},
                {rate: _mean_loss(of) for rate, of in _by_rate(own).items()},
                tuple(r for r in own if r.outcome.status != "done") + tuple(r for r in own if r.problem is not None),
            )
        )
    return models
