"""Results of several checkpoints side by side, in Markdown and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One metric of one task: its value and standard error for each checkpoint that has it."""

    task: str
    metric: str
    higher_is_better: bool | None
    values: dict[str, tuple[float, float | None]]


@dataclass
class Comparison:
    """Rows in the order in which the tasks ran, and what was skipped for which checkpoint and why."""

    checkpoints: list[str]
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    # By checkpoint: the longest context in tokens, and by task how many of how many inputs were longer and cut.
    max_length: dict[str, int] = field(default_factory=dict)
    cut: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def markdown(self) -> str:
        """A table with a column for each checkpoint; the best value of a row is bold; skipped tasks follow by name and reason."""
        lines = [
            *self._context(),
            "| task | metric | " + " | ".join(self.checkpoints) + " |",
            "| --- | --- | " + " | ".join("---:" for _ in self.checkpoints) + " |",
        ]
        for row in self.rows:
            arrow = {True: " ↑", False: " ↓", None: ""}[row.higher_is_better]
            best = self._best(row)
            cells = []
            for name in self.checkpoints:
                if name not in row.values:
                    cells.append("skipped" if row.task in self.skipped.get(name, {}) else "–")
                    continue
                value, error = row.values[name]
                text = f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
                cells.append(f"**{text}**" if name in best else text)
            lines.append(f"| {row.task} | {row.metric}{arrow} | " + " | ".join(cells) + " |")
        for task in dict.fromkeys(task for tasks in self.cut.values() for task in tasks):
            counts = [self.cut[name].get(task) if name in self.cut else None for name in self.checkpoints]
            cells = ["–" if count is None else f"{count['cut']:,} of {count['of']:,}" for count in counts]
            lines.append(f"| {task} | inputs cut | " + " | ".join(cells) + " |")
        notes = [
            f"- {task} ({name}): {reason}" for name, tasks in self.skipped.items() for task, reason in tasks.items()
        ]
        if notes:
            lines += ["", "Skipped:", "", *notes]
        return "\n".join(lines) + "\n"

    def _context(self) -> list[str]:
        lengths = set(self.max_length.values())
        if not lengths:
            return []
        if len(lengths) == 1:
            return [f"Context: at most {lengths.pop():,} tokens.", ""]
        each = ", ".join(f"{name} {length:,}" for name, length in self.max_length.items())
        return [f"Context: at most so many tokens, not the same for all: {each}.", ""]

    def _best(self, row: Row) -> set[str]:
        if row.higher_is_better is None or len(row.values) < 2:
            return set()
        values = {name: value for name, (value, _) in row.values.items()}
        top = (max if row.higher_is_better else min)(values.values())
        if len(set(values.values())) == 1:
            return set()
        return {name for name, value in values.items() if value == top}

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return {
            "checkpoints": self.checkpoints,
            "rows": [
                {
                    "task": row.task,
                    "metric": row.metric,
                    "higher_is_better": row.higher_is_better,
                    "values": {name: {"value": value, "stderr": error} for name, (value, error) in row.values.items()},
                }
                for row in self.rows
            ],
            "skipped": self.skipped,
            "max_length": self.max_length,
            "cut": self.cut,
        }

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write comparison.md and comparison.json; returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        markdown, data = directory / "comparison.md", directory / "comparison.json"
        markdown.write_text(self.markdown(), encoding="utf-8")
        data.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
        return markdown, data


def compare(results: dict[str, dict[str, Any] | None]) -> Comparison:
    """Side by side what lm-eval returned for each checkpoint.

    Args:
        results: By checkpoint, lm-eval's results (with "skipped" as OneByOne adds it), or None if there are none.
    """
    comparison = Comparison(list(results))
    found: dict[tuple[str, str], Row] = {}
    for name, result in results.items():
        comparison.skipped[name] = dict((result or {}).get("skipped", {}))
        for task, metrics in (result or {}).get("results", {}).items():
            directions = (result or {}).get("higher_is_better", {}).get(task, {})
            for key, value in metrics.items():
                metric, comma, filter_name = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = metrics.get(f"{metric}_stderr,{filter_name}")
                label = metric if filter_name == "none" else f"{metric} ({filter_name})"
                row = found.setdefault((task, label), Row(task, label, directions.get(metric), {}))
                row.values[name] = (float(value), float(error) if isinstance(error, int | float) else None)
        if (result or {}).get("max_length") is not None:
            comparison.max_length[name] = (result or {})["max_length"]
        if (result or {}).get("cut"):
            comparison.cut[name] = (result or {})["cut"]
    comparison.rows = list(found.values())
    comparison.skipped = {name: tasks for name, tasks in comparison.skipped.items() if tasks}
    # A task that ran for nobody has no row of its own; the notes below the table name it.
    return comparison


def short_names(paths: list[str]) -> list[str]:
    """The last part of each path, or as many more as it takes to tell them apart."""
    parts = [Path(path).parts for path in paths]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(set(paths)):
            return names
    return paths
