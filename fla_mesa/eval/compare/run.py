"""Runs the cells of a plan, one after the other, each unless it is stored."""

from __future__ import annotations

from collections.abc import Sequence

from fla_mesa.eval.compare import cell as cells
from fla_mesa.eval.compare.cell import Cell, CellResult
from fla_mesa.eval.compare.display import Display, Estimate
from fla_mesa.eval.compare.plan import Plan, Point
from fla_mesa.eval.compare.results import best
from fla_mesa.eval.compare.variants import Variant
from fla_mesa.eval.measure.trained import Metrics
from fla_mesa.json_files import Unreadable
from fla_mesa.train.attempt import Show
from fla_mesa.train.progress import clock
from fla_mesa.train.run_folder import METRICS_FILE
from fla_mesa.train.worker import Worker


def run(plan: Plan, worker: Worker, display: Display) -> list[CellResult]:
    """Trains and measures what is not stored yet; returns every cell in the plan's order.

    Raises:
        OSError: Results cannot be stored.
    """
    runner = _Runner(plan, worker, display)
    return [result for variant in plan.variants for result in runner.run(variant)]


def _stored(plan: Plan) -> dict[str, int]:
    """How many trainings and measurements are stored. Seeds beside the grid run at one point of it, any that there is."""

    def there(variant: Variant, point: Point, seed: int, file: str) -> bool:
        return (Cell(plan, variant, point, seed).folder / file).exists()

    def by_seed(seeds: Sequence[int], file: str) -> int:
        return sum(any(there(v, p, seed, file) for p in plan.grid) for v in plan.variants for seed in seeds)

    of_grid = (there(v, p, seed, METRICS_FILE) for v in plan.variants for p in plan.grid for seed in plan.grid_seeds)
    others = plan.seeds[len(plan.grid_seeds) :]
    return {"train": sum(of_grid) + by_seed(others, METRICS_FILE), "measure": by_seed(plan.seeds, cells.MEASURED_FILE)}


class _Runner:
    def __init__(self, plan: Plan, worker: Worker, display: Display):
        self.plan, self.worker, self.display = plan, worker, display
        self.others = plan.seeds[len(plan.grid_seeds) :]  # seeds that run at the best point of the grid alone
        trainings = len(plan.grid) * len(plan.grid_seeds) + len(self.others)
        self.estimate = Estimate(len(plan.variants) * trainings, len(plan.variants) * len(plan.seeds), _stored(plan))

    def run(self, variant: Variant) -> list[CellResult]:
        """Trains a variant, then measures it at its best point of the grid."""
        results = self._train_all(variant)
        chosen = best(results)
        self.estimate.skip("measure", len(self.plan.seeds) - len(chosen))
        return [self._measure(result, first=result is chosen[0]) if result in chosen else result for result in results]

    def _train_all(self, variant: Variant) -> list[CellResult]:
        """The grid, then the other seeds at its best point: where one of those ends badly, at the next best."""

        def train(points: Sequence[Point], seeds: Sequence[int]) -> list[CellResult]:
            return [self._train(Cell(self.plan, variant, point, seed)) for point in points for seed in seeds]

        results = train(self.plan.grid, self.plan.grid_seeds)
        expected = len(self.others)
        while (chosen := best(results)) and len(chosen) < len(self.plan.seeds):
            self.estimate.expect(len(self.others) - expected)
            expected = 0
            results += train([chosen[0].cell.point], self.others)
        self.estimate.skip("train", expected)
        return results

    def _line(self, text: str) -> None:
        self.display.line(f"[{self.estimate.done}/{self.estimate.total}] {text}")

    def _show(self, kind: str, cell: Cell) -> Show:
        def show(share: float, what: str) -> None:
            estimate = self.estimate
            self.display.move(estimate.done, estimate.total, estimate.left(kind, share), str(cell), share, what)

        return show

    def _train(self, cell: Cell) -> CellResult:
        for sentence in cells.set_aside_unreadable(cell):
            self.display.line(f"{cell}: {sentence}")
        self.estimate.start()
        try:
            found = cells.stored(cell)
        except Unreadable:  # what could not be set aside
            found = None
        result = found or cells.train(cell, self.worker, self._show("train", cell))
        self.estimate.finish("train", ran=found is None)
        outcome = result.outcome
        how = _figure(result.run.metrics) if result.run else f"{outcome.status.upper()}: {outcome.reason}"
        left = self.estimate.left() if any(self.estimate.todo.values()) else ""
        self._line(f"{cell}: {how} ({'stored' if found else clock(outcome.seconds)}){f', {left}' if left else ''}")
        return result

    def _measure(self, result: CellResult, *, first: bool) -> CellResult:
        self.estimate.start()
        measured = cells.measure(result, self.worker, self._show("measure", result.cell), first=first)
        self.estimate.finish("measure", ran=measured is not result)
        if measured.problem is not None:
            self._line(f"{result.cell}: MEASUREMENT FAILED: {measured.problem}")
        return measured


def _figure(metrics: Metrics) -> str:
    """A finished run in a few words."""
    bits = metrics.bits_per_byte
    if metrics.accuracy is None:
        return f"squared error {metrics.loss:.4f}"
    return f"{bits:.4f} bits per byte" if bits is not None else f"accuracy {metrics.accuracy:.4f}"
