"""Results of several checkpoints side by side, in Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fla_mesa.eval.harness.per_token import METRIC
from fla_mesa.eval.harness.results import Cut, Evaluation
from fla_mesa.eval.harness.suites import Suite
from fla_mesa.json_files import write_json, write_text
from fla_mesa.markdown import EMPTY
from fla_mesa.report.tables import LESS, MORE, Cell, Spread, Table, best, digits

# What an average is taken of: the paper's rule of scoring multiple choice, where a task is one.
_SCORES = (METRIC, "contains", "acc")


@dataclass(frozen=True)
class Row:
    """One metric of one task: its value and standard error for each checkpoint that has it."""

    task: str
    metric: str
    higher_is_better: bool | None
    values: dict[str, tuple[float, float | None]]
    of_a_suite: bool = False  # an average over the tasks of a suite


@dataclass
class Comparison:
    """Rows in the order in which the tasks ran, and what was skipped for which checkpoint and why."""

    checkpoints: list[str]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    # By checkpoint: the longest context in tokens, and by task how many of how many inputs were longer and cut.
    max_length: dict[str, int] = field(default_factory=dict)
    cut: dict[str, dict[str, Cut]] = field(default_factory=dict)

    def markdown(self) -> str:
        """A table with a column for each checkpoint; the best value of a row is bold; skipped tasks follow by name and reason."""
        rows = [*map(self._cells, self.rows), *self._cut_cells()]
        lines = [*self._context(), Table(["task", "metric", *self.checkpoints], rows, left=2).markdown()]
        notes = [
            f"- {task} ({name}): {reason}" for name, tasks in self.skipped.items() for task, reason in tasks.items()
        ]
        return "\n".join([*lines, *(["", "Skipped:", "", *notes] if notes else []), ""])

    def _cells(self, row: Row) -> list[Cell]:
        arrow, better = {True: (" ↑", MORE), False: (" ↓", LESS), None: ("", None)}[row.higher_is_better]
        top = best((value for value, _ in row.values.values()), better)
        cells = [Cell(row.task), Cell(row.metric + arrow)]
        for name in self.checkpoints:
            if name in row.values:
                cells.append(Cell.of(Spread(*row.values[name]), digits(4), best=top))
            else:
                cells.append(Cell("skipped" if row.task in self.skipped.get(name, {}) else EMPTY))
        return cells

    def _cut_cells(self) -> Iterator[list[Cell]]:
        for task in dict.fromkeys(task for tasks in self.cut.values() for task in tasks):
            counts = [self.cut.get(name, {}).get(task) for name in self.checkpoints]
            texts = [f"{count['cut']:,} of {count['of']:,}" if count else EMPTY for count in counts]
            yield [Cell(text) for text in (task, "inputs cut", *texts)]

    def _context(self) -> list[str]:
        lengths = set(self.max_length.values())
        if not lengths:
            return []
        if len(lengths) == 1:
            return [f"Context: at most {lengths.pop():,} tokens.", ""]
        each = ", ".join(f"{name} {length:,}" for name, length in self.max_length.items())
        return [f"Context: the maximum number of tokens differs: {each}.", ""]

    def as_dict(self) -> dict[str, object]:
        """The same as plain data; None for a perplexity that is infinite, or the error of a single sample, which JSON cannot hold."""

        def plain(row: Row) -> dict[str, object]:
            found = {
                name: [v if v is not None and math.isfinite(v) else None for v in pair]
                for name, pair in row.values.items()
            }
            values = {name: {"value": value, "stderr": error} for name, (value, error) in found.items()}
            return {"task": row.task, "metric": row.metric, "higher_is_better": row.higher_is_better, "values": values}

        return {**vars(self), "rows": list(map(plain, self.rows))}

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Write comparison.md and comparison.json; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "comparison.md", self.markdown())
        write_json(folder / "comparison.json", self.as_dict())
        return folder / "comparison.md", folder / "comparison.json"


def compare(evaluations: Mapping[str, Evaluation], averages: Sequence[tuple[str, Suite]] = ()) -> Comparison:
    """Put evaluations side by side.

    Args:
        evaluations: By the name of the checkpoint.
        averages: Suites by name, for each part of which a row is added.
    """
    comparison = Comparison(list(evaluations))
    found: dict[tuple[str, str], Row] = {}
    for name, evaluation in evaluations.items():
        directions = evaluation.results.get("higher_is_better", {})
        for task, metrics in evaluation.results.get("results", {}).items():
            for key, value in metrics.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = metrics.get(f"{metric}_stderr,{filter_name}")
                label = metric if filter_name == "none" else f"{metric} ({filter_name})"
                row = found.setdefault((task, label), Row(task, label, directions.get(task, {}).get(metric), {}))
                row.values[name] = (float(value), float(error) if isinstance(error, int | float) else None)
        if evaluation.max_length is not None:
            comparison.max_length[name] = evaluation.max_length
        if evaluation.cut:
            comparison.cut[name] = evaluation.cut
        if evaluation.skipped:  # a task that ran for nobody has no row; the notes below the table name it
            comparison.skipped[name] = evaluation.skipped
    of_suites = (
        _average(comparison, f"{name}: {part}", tasks, found)
        for name, suite in averages
        for part, tasks in suite.parts.items()
    )
    comparison.rows = [*found.values(), *(row for row in of_suites if row is not None)]
    return comparison


def _average(
    comparison: Comparison, name: str, tasks: Sequence[str], rows: Mapping[tuple[str, str], Row]
) -> Row | None:
    """The mean over those of the tasks that every checkpoint has, each by the first of its scores in :data:`_SCORES`."""
    scored = (next((rows[task, score] for score in _SCORES if (task, score) in rows), None) for task in tasks)
    common = [row for row in scored if row is not None and set(row.values) == set(comparison.checkpoints)]
    if not common:
        return None
    values = {}
    for checkpoint in comparison.checkpoints:
        scores, errors = zip(*(row.values[checkpoint] for row in common), strict=True)
        error = None if None in errors else math.hypot(*errors) / len(errors)
        values[checkpoint] = (sum(scores) / len(scores), error)
    of = "" if len(common) == len(tasks) else f" of {len(tasks)}"
    return Row(name, f"average over {len(common)}{of}", True, values, of_a_suite=True)


def short_names(paths: list[str]) -> list[str]:
    """The last part of each path, or as many more as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return paths
