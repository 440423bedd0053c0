"""The loss curve as a picture."""

from pathlib import Path

from matplotlib.figure import Figure


def loss_curve(curves: dict[str, list[list[float]]], title: str, path: Path) -> None:
    """Draws `curves` (name to `[[step, nats a token], ...]`) into the PNG file `path`."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    styles = {"train": {"linewidth": 1}, "validation": {"linewidth": 1.5, "marker": "o", "markersize": 3}}
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **styles.get(name, {}))
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(path, dpi=150)
