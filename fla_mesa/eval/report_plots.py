"""The pictures of a comparison."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fla_mesa.models import zoo

Row = dict[str, Any]

# Colours that stay apart for colour-blind readers (Okabe and Ito), then darker ones; a model has one colour in all pictures.
_COLOURS = (
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#7F7F7F",
    "#8C564B",
    "#6A3D9A",
    "#B2DF8A",
    "#1B6F5C",
)
_MARKERS = "osD^vPX*<>hp"
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def _look(model: str) -> dict[str, Any]:
    """Colour and marker by the model's place in the zoo, so that they are the same in every comparison; MesaNet stands out."""
    place = list(zoo.RELEASED).index(model)
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linewidth": 2.2 if model == "mesanet" else 1.3,
        "zorder": 3 if model == "mesanet" else 2,
    }


def quality(rows: list[Row]) -> tuple[str, dict[str, dict[str, Any]]]:
    """What models are judged by, and its mean and standard deviation by model: of text bits per byte, of a suite its own score."""
    if all(row["bits_per_byte"] is not None for row in rows):
        return "validation bits per byte", {row["model"]: row["bits_per_byte"] for row in rows}
    if all("test" in row for row in rows):
        return "test accuracy", {row["model"]: row["test"]["accuracy"] for row in rows}
    return "validation accuracy", {row["model"]: row["accuracy"] for row in rows}


def draw(found: dict[str, Any], folder: Path) -> dict[str, str]:
    """Draws what there is data for into PNG files in `folder`; returns a caption by file name."""
    rows = [row for row in found["models"] if row["seeds"]]
    pictures = {
        "loss_curves.png": (
            _loss_curves,
            "Validation loss in training"
            + ("; shaded: one standard deviation over the seeds." if len(found["seeds"]) > 1 else "."),
        ),
        "loss_by_position.png": (
            _loss_by_position,
            "Loss by position in the context. The dashed line is the length of the training sequences.",
        ),
        "quality_speed.png": (_quality_against_speed, "Quality against speed in training and in decoding."),
    }
    drawn = {}
    with matplotlib.rc_context(_STYLE):
        for name, (plot, caption) in pictures.items():
            figure = plot(rows, found)
            if figure is None:
                (folder / name).unlink(missing_ok=True)  # of an earlier report
                continue
            _save(figure, folder / name)
            drawn[name] = caption
    return drawn


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    figure.savefig(unfinished, dpi=200, format="png")
    unfinished.replace(path)


def draw_quality_by_width(found: dict[tuple[str, int], dict[str, dict[str, Any]]], label: str, path: Path) -> None:
    """Quality against model width, a panel for each task.

    Args:
        found: By task and width: mean and standard deviation by model.
        label: What the quality is.
        path: Where the picture goes.
    """
    tasks = list(dict.fromkeys(task for task, _ in found))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(2.4 + 4.2 * len(tasks), len(tasks))
        for one, task in zip(axes, tasks, strict=True):
            widths = sorted(width for other, width in found if other == task)
            for model in dict.fromkeys(model for width in widths for model in found[task, width]):
                points = [(width, found[task, width][model]) for width in widths if model in found[task, width]]
                one.errorbar(
                    [width for width, _ in points],
                    [value["mean"] for _, value in points],
                    yerr=[value["std"] or 0.0 for _, value in points],
                    label=model,
                    markersize=5,
                    capsize=2,
                    **_look(model),
                )
            one.set_xscale("log", base=2)
            one.set_xticks(widths, [str(width) for width in widths])
            one.set(title=task, xlabel="model width", ylabel=label)
            one.title.set_fontsize(8)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        _save(figure, path)


def _figure(width: float, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def _loss_curves(rows: list[Row], found: dict[str, Any]) -> Figure | None:
    rows = [row for row in rows if all(row["validation_curves"])]
    if not rows:
        return None
    figure, (axes,) = _figure(7.4)
    latest = []
    for row in rows:
        # A run that was interrupted may have evaluated at more steps than the others: those that all seeds have.
        by_step = [dict(map(tuple, curve)) for curve in row["validation_curves"]]
        steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
        if not steps:
            continue
        values = [[curve[step] for curve in by_step] for step in steps]
        means = [statistics.fmean(v) for v in values]
        look = _look(row["model"])
        axes.plot(steps, means, label=row["model"], markersize=3.5, **look)
        if len(by_step) > 1:
            stds = [statistics.stdev(v) for v in values]
            low, high = ([m + sign * s for m, s in zip(means, stds, strict=True)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=look["color"], alpha=0.15, linewidth=0)
        latest += means[len(means) // 3 :]
    if max(len(curve) for row in rows for curve in row["validation_curves"]) > 5:
        # The first third falls so far that nothing could be told apart later: the picture is of the rest.
        margin = 0.08 * (max(latest) - min(latest)) or 0.1
        axes.set_ylim(min(latest) - margin, max(latest) + 4 * margin)
    axes.set(xlabel="step", ylabel="validation loss (nats a token)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _loss_by_position(rows: list[Row], found: dict[str, Any]) -> Figure | None:
    rows = [row for row in rows if "loss_by_position" in row]
    if not rows:
        return None
    length = found["run"]["seq_len"]
    figure, (axes,) = _figure(7.4)
    for row in rows:
        at, losses = _windows(row["loss_by_position"])
        axes.plot(at, losses, label=row["model"], markersize=3.5, **_look(row["model"]))
    axes.axvline(length, color="0.4", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="position in the context", ylabel="loss (nats a token)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _windows(curve: list[float], a_doubling: int = 2) -> tuple[list[float], list[float]]:
    """Means over windows of positions, so many for each doubling from 8 on: their geometric middles and the losses."""
    edges, edge = [8], 8.0
    while edges[-1] <= len(curve):
        edge *= 2 ** (1 / a_doubling)
        edges.append(min(round(edge), len(curve) + 1))
        if edges[-1] == len(curve) + 1:
            break
    pairs = [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a]  # noqa: RUF007
    return [math.sqrt(a * b) for a, b in pairs], [statistics.fmean(curve[a - 1 : b - 1]) for a, b in pairs]


def _quality_against_speed(rows: list[Row], found: dict[str, Any]) -> Figure | None:
    rows = [row for row in rows if row["training_tokens_per_second"] is not None]
    if len(rows) < 2:  # there is nothing to compare
        return None
    decoded = [row for row in rows if "decode_tokens_per_second" in row]
    figure, axes = _figure(10.0 if decoded else 6.0, 2 if decoded else 1)
    label, values = quality(rows)
    batch = max(rows[0].get("decode_tokens_per_second", {"1": 0}), key=int)
    panels = [(rows, lambda row: row["training_tokens_per_second"], "training, tokens a second")]
    if decoded:
        panels.append(
            (decoded, lambda row: row["decode_tokens_per_second"][batch], f"decoding, tokens a second (batch {batch})")
        )
    for one, (shown, speed, name) in zip(axes, panels, strict=True):
        for row in shown:
            look = _look(row["model"])
            one.errorbar(
                speed(row),
                values[row["model"]]["mean"],
                yerr=values[row["model"]]["std"],
                color=look["color"],
                marker=look["marker"],
                markersize=8 if row["model"] == "mesanet" else 6,
                linestyle="none",
                capsize=2,
                label=row["model"],
                zorder=look["zorder"],
            )
        one.set(xlabel=name, ylabel=label)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        one.margins(0.12)
        one.tick_params(axis="x", labelrotation=20)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
