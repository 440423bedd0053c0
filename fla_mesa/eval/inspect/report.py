"""The report on a checkpoint's Mesa layers: a table in Markdown, curves in JSON, three pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from fla_mesa.eval.inspect.measure import LayerReport, log_spaced
from fla_mesa.json_files import write_json
from fla_mesa.markdown import EMPTY, table

COLUMNS = (
    "layer.head",
    "gamma, median (5-95 %)",
    "half-life, tokens",
    "beta, median (5-95 %)",
    "lambda, median (least-most)",
    "condition, median",
    "most",
    "iterations, mean",
    "most",
    "not converged",
    "cosine, mean",
)


def save(layers: list[LayerReport], facts: dict[str, Any], folder: Path) -> list[Path]:
    """Write inspect.md, inspect.json, gates.png, lambda.png and positions.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    report, data = folder / "inspect.md", folder / "inspect.json"
    report.write_text(markdown(layers, facts), encoding="utf-8")
    write_json(data, {"facts": facts, "layers": [_curves(layer) for layer in layers]})
    return [report, data, *_draw(layers, folder)]


def markdown(layers: list[LayerReport], facts: dict[str, Any]) -> str:
    """One row a head."""
    lines = [f"# Inside the Mesa layers of {facts['checkpoint']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "checkpoint"]
    heads = [(number, head) for number, layer in enumerate(layers) for head in range(layer.lamb.shape[0])]
    lines += ["", table(COLUMNS, [[f"{number}.{head}", *_row(layers[number], head)] for number, head in heads])]
    lines += [
        "",
        "Condition: of H + diag(lambda). Half-life: positions after which half of a key is forgotten at the median gate. Not converged: "
        "share of positions that end above the layer's tolerance. Cosine: between the plain read G'q and the solved one, "
        "G'(H + diag(lambda))^-1 q; at 1 the solve changes the length of the output only, which the norm behind it takes away.",
        "",
    ]
    return "\n".join(lines)


def _row(layer: LayerReport, head: int) -> list[str]:
    gamma, beta, lamb = layer.gamma[..., head], layer.beta[..., head], layer.lamb[head]
    condition, iterations = layer.condition[..., head], layer.iterations[..., head]
    return [
        _spread(gamma, ".4f"),
        f"{-1 / np.log2(min(np.median(gamma), 1 - 1e-12)):.1f}",
        _spread(beta, ".3f"),
        f"{np.median(lamb):.3f} ({lamb.min():.3f}-{lamb.max():.3f})",
        f"{np.median(condition):.1f}",
        f"{condition.max():.1f}",
        f"{iterations.mean():.2f}",
        f"{iterations.max()}",
        EMPTY if np.isnan(layer.unsolved[head]) else f"{100 * layer.unsolved[head]:.2f} %",
        f"{np.nanmean(layer.cosine[..., head]):.4f}",
    ]


def _spread(values: np.ndarray, form: str) -> str:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def _curves(layer: LayerReport) -> dict[str, Any]:
    """Means over sequences, by head and position."""
    spots = log_spaced(layer.gamma.shape[1])
    return {
        "positions": spots.tolist(),
        "lambda": layer.lamb.tolist(),
        "not_converged": _listed(layer.unsolved),
        **{name: getattr(layer, name)[:, spots].mean(0).T.tolist() for name in ("gamma", "beta", "iterations")},
        "condition": layer.condition.mean(0).T.tolist(),
        "cosine": _listed(_mean_known(layer.cosine).T),
    }


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over the sequences ``[B, ...] -> [...]`` in which there is a value; NaN where there is none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(0) / known.sum(0)


def _listed(values: np.ndarray) -> list[Any]:
    """Nested lists with None for NaN, which JSON has no word for."""
    listed = values.astype(object)
    listed[np.isnan(values)] = None
    return listed.tolist()


def _draw(layers: list[LayerReport], folder: Path) -> list[Path]:
    names = [f"{i}.{head}" for i, layer in enumerate(layers) for head in range(layer.lamb.shape[0])]
    colors = colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    positions = layers[0].spots

    def heads(name: str) -> list[np.ndarray]:
        """Of each head, an attribute of :class:`LayerReport` whose last axis is the heads."""
        return [getattr(layer, name)[..., h] for layer in layers for h in range(layer.lamb.shape[0])]

    gates = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, name in zip(gates.subplots(1, 2), ("gamma", "beta"), strict=True):
        axis.boxplot([values.ravel() for values in heads(name)], showfliers=False, whis=(5, 95))
        axis.set_xticks(range(1, len(names) + 1), names, rotation=60, fontsize=7)
        axis.set(title=f"{name}: median, quartiles, 5 to 95 %", xlabel="layer.head", ylim=(0, 1))

    ridge = Figure(figsize=(5, 3.4), layout="constrained")
    axis = ridge.subplots()
    for color, name, lamb in zip(colors, names, (row for layer in layers for row in layer.lamb), strict=True):
        axis.plot(np.sort(lamb), color=color, label=name)
    axis.set(title="lambda, sorted within each head", xlabel="key dimension, sorted", ylabel="lambda", ylim=(0, None))
    axis.legend(fontsize=6, ncols=2, title="layer.head", title_fontsize=6)

    along = Figure(figsize=(13, 3.6), layout="constrained")
    axes = along.subplots(1, 3)
    curves = {
        "condition number of H + diag(lambda)": heads("condition"),
        "iterations of the solver": [values[:, positions] for values in heads("iterations")],
        "cosine of the plain and the solved read": heads("cosine"),
    }
    for axis, (title, values) in zip(axes, curves.items(), strict=True):
        for color, name, one in zip(colors, names, values, strict=True):
            axis.plot(positions + 1, _mean_known(one), color=color, label=name, linewidth=1.2)
        axis.set(title=title, xlabel="position", xscale="log")
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=6, ncols=2, title="layer.head", title_fontsize=6)

    paths = []
    for name, figure in (("gates", gates), ("lambda", ridge), ("positions", along)):
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
    return paths
