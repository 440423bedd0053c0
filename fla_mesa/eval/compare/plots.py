"""The pictures of a comparison."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fla_mesa.eval.compare.columns import COLUMNS, Spread
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.results import ModelResult
from fla_mesa.eval.measure.trained import Trained
from fla_mesa.models import zoo

# Colours that stay apart for colour-blind readers (Okabe and Ito), then darker ones; a model has one colour in all pictures.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#8C564B")
_COLOURS += ("#6A3D9A", "#B2DF8A", "#1B6F5C")
_MARKERS = "osD^vPX*<>hp"
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def look(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """Colour and marker by the architecture's place in the zoo, so that they are the same in every comparison; MesaNet stands out.

    Args:
        label: Of a model, "mesanet" or "mesanet@max_cg_step_training=5".
        labels: Of all models of the picture: those of one architecture differ in their dashes and markers.
    """
    architecture = label.partition("@")[0]
    place = list(dict.fromkeys([*zoo.names("released"), *zoo.names("matched")])).index(architecture)
    turn = [other for other in labels if other.partition("@")[0] == architecture].index(label)
    mesa = architecture == "mesanet"
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[(place + place // len(_COLOURS) + turn) % len(_MARKERS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "linewidth": 2.2 if mesa else 1.3,
        "zorder": 3 if mesa else 2,
    }


def judged_by(models: Sequence[ModelResult]) -> tuple[str, str, str]:
    """What models are judged by, and its column and key: of text bits per byte, of a suite its own score."""
    for label, name, key in (("validation bits per byte", "bits_per_byte", ""), ("test accuracy", "test", "accuracy")):
        if models and all(model.spread(name, key) is not None for model in models):
            return label, name, key
    return "validation accuracy", "accuracy", ""


def draw(models: Sequence[ModelResult], seq_len: int, folder: Path, baseline: str | None = None) -> dict[str, str]:
    """Draws what there is data for into PNG files in `folder`; returns a caption by file name.

    Args:
        models: Those that finished.
        seq_len: That they were trained with.
        folder: Where the pictures go; one of an earlier report that is not drawn again is removed.
        baseline: The model that losses by position are held against, by its label.
    """
    shaded = "; shaded: one standard deviation over the seeds" if any(len(model.runs) > 1 for model in models) else ""
    pictures = {
        "loss_curves.png": (_loss_curves, f"Validation loss in training{shaded}."),
        "loss_by_position.png": (
            _loss_by_position,
            "Loss by position in the context. The dashed line is the length of the training sequences.",
        ),
        "loss_difference.png": (
            lambda models, seq_len: _loss_difference(models, seq_len, baseline),
            f"Left: loss by position less that of {baseline}. Right: the same for the mean of all losses up to a position. Shaded: 95 % "
            "intervals over pairs of runs of one seed.",
        ),
        "quality_speed.png": (_quality_against_speed, "Quality against speed in training and in decoding."),
    }
    drawn = {}
    with matplotlib.rc_context(_STYLE):
        for name, (plot, caption) in pictures.items():
            figure = plot(models, seq_len)
            if figure is None:
                (folder / name).unlink(missing_ok=True)
                continue
            _save(figure, folder / name)
            drawn[name] = caption
    return drawn


def _save(figure: Figure, path: Path) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    figure.savefig(unfinished, dpi=200, format="png")
    unfinished.replace(path)


def _figure(width: float, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 3.8), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.25, linewidth=0.6)
    return figure, axes


def draw_quality_by_width(found: Mapping[tuple[str, int], Mapping[str, Spread]], label: str, path: Path) -> None:
    """Quality against model width, a panel for each task.

    Args:
        found: By task and width: the quality by model.
        label: What the quality is.
        path: Where the picture goes.
    """
    tasks = list(dict.fromkeys(task for task, _ in found))
    models = list(dict.fromkeys(model for of in found.values() for model in of))
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure(2.4 + 4.2 * len(tasks), len(tasks))
        for one, task in zip(axes, tasks, strict=True):
            widths = sorted(width for other, width in found if other == task)
            for model in models:
                points = {width: found[task, width][model] for width in widths if model in found[task, width]}
                means, stds = [p.mean for p in points.values()], [p.std or 0.0 for p in points.values()]
                one.errorbar(
                    list(points), means, yerr=stds, label=model, markersize=5, capsize=2, **look(model, models)
                )
            one.set_xscale("log", base=2)
            one.set_xticks(widths, [str(width) for width in widths])
            one.set(title=task, xlabel="model width", ylabel=label)
            one.title.set_fontsize(8)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        _save(figure, path)


def _loss_curves(models: Sequence[ModelResult], seq_len: int) -> Figure | None:
    curves = {model.label: [metrics.history["validation"] for metrics in model.metrics] for model in models}
    curves = {label: of for label, of in curves.items() if all(of)}
    if not curves:
        return None
    figure, (axes,) = _figure(7.4)
    latest = []
    for label, of_seeds in curves.items():
        # A run that was interrupted may have evaluated at more steps than the others: those that all seeds have.
        by_step = [{step: loss for step, loss in curve} for curve in of_seeds]
        steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
        if not steps:
            continue
        values = [Spread.of([curve[step] for curve in by_step]) for step in steps]
        means, style = [value.mean for value in values], look(label, list(curves))
        axes.plot(steps, means, label=label, markersize=3.5, **style)
        if len(by_step) > 1:
            low, high = ([v.mean + sign * (v.std or 0.0) for v in values] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)
        latest += means[len(means) // 3 :]
    if max(len(curve) for of_seeds in curves.values() for curve in of_seeds) > 5:
        # The first third falls so far that nothing could be told apart later: the picture is of the rest.
        margin = 0.08 * (max(latest) - min(latest)) or 0.1
        axes.set_ylim(min(latest) - margin, max(latest) + 4 * margin)
    axes.set(xlabel="step", ylabel="validation loss (nats a token)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _loss_by_position(models: Sequence[ModelResult], seq_len: int) -> Figure | None:
    curves = {model.label: curve for model in models if (curve := model.curve("loss_by_position")) is not None}
    if not curves:
        return None
    figure, (axes,) = _figure(7.4)
    for label, curve in curves.items():
        axes.plot(*_windows(curve), label=label, markersize=3.5, **look(label, list(curves)))
    axes.axvline(seq_len, color="0.4", linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set(xlabel="position in the context", ylabel="loss (nats a token)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _loss_difference(models: Sequence[ModelResult], seq_len: int, baseline: str | None) -> Figure | None:
    """By position, and of the mean so far; one line a model, over pairs of runs."""
    curves = {model.label: [_curve(trained) for trained in model.trained] for model in models}
    curves = {label: of for label, of in curves.items() if of and all(of)}
    if baseline not in curves or len(curves) < 2:
        return None
    figure, axes = _figure(10.0, 2)
    for one, so_far in zip(axes, (False, True), strict=True):
        for label, of in curves.items():
            if len(of) != len(curves[baseline]):
                continue
            views = [
                [_so_far(curve) if so_far else _windows(curve) for curve in each] for each in (of, curves[baseline])
            ]
            at, pairs = views[0][0][0], zip(*([losses for _, losses in view] for view in views), strict=True)
            by_seed = list(pairs)
            found = [Difference.of([a[i] for a, _ in by_seed], [b[i] for _, b in by_seed]) for i in range(len(at))]
            style = look(label, list(curves))
            one.plot(at, [d.mean for d in found], label=label, markersize=3.5, **style)
            if found[0].half is not None and label != baseline:
                low, high = ([d.mean + sign * (d.half or 0.0) for d in found] for sign in (-1, 1))
                one.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0)
        one.axvline(seq_len, color="0.4", linestyle="--", linewidth=1)
        one.set_xscale("log", base=2)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        what = "mean so far" if so_far else "loss"
        one.set(xlabel="position in the context", ylabel=f"{what} less {baseline}'s (nats a token)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def _curve(run: Trained) -> list[float]:
    found = COLUMNS["loss_by_position"].of(run)
    return found if isinstance(found, list) else []


def _so_far(curve: list[float]) -> tuple[list[float], list[float]]:
    """The mean of all losses up to a position, at the ends of the windows of :func:`_windows`."""
    sums = list(itertools.accumulate(curve))
    ends = [round(2 ** (k / 2)) for k in range(6, 2 * len(curve).bit_length() + 1)]
    ends = [end for end in ends if end < len(curve)] + [len(curve)]
    return [float(end) for end in ends], [sums[end - 1] / end for end in ends]


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


def _quality_against_speed(models: Sequence[ModelResult], seq_len: int) -> Figure | None:
    panels = []
    for column, key, name in (
        ("training_tokens_per_second", "", "training, tokens a second"),
        ("decode_tokens_per_second", "8", "decoding, tokens a second (batch 8)"),
    ):
        speeds = {model.label: value.mean for model in models if (value := model.spread(column, key)) is not None}
        panels += [(speeds, name)] if speeds else []
    if not panels or len(panels[0][0]) < 2:  # there is nothing to compare
        return None
    figure, axes = _figure(2.0 + 4.0 * len(panels), len(panels))
    label, *quality = judged_by(models)
    labels = [model.label for model in models]
    for one, (speeds, name) in zip(axes, panels, strict=True):
        for model in models:
            value = model.spread(*quality)
            if model.label not in speeds or value is None:
                continue
            style = look(model.label, labels) | {"linestyle": "none", "markersize": 6}
            at = speeds[model.label]
            one.errorbar(at, value.mean, yerr=value.std, capsize=2, label=model.label, **style)
        one.set(xlabel=name, ylabel=label)
        one.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        one.margins(0.12)
        one.tick_params(axis="x", labelrotation=20)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure
