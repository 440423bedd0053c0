"""The report on a checkpoint's Mesa layers: a table in Markdown, curves in JSON, three pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fla_mesa.eval.inspect.measure import LayerReport, log_spaced

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
    data.write_text(json.dumps({"facts": facts, "layers": [_curves(layer) for layer in layers]}, indent=1) + "\n")
    return [report, data, *_draw(layers, folder)]


def markdown(layers: list[LayerReport], facts: dict[str, Any]) -> str:
    """One row a head."""
    lines = [f"# Inside the Mesa layers of {facts['checkpoint']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "checkpoint"]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "| --- |" + " ---: |" * (len(COLUMNS) - 1)]
    for number, layer in enumerate(layers):
        for head in range(layer.lamb.shape[0]):
            lines.append("| " + " | ".join([f"{number}.{head}", *_row(layer, head)]) + " |")
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
        f"{np.log(0.5) / np.log(np.median(gamma)):.1f}",
        _spread(beta, ".3f"),
        f"{np.median(lamb):.3f} ({lamb.min():.3f}-{lamb.max():.3f})",
        f"{np.median(condition):.1f}",
        f"{condition.max():.1f}",
        f"{iterations.mean():.2f}",
        f"{iterations.max()}",
        f"{100 * layer.unsolved[head]:.2f} %",
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
        "not_converged": layer.unsolved.tolist(),
        **{name: getattr(layer, name)[:, spots].mean(0).T.tolist() for name in ("gamma", "beta", "iterations")},
        **{name: np.nanmean(getattr(layer, name), axis=0).T.tolist() for name in ("condition", "cosine")},
    }


def _draw(layers: list[LayerReport], folder: Path) -> list[Path]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [f"{i}.{head}" for i, layer in enumerate(layers) for head in range(layer.lamb.shape[0])]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.95, len(names)))
    paths = []

    def finish(figure: Any, name: str) -> None:
        figure.tight_layout()
        figure.savefig(folder / name, dpi=150)
        plt.close(figure)
        paths.append(folder / name)

    def heads(layer_values: str) -> list[np.ndarray]:
        """Of each head ``[..., its values]``."""
        return [getattr(layer, layer_values)[..., h] for layer in layers for h in range(layer.lamb.shape[0])]

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
    for axis, name in zip(axes, ("gamma", "beta"), strict=True):
        axis.boxplot([values.ravel() for values in heads(name)], showfliers=False, whis=(5, 95))
        axis.set_xticks(range(1, len(names) + 1), names, rotation=60, fontsize=7)
        axis.set(title=f"{name}: median, quartiles, 5 to 95 %", xlabel="layer.head", ylim=(0, 1))
    finish(figure, "gates.png")

    figure, axis = plt.subplots(figsize=(5, 3.4))
    for color, name, lamb in zip(colors, names, (row for layer in layers for row in layer.lamb), strict=True):
        axis.plot(np.sort(lamb), color=color, label=name)
    axis.set(title="lambda, sorted within each head", xlabel="key dimension, sorted", ylabel="lambda", ylim=(0, None))
    axis.legend(fontsize=6, ncols=2, title="layer.head", title_fontsize=6)
    finish(figure, "lambda.png")

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6))
    positions = layers[0].spots + 1
    shown = (
        ("condition", "condition number of H + diag(lambda)", "log"),
        ("iterations", "iterations of the solver", "linear"),
        ("cosine", "cosine of the plain and the solved read", "linear"),
    )
    for axis, (name, title, scale) in zip(axes, shown, strict=True):
        for color, label, values in zip(colors, names, heads(name), strict=True):
            curve = np.nanmean(values if values.shape[1] == len(positions) else values[:, layers[0].spots], axis=0)
            axis.plot(positions, curve, color=color, label=label, linewidth=1.2)
        axis.set(title=title, xlabel="position", xscale="log", yscale=scale)
    axes[0].legend(fontsize=6, ncols=2, title="layer.head", title_fontsize=6)
    finish(figure, "positions.png")
    return paths
