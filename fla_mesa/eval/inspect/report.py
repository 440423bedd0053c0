"""The report on a checkpoint's Mesa layers: a table, curves by position, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from fla_mesa.eval.inspect.measure import LayerReport
from fla_mesa.markdown import EMPTY
from fla_mesa.report import files
from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.sections import Section, listed
from fla_mesa.report.tables import Cell, Table, percent

_SAID = (
    "Condition is the condition number of H + diag(lambda). The half-life is the number of positions after which half of a key is "
    "forgotten at the median gate. Not converged is the share of positions that end above the layer's tolerance. The cosine is that of "
    "the plain read G'q and the solved read G'(H + diag(lambda))^-1 q; at 1, solving changes only the length of the output, which the "
    "norm after it removes."
)

_SHARES = range(0, 101, 5)  # percentiles at which the spread of a gate is drawn


class Head(NamedTuple):
    """One head of a :class:`LayerReport`, with its arrays but for their axis of heads; `name` is "layer.head"."""

    name: str
    gamma: np.ndarray
    beta: np.ndarray
    iterations: np.ndarray
    condition: np.ndarray
    cosine: np.ndarray
    unsolved: float
    lamb: np.ndarray


def heads_of(layers: Sequence[LayerReport]) -> list[Head]:
    """All heads, first to last."""
    return [
        Head._make([f"{i}.{h}", *(getattr(layer, name)[..., h] for name in Head._fields[1:-1]), layer.lamb[h]])
        for i, layer in enumerate(layers)
        for h in range(len(layer.lamb))
    ]


def save(layers: Sequence[LayerReport], facts: Mapping[str, object], folder: Path) -> list[Path]:
    """Writes inspect.html, inspect.md, inspect.json and the pictures; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {name: value for name, value in facts.items() if value is not None}
    content = {"facts": known, "layers": [_curves(layer) for layer in layers]}
    pictures = Section("Pictures", _pictures(heads_of(layers), layers[0].spots))
    return files.write(folder, "inspect", [in_words(layers, facts), pictures], content)


def in_words(layers: Sequence[LayerReport], facts: Mapping[str, object]) -> Section:
    """A table with one row a head."""
    known = listed({name: value for name, value in facts.items() if name != "checkpoint"})
    rows = [_figures(head) for head in heads_of(layers)]
    table = Table([heading for heading, _ in rows[0]], [[Cell(text) for _, text in row] for row in rows])
    return Section(f"Inside the Mesa layers of {facts['checkpoint']}", [known, table, _SAID])


def _figures(head: Head) -> list[tuple[str, str]]:
    """Heading and text of each column."""
    half_life = -1 / np.log2(min(np.median(head.gamma), 1 - 1e-12))
    return [
        ("layer.head", head.name),
        ("gamma, median (5-95 %)", _spread(head.gamma, ".4f")),
        ("half-life, tokens", f"{half_life:.1f}"),
        ("beta, median (5-95 %)", _spread(head.beta, ".3f")),
        ("lambda, median (least-most)", f"{np.median(head.lamb):.3f} ({head.lamb.min():.3f}-{head.lamb.max():.3f})"),
        ("condition, median", f"{np.median(head.condition):.1f}"),
        ("most", f"{head.condition.max():.1f}"),
        ("iterations, mean", f"{head.iterations.mean():.2f}"),
        ("most", f"{head.iterations.max()}"),
        ("not converged", EMPTY if np.isnan(head.unsolved) else percent(head.unsolved)),
        ("cosine, mean", f"{np.nanmean(head.cosine):.4f}"),
    ]


def _spread(values: np.ndarray, form: str) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def _curves(layer: LayerReport) -> dict[str, object]:
    """Means over sequences, by head and position."""
    return {
        "positions": layer.spots.tolist(),
        "lambda": layer.lamb.tolist(),
        "not_converged": _none_for_nan(layer.unsolved),
        **{name: getattr(layer, name)[:, layer.spots].mean(0).T.tolist() for name in ("gamma", "beta", "iterations")},
        "condition": layer.condition.mean(0).T.tolist(),
        "cosine": _none_for_nan(_mean_known(layer.cosine).T),
    }


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the sequences ``[B, ...] -> [...]`` in which there is a value; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def _none_for_nan(values: np.ndarray) -> list[object]:
    """Nested lists with None for NaN, which JSON has no word for."""
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()


def _pictures(heads: Sequence[Head], spots: np.ndarray) -> list[Picture]:
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(heads)))
    looks = {head.name: Look(to_hex(color), marker="") for head, color in zip(heads, colors, strict=True)}
    at = (spots + 1).tolist()

    def along(name: str, values: dict[str, np.ndarray], *, log_y: bool = False) -> Panel:
        lines = {head: Line(at, _mean_known(of).tolist()) for head, of in values.items()}
        return Panel("position", name, lines, log=True, log_y=log_y)

    def spread(name: str) -> Panel:
        lines = {head.name: Line(_SHARES, np.percentile(getattr(head, name), _SHARES).tolist()) for head in heads}
        return Panel("percent of the positions that are below", name, lines, limits=(0, 1))

    gates = [spread("gamma"), spread("beta")]
    gates += [along(name, {head.name: getattr(head, name)[:, spots] for head in heads}) for name in ("gamma", "beta")]
    ridges = {head.name: Line(range(len(head.lamb)), np.sort(head.lamb).tolist()) for head in heads}
    ridge = Panel("key dimension, sorted within each head", "lambda", ridges, limits=(0, None))
    panels = [
        along("condition number of H + diag(lambda)", {head.name: head.condition for head in heads}, log_y=True),
        along("iterations of the solver", {head.name: head.iterations[:, spots] for head in heads}),
        along("cosine of the plain and the solved read", {head.name: head.cosine for head in heads}),
    ]
    said = "Left: the values of the gates over all positions, from least to most. Right: by position, means over the sequences."
    return [
        Picture("gates", "gates", said, gates, looks),
        Picture("lambda", "lambda", "The ridge of each head.", [ridge], looks),
        Picture("positions", "By position", "Means over the sequences.", panels, looks),
    ]
