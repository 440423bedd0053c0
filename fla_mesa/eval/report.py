"""The report of a comparison: rows from what the runs left, and the tables that show them."""

from __future__ import annotations

import contextlib
import platform
import shlex
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fla_mesa.eval import report_plots
from fla_mesa.eval.compare_measure import BATCHES, EXTRAPOLATION
from fla_mesa.eval.compare_settings import Plan
from fla_mesa.eval.measure.quality import position_ranges
from fla_mesa.json_files import read_json, write_json
from fla_mesa.markdown import EMPTY
from fla_mesa.markdown import table as markdown_table
from fla_mesa.models import zoo
from fla_mesa.train.command import scale
from fla_mesa.train.provenance import commit

Row = dict[str, Any]
Runs = Sequence[tuple[dict[str, Any], dict[str, Any]]]  # metrics.json and measured.json of each seed

_PARAMETRIZATIONS = {
    "released": "Released parametrization: each model as flash-linear-attention or transformers ships it, at equal depth, width, MLP and "
    "tokenizer, with parameters matched.",
    "matched": "Matched parametrization (arXiv 2506.05233, appendix E.1): one layer for all, with the same projections, convolutions, "
    "scalar gates, norms and key size, in which only the recurrence rule differs.",
}


# What the runs of a comparison have in common, as each records it.
_CIRCUMSTANCES = ("steps", "sequences_per_step", "seq_len", "data", "yardsticks")
_CIRCUMSTANCES += ("device", "processes", "versions", "settings")


def figure(metrics: dict[str, Any] | None) -> str:
    """A finished run in a few words."""
    assert metrics is not None
    bits = metrics["bits_per_byte"]
    return f"{bits:.4f} bits per byte" if bits is not None else f"accuracy {metrics['accuracy']:.4f}"


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation (over n - 1; None for a single value)."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def row(model: str, full_name: str, learning_rate: float | None, runs: Runs) -> Row:
    """What the report holds of a model: at its best learning rate, over the seeds. `runs` is empty if nothing was finished."""
    found: Row = {"model": model, "zoo_name": full_name, "learning_rate": learning_rate, "seeds": len(runs)}
    if not runs:
        return found
    metrics = [metrics for metrics, _ in runs]
    first = metrics[0]
    found |= {
        "parameters": first["parameters"],
        "parameters_without_embeddings": first["parameters_without_embeddings"],
        "loss": spread([m["loss"] for m in metrics]),
        "accuracy": spread([m["accuracy"] for m in metrics]),
        "bits_per_byte": spread([m["bits_per_byte"] for m in metrics]) if first["bits_per_byte"] is not None else None,
        "training_tokens_per_second": _median([m["tokens_per_second"] for m in metrics]),
        "validation_curves": [m["history"]["validation"] for m in metrics],
        "training_curves": [m["history"]["train"] for m in metrics],
    }
    curves = [measured["loss_by_position"] for _, measured in runs if "loss_by_position" in measured]
    if curves and len(curves) == len(runs):
        length = first["seq_len"]
        curve = [statistics.fmean(at) for at in zip(*curves, strict=True)]
        found["loss_by_position"] = curve
        found["loss_in_ranges"] = {
            f"{a}-{b - 1}": spread([statistics.fmean(c[a - 1 : b - 1]) for c in curves]) for a, b in ranges(length)
        }
    scores = [measured["test"] for _, measured in runs if "test" in measured]
    if scores and len(scores) == len(runs):
        found["test"] = {name: spread([s[name] for s in scores]) for name in scores[0] if name != "accuracy_stderr"}
    speeds = runs[0][1]
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second", "training_peak_bytes", "state_bytes"):
        if name in speeds:
            found[name] = speeds[name]
    return found


def ranges(length: int) -> list[tuple[int, int]]:
    """Ranges [first, end) of positions: doubling up to the training length, then up to ``EXTRAPOLATION`` times it."""
    edges = [*position_ranges(length)]
    start = length
    while start < EXTRAPOLATION * length:
        edges.append((start, 2 * start))
        start *= 2
    return edges


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def results(plan: Plan, rows: list[Row], command: list[str]) -> dict[str, Any]:
    """Everything that report.json holds."""
    return {
        "parametrization": plan.parametrization,
        "size": plan.size,
        "seeds": plan.seeds,
        "learning_rates": plan.learning_rates,
        "models": rows,
        "notes": {row["model"]: zoo.NOTES[row["zoo_name"]] for row in rows if row["zoo_name"] in zoo.NOTES},
        "run": _circumstances(plan, rows),
        "command": command,
    }


def _circumstances(plan: Plan, rows: list[Row]) -> dict[str, Any]:
    """Data, recipe and versions as the first finished run recorded them, and the commits that the runs were made at."""
    finished = []
    for row_ in rows:
        for path in sorted((plan.folder / "cells" / row_["zoo_name"]).glob("*/metrics.json")):
            with contextlib.suppress(ValueError):
                finished.append(read_json(path))
    made = {"machine": platform.platform(), "commit": commit()}
    if not finished:
        return made
    kept = {name: finished[0].get(name) for name in _CIRCUMSTANCES}
    kept["settings"] = {name: value for name, value in finished[0]["settings"].items() if name in plan.fixed}
    kept["settings"]["config_overrides"] = plan.settings.config_overrides  # of all, not of this one
    return kept | made | {"trained_at": sorted({metrics.get("commit") or "unknown" for metrics in finished})}


# Tables


@dataclass(frozen=True)
class Column:
    """A column: its head, a row's cell, and which of two values is better (None: neither)."""

    head: str
    value: Callable[[Row], float | None]
    text: Callable[[float], str]
    better: Callable[[float, float], bool] | None = None
    std: Callable[[Row], float | None] = lambda row: None


def less(a: float, b: float) -> bool:
    """For :class:`Column`."""
    return a < b


def more(a: float, b: float) -> bool:
    """For :class:`Column`."""
    return a > b


def _of(*keys: str) -> Callable[[Row], Any]:
    def get(row: Row) -> Any:
        value: Any = row
        for key in keys:
            value = None if value is None else value.get(key)
        return value

    return get


def spread_column(head: str, *keys: str, digits: int = 4, better: Callable[[float, float], bool] = less) -> Column:
    """A column of means and standard deviations, as :func:`spread` makes them."""
    return Column(head, _of(*keys, "mean"), lambda value: f"{value:.{digits}f}", better, _of(*keys, "std"))


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bytes(value: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"


def _has(rows: list[Row], name: str) -> bool:
    return any(row.get(name) is not None for row in rows)


def quality_columns(found: dict[str, Any]) -> list[Column]:
    """What is the same to the last digit when a comparison is run again on the same machine."""
    rows = found["models"]
    columns = [Column("parameters", _of("parameters"), _count), Column("lr", _of("learning_rate"), lambda v: f"{v:g}")]
    if _has(rows, "bits_per_byte"):
        columns += [spread_column("bits per byte", "bits_per_byte")]
    elif _has(rows, "test"):
        names = next(row["test"] for row in rows if row.get("test"))
        columns += [spread_column(f"test {name}", "test", name, better=more) for name in names]
    else:
        columns += [spread_column("accuracy", "accuracy", better=more)]
    columns += [spread_column("loss", "loss")]
    if _has(rows, "loss_by_position"):
        length = found["run"]["seq_len"]
        shown = [ranges(length)[0], *(pair for pair in ranges(length) if pair[1] > length // 2)]
        columns += [spread_column(f"loss at {a}-{b - 1}", "loss_in_ranges", f"{a}-{b - 1}", digits=3) for a, b in shown]
    return columns


def speed_columns(found: dict[str, Any]) -> list[Column]:
    """What is measured anew in every comparison."""
    columns = [Column("training tokens/s", _of("training_tokens_per_second"), _count, more)]
    if not _has(found["models"], "state_bytes"):
        return columns
    for stage in ("prefill", "decode"):
        for batch in map(str, BATCHES):
            columns.append(
                Column(f"{stage} tokens/s, batch {batch}", _of(f"{stage}_tokens_per_second", batch), _count, more)
            )
    columns.append(Column("peak memory of a step", _of("training_peak_bytes"), _bytes, less))
    length = found["run"]["seq_len"]
    for n in (length, EXTRAPOLATION * length):
        columns.append(Column(f"state at {n}", _of("state_bytes", str(n)), _bytes, less))
    return columns


def table(rows: list[Row], columns: list[Column], *, bold: bool = True) -> str:
    """A Markdown table, a line for each model; the best value of a column is bold."""
    finished = [row for row in rows if row["seeds"]]
    body = [[row["model"], *(_cell(row, column, finished, bold) for column in columns)] for row in rows]
    return markdown_table(["model", *(column.head for column in columns)], body)


def _cell(row: Row, column: Column, rows: list[Row], bold: bool) -> str:
    value = column.value(row) if row["seeds"] else None
    if value is None:
        return EMPTY
    text, std = column.text(value), column.std(row)
    if std is not None:
        text += f" ± {column.text(std)}"
    others = [other for r in rows if (other := column.value(r)) is not None]
    best = bold and column.better is not None and len(set(others)) > 1
    if best and not any(column.better(other, value) for other in others):  # pyright: ignore[reportOptionalCall]
        return f"**{text}**"
    return text


# The report


def terminal(found: dict[str, Any]) -> str:
    """The tables for a terminal."""
    parts = [
        f"{found['size']}, {found['parametrization']} parametrization",
        table(found["models"], quality_columns(found), bold=False)
        + "".join(f"\n{line}" for line in _yardsticks(found)),
        table(found["models"], speed_columns(found), bold=False),
    ]
    return "\n\n" + "\n\n".join(parts + (["\n".join(_failures(found))] if _failures(found) else []))


def _yardsticks(found: dict[str, Any]) -> list[str]:
    known = found["run"].get("yardsticks")
    return [f"For scale, bits per byte on the same text: {scale(known)}."] if known else []


def _failures(found: dict[str, Any]) -> list[str]:
    return [
        f"- {failure['cell']}: {failure['status']}: {failure['reason']}"
        for row in found["models"]
        for failure in row["failures"]
    ]


def markdown(found: dict[str, Any], pictures: dict[str, str]) -> str:
    """report.md; `pictures` are captions by file name."""
    rows, run = found["models"], found["run"]
    several_seeds, several_rates = len(found["seeds"]) > 1, len(found["learning_rates"]) > 1
    lines = [
        f"# {len(rows)} {'model' if len(rows) == 1 else 'models'} at size {found['size']}",
        "",
        _PARAMETRIZATIONS[found["parametrization"]],
        "",
    ]
    if "steps" in run:
        tokens = run["steps"] * run["sequences_per_step"] * run["seq_len"]
        lines += [
            f"Each was trained on the same {tokens:,} tokens of `{run['data']['source']}` in the same order ({run['steps']:,} steps of "
            f"{run['sequences_per_step']} sequences of {run['seq_len']} tokens), with seed{'s' if several_seeds else ''} "
            f"{', '.join(map(str, found['seeds']))}."
            + (
                f" Learning rates {', '.join(f'{rate:g}' for rate in found['learning_rates'])}; each model keeps the one with the least "
                "validation loss."
                if several_rates
                else ""
            )
            + (" Figures are means ± standard deviations over the seeds." if several_seeds else ""),
            "",
        ]
    lines += ["## Quality", "", table(rows, quality_columns(found)), ""]
    lines += [part for line in _yardsticks(found) for part in (line, "")]
    if _has(rows, "loss_by_position"):
        lines += [
            f"Losses are in nats a token. Positions from {run['seq_len']} on are beyond the training length.",
            "",
        ]
    lines += ["## Speed and memory", "", table(rows, speed_columns(found)), ""]
    lines += [
        "Measured, so that it varies from run to run. Training speed leaves evaluations and checkpoints out; prefill is of the training "
        "length; memory is that of a step with AdamW; the state is what one sequence needs to be continued after so many tokens.",
        "",
    ]
    if several_rates:
        rates = [f"{rate:g}" for rate in found["learning_rates"]]
        columns = [
            Column(rate, lambda row, rate=rate: row["mean_loss_by_learning_rate"][rate], lambda v: f"{v:.4f}", None)
            for rate in rates
        ]
        lines += ["## Validation loss by learning rate", "", table(rows, columns), ""]
    if failures := _failures(found):
        lines += ["## What did not finish", "", *failures, ""]
    lines += [line for name, caption in pictures.items() for line in (f"![{caption}]({name})", "", caption, "")]
    if found["notes"]:
        lines += ["## In what the models differ from MesaNet's frame", ""]
        lines += [f"- {model}: {note}" for model, note in found["notes"].items()] + [""]
    lines += ["## How it was measured", "", *circumstances_lines(found), ""]
    return "\n".join(lines)


def circumstances_lines(found: dict[str, Any]) -> list[str]:
    """Command, machine, versions, data and commit, a line each."""
    run = found["run"]
    lines = [f"- command: `{shlex.join(found['command'])}`"]
    if "device" in run:
        lines.append(f"- device: {run['device']}, {run['processes']} process(es)")
    lines.append(f"- machine: {run['machine']}")
    if run.get("settings", {}).get("config_overrides"):
        lines.append(f"- changed in the configurations: `{run['settings']['config_overrides']}`")
    if "versions" in run:
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()))
        lines.append(f"- data: {run['data']['source']}, sha256 {run['data']['sha256'][:16]}")
    if run["commit"]:
        trained_at = run.get("trained_at", [run["commit"]])
        lines.append(
            f"- commit: {run['commit']}"
            + (f"; trained at {', '.join(trained_at)}" if trained_at != [run["commit"]] else "")
        )
    return lines


def write(found: dict[str, Any], folder: Path) -> None:
    """Writes pictures, report.md and report.json into `folder`."""
    pictures = report_plots.draw(found, folder)
    report = folder / "report.md.tmp"
    report.write_text(markdown(found, pictures))
    report.replace(folder / "report.md")
    write_json(folder / "report.json", found)
