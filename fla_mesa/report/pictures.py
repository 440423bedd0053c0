"""Pictures as numbers: panels of lines, which :func:`draw` puts into PNG files and page.py into HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fla_mesa.report.tables import Spread

_STYLE: dict[Any, Any] = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


@dataclass(frozen=True)
class Look:
    """What a line looks like in all pictures, in matplotlib's words; those with a higher `zorder` lie in front."""

    color: str
    marker: str = "o"
    linestyle: str = "-"
    linewidth: float = 1.3
    zorder: int = 2


@dataclass(frozen=True)
class Line:
    """Values at x.

    Attributes:
        half: How far they may lie off: a standard deviation over seeds, or half of an interval.
        names: Of the points, written beside them in PNG files.
    """

    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float] | None = None
    names: Sequence[str] = ()

    @classmethod
    def of(cls, x: Sequence[float], values: Sequence[Spread]) -> Line:
        half = [value.std or 0.0 for value in values] if any(value.std is not None for value in values) else None
        return cls(list(x), [value.mean for value in values], half)

    @property
    def band(self) -> tuple[list[float], list[float]]:
        """Lower and upper edge of the band."""
        low, high = ([y + s * h for y, h in zip(self.y, self.half or [], strict=True)] for s in (-1, 1))
        return low, high


@dataclass(frozen=True)
class Panel:
    """Axes, and lines by their label.

    Attributes:
        log, log_y: Whether x doubles from tick to tick, and whether y is logarithmic.
        points: Whether the values are points with bars rather than lines with bands.
        mark: Where a vertical line stands.
        limits: Of y.
    """

    x: str
    y: str
    lines: Mapping[str, Line]
    title: str = ""
    log: bool = False
    log_y: bool = False
    points: bool = False
    mark: float | None = None
    limits: tuple[float | None, float | None] | None = None


@dataclass(frozen=True)
class Picture:
    """Panels side by side, with a look for each label; `name` is that of its file, without the suffix."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel] = field(repr=False)
    looks: Mapping[str, Look] = field(repr=False)

    def draw(self, folder: Path) -> Path:
        """Draws the picture into a PNG file; returns its path."""
        with matplotlib.rc_context(_STYLE):
            figure = Figure(figsize=(3.4 + 4 * len(self.panels), 3.8), layout="constrained")
            axes = figure.subplots(1, len(self.panels), squeeze=False)[0]
            for on, panel in zip(axes, self.panels, strict=True):
                self._draw(panel, on)
            shown = {label: line for on in axes for line, label in zip(*on.get_legend_handles_labels(), strict=True)}
            figure.legend(list(shown.values()), list(shown), loc="outside right upper", frameon=False)
            path = folder / f"{self.name}.png"
            unfinished = path.with_name(f"{path.name}.tmp")
            figure.savefig(unfinished, dpi=200, format="png")
            return unfinished.replace(path)

    def _draw(self, panel: Panel, axes: Axes) -> None:
        for label, line in panel.lines.items():
            look: dict[str, Any] = {"label": label, **vars(self.looks[label])}
            if panel.points:
                axes.errorbar(line.x, line.y, line.half, capsize=2, **look | {"linestyle": "none", "markersize": 6})
                continue
            axes.plot(line.x, line.y, markersize=3.5, **look)
            if line.half is not None:
                axes.fill_between(line.x, *line.band, color=look["color"], alpha=0.15, linewidth=0)
            for name, x, y in zip(line.names, line.x, line.y, strict=False):  # upright, since points lie close
                axes.annotate(name, (x, y), fontsize=6, xytext=(-3, 5), textcoords="offset points", rotation=90)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set(xlabel=panel.x, ylabel=panel.y)
        axes.set_title(panel.title, fontsize=8)
        if panel.mark is not None:
            axes.axvline(panel.mark, color="0.4", linestyle="--", linewidth=1)
        if panel.log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        if panel.log_y:
            axes.set_yscale("log")
        if panel.limits is not None:  # else matplotlib chooses them, by the scale
            axes.set_ylim(*panel.limits)
        if panel.points:
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
            axes.margins(0.12)
            axes.tick_params(axis="x", labelrotation=20)
