"""The pictures of a comparison as PNG files, and what models look like in all pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fla_mesa.eval.compare.pictures import Panel, Picture
from fla_mesa.models import zoo

# Colours that stay apart for colour-blind readers (Okabe and Ito), then darker ones; a model has one colour in all pictures.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#8C564B")
_COLOURS += ("#6A3D9A", "#B2DF8A", "#3B3B98")
_MARKERS = "osD^vPX*<>hp"
_DASHES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def look(label: str, labels: Sequence[str]) -> dict[str, Any]:
    """Colour and marker by the architecture's place in the zoo, so that they are the same in every comparison; MesaNet stands out.

    What is no model but what they are held against is grey and dashed.

    Args:
        label: Of a model, "mesanet" or "mesanet@max_cg_step_training=5".
        labels: Of all models of the picture: those of one architecture differ in their dashes and markers.
    """
    architecture = label.partition("@")[0]
    known = list(dict.fromkeys([*zoo.names("released"), *zoo.names("matched")]))
    if architecture not in known:
        return {"color": "#333333", "marker": "o", "linestyle": "--", "linewidth": 1.0, "zorder": 4}
    place = known.index(architecture)
    turn = [other for other in labels if other.partition("@")[0] == architecture].index(label)
    mesa = architecture == "mesanet"
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[(place + place // len(_COLOURS) + turn) % len(_MARKERS)],
        "linestyle": _DASHES[turn % len(_DASHES)],
        "linewidth": 2.2 if mesa else 1.3,
        "zorder": 3 if mesa else 2,
    }


NAMES = ("loss_curves", "loss_by_position", "loss_difference", "error_by_position", "quality_speed")


def draw(pictures: Sequence[Picture], folder: Path) -> None:
    """Draws them into PNG files in `folder`; one of an earlier report that is not drawn again is removed."""
    for name in set(NAMES) - {picture.name for picture in pictures}:
        (folder / f"{name}.png").unlink(missing_ok=True)
    for picture in pictures:
        draw_panels(picture.panels, folder / f"{picture.name}.png")


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Side by side, into a PNG file."""
    labels = list(dict.fromkeys(label for panel in panels for label in panel.lines))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(3.4 + 4 * len(panels), 3.8), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(panel, axes, labels)
        shown = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False)
        unfinished = path.with_name(f"{path.name}.tmp")
        figure.savefig(unfinished, dpi=200, format="png")
        unfinished.replace(path)


def _draw(panel: Panel, axes: Axes, labels: Sequence[str]) -> None:
    for label, line in panel.lines.items():
        style = look(label, labels)
        if panel.points:
            style |= {"linestyle": "none", "markersize": 6}
            axes.errorbar(line.x, line.y, yerr=line.half, capsize=2, label=label, **style)
            continue
        axes.plot(line.x, line.y, label=label, markersize=3.5, **style)
        if line.half is not None:
            low, high = ([y + sign * half for y, half in zip(line.y, line.half, strict=True)] for sign in (-1, 1))
            axes.fill_between(line.x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set(xlabel=panel.x, ylabel=panel.y, ylim=panel.limits)
    axes.set_title(panel.title, fontsize=8)
    if panel.mark is not None:
        axes.axvline(panel.mark, color="0.4", linestyle="--", linewidth=1)
    if panel.log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if panel.points:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.margins(0.12)
        axes.tick_params(axis="x", labelrotation=20)
