"""The sweep's report: tables in Markdown, everything in JSON, two pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fla_mesa.eval.measure.quality import position_ranges, range_name
from fla_mesa.eval.sweep.measured import Measured
from fla_mesa.json_files import write_json
from fla_mesa.markdown import EMPTY, table

WITHIN = 1e-3  # of the best loss: as good as the best


def cheapest(results: list[Measured]) -> Measured:
    """The setting that spends the fewest iterations among those within 0.1 % of the best loss; the exact solve is no candidate."""
    best = min(measured.loss for measured in results)
    candidates = [m for m in results if m.setting.kind != "exact" and m.loss <= best * (1 + WITHIN)]
    if not candidates:  # only the exact solve is that good
        candidates = [m for m in results if m.setting.kind != "exact"]
    return min(candidates, key=lambda m: (m.loss > best * (1 + WITHIN), m.iterations, m.loss))


def statements(results: list[Measured], length: int) -> list[str]:
    """What the numbers at one context length say, in sentences."""
    here = [m for m in results if m.length == length]
    best = min(here, key=lambda m: m.loss)
    least = cheapest(here)
    lines = []
    if least.loss <= best.loss * (1 + WITHIN):
        lines.append(
            f"The smallest compute within 0.1 % of the best loss ({best.loss:.4f}, {best.setting.name}) is {least.setting.name}: "
            f"{least.iterations:.2f} iterations on average, loss {least.loss:.4f}."
        )
    else:
        lines.append(
            f"No iterative setting comes within 0.1 % of the best loss ({best.loss:.4f}, {best.setting.name})."
        )
    by_name = {m.setting.name: m for m in here}
    tolerance, fixed = by_name.get("tolerance 1e-04"), by_name.get("30 steps")
    if tolerance is not None and fixed is not None:
        lines.append(
            f"Tolerance 1e-4 gives {100 * (tolerance.loss / fixed.loss - 1):+.3f} % of the loss of 30 fixed steps with "
            f"{100 * tolerance.iterations / fixed.iterations:.0f} % of the iterations."
        )
    return lines


# Heading, a setting's value, and how it is written; an exact solve spends no iterations.
_COLUMNS: list[tuple[str, Callable[[Measured], float | None], str]] = [
    ("loss", lambda m: m.loss, ".4f"),
    ("recall", lambda m: m.recall, ".3f"),
    ("iterations, mean", lambda m: None if m.setting.kind == "exact" else m.iterations, ".2f"),
    ("most", lambda m: None if m.setting.kind == "exact" else max(map(max, m.max_iterations)), "d"),
    ("prefill ms/token", lambda m: m.prefill_ms, ".4f"),
    ("decode ms/token", lambda m: m.decode_ms, ".2f"),
    ("memory MiB", lambda m: m.memory_mib, ".0f"),
]


def markdown(results: list[Measured], facts: dict[str, str | int]) -> str:
    """A table for each context length, with what it says above it."""
    lines = [f"# What the steps of the solver buy: {facts['checkpoint']}", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if name != "checkpoint"]
    for length in sorted({m.length for m in results}):
        here = [m for m in results if m.length == length]
        lines += ["", f"## Context of {length} tokens", "", *statements(results, length), ""]
        columns = _COLUMNS + [
            (f"loss at {span}", lambda m, span=span: m.loss_by_position.get(span), ".4f")
            for span in here[0].loss_by_position
        ]
        body = [[m.setting.name, *(_number(value(m), form) for _, value, form in columns)] for m in here]
        lines.append(table(["setting", *(head for head, _, _ in columns)], body))
    lines += ["", "## Iterations by layer and head (mean, most)", ""]
    for length in sorted({m.length for m in results}):
        shown = _shown([m for m in results if m.length == length])
        lines += [f"Context of {length}, {shown.setting.name}:", ""]
        of_layers = enumerate(zip(shown.mean_iterations, shown.max_iterations, strict=True))
        body = [[f"{i}", *(f"{a:.2f}, {b}" for a, b in zip(*both, strict=True))] for i, both in of_layers]
        lines += [table(["layer", *(f"head {h}" for h in range(len(shown.mean_iterations[0])))], body), ""]
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return EMPTY if value is None else format(value, form)


def _shown(results: list[Measured]) -> Measured:
    """The setting whose iterations are shown: tolerance 1e-4, the layer's default, or else the tightest tolerance, or the most steps."""
    by_name = {m.setting.name: m for m in results}
    tolerances = sorted((m for m in results if m.setting.kind == "tolerance"), key=lambda m: m.setting.value)
    return by_name.get("tolerance 1e-04") or (tolerances or sorted(results, key=lambda m: -m.iterations))[0]


def save(results: list[Measured], facts: dict[str, str | int], directory: Path) -> list[Path]:
    """Write sweep.md, sweep.json, quality_against_compute.png and iterations.png; returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    report, data = directory / "sweep.md", directory / "sweep.json"
    report.write_text(markdown(results, facts), encoding="utf-8")
    rows = [{"name": m.setting.name, "iterations": m.iterations, **asdict(m)} for m in results]
    lengths = sorted({m.length for m in results})
    smallest = {length: cheapest([m for m in results if m.length == length]).setting.name for length in lengths}
    content = {"facts": facts, "smallest_compute": smallest, "results": rows}
    write_json(data, content)
    pictures = [directory / "quality_against_compute.png", directory / "iterations.png"]
    draw_quality(results, pictures[0])
    draw_iterations(results, pictures[1])
    return [report, data, *pictures]


def draw_quality(results: list[Measured], path: Path) -> None:
    """Loss against the mean number of iterations, a panel for each context length; the exact solve is a line."""
    lengths = sorted({m.length for m in results})
    figure, axes = _panels(len(lengths), sharey=True)
    for axis, length in zip(axes, lengths, strict=True):
        here = [m for m in results if m.length == length]
        for kind, marker in (("steps", "o"), ("tolerance", "s")):
            points = sorted(
                ((m.iterations, m.loss, m.setting) for m in here if m.setting.kind == kind), key=lambda p: p[0]
            )
            if points:
                label = "fixed steps" if kind == "steps" else "tolerance"
                axis.plot([p[0] for p in points], [p[1] for p in points], marker=marker, markersize=4, label=label)
            for i, (x, y, setting) in enumerate(points if kind == "tolerance" else []):
                # One above the other, as the tightest lie close together.
                axis.annotate(
                    f"{setting.value:.0e}", (x, y), fontsize=6, xytext=(2, 4 + 7 * i), textcoords="offset points"
                )
        for m in here:
            if m.setting.kind == "exact":
                axis.axhline(m.loss, color="black", linewidth=0.8, linestyle="--", label="exact solve")
        axis.set(title=f"context {length}", xlabel="iterations, mean")
    axes[0].set_ylabel("loss, nats a token")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=150)


def draw_iterations(results: list[Measured], path: Path) -> None:
    """Mean iterations of every layer and head by position, a panel for each context length."""
    lengths = sorted({m.length for m in results})
    figure, axes = _panels(len(lengths))
    for axis, length in zip(axes, lengths, strict=True):
        shown = _shown([m for m in results if m.length == length])
        rows = [heads for layer in shown.iterations_by_position for heads in layer]
        names = [f"{i}.{h}" for i, layer in enumerate(shown.iterations_by_position) for h in range(len(layer))]
        image = axis.imshow(rows, aspect="auto", interpolation="nearest", vmin=0)
        spans = [range_name(positions) for positions in position_ranges(length)]
        axis.set_xticks(range(len(spans)), spans, rotation=60, fontsize=6)
        axis.set_yticks(range(len(names)), names, fontsize=6)
        axis.set(title=f"context {length}, {shown.setting.name}", xlabel="position", ylabel="layer.head")
        axis.title.set_fontsize(8)
        figure.colorbar(image, ax=axis, label="iterations, mean")
    figure.savefig(path, dpi=150)


def _panels(count: int, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.2 * count, 3.6), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False, sharey=sharey)[0])
