"""The sweep's report: a table for each context length, and two pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure

from fla_mesa.eval.measure.quality import position_ranges, range_name
from fla_mesa.eval.sweep.measured import Measured
from fla_mesa.report import files
from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.sections import Section, listed
from fla_mesa.report.tables import Cell, Column, Table, digits, whole

WITHIN = 1e-3  # of the best loss: as good as the best

_LOOKS = {"fixed steps": Look("#0072B2"), "tolerance": Look("#D55E00", "s")}
_LOOKS |= {"exact solve": Look("#000000", "", "--", 0.8)}

# An exact solve spends no iterations.
_COLUMNS = (
    Column[Measured]("loss", lambda m: m.loss, digits(4)),
    Column[Measured]("recall", lambda m: m.recall, digits(3)),
    Column[Measured]("iterations, mean", lambda m: None if m.is_exact else m.iterations, digits(2)),
    Column[Measured]("maximum", lambda m: None if m.is_exact else max(map(max, m.max_iterations)), whole),
    Column[Measured]("prefill ms/token", lambda m: m.prefill_ms, digits(4)),
    Column[Measured]("decode ms/token", lambda m: m.decode_ms, digits(2)),
    Column[Measured]("memory MiB", lambda m: m.memory_mib, digits(0)),
)


def cheapest(results: Sequence[Measured]) -> Measured:
    """The setting that spends the fewest iterations among those within 0.1 % of the best loss; the exact solve is no candidate."""
    best = min(measured.loss for measured in results)
    candidates = [m for m in results if not m.is_exact]
    return min(candidates, key=lambda m: (m.loss > best * (1 + WITHIN), m.iterations, m.loss))


def statements(results: Sequence[Measured], length: int) -> list[str]:
    """What the numbers at one context length say, in sentences."""
    here = [m for m in results if m.length == length]
    best, least = min(here, key=lambda m: m.loss), cheapest(here)
    of_best = f"within 0.1 % of the best loss ({best.loss:.4f}, {best.setting.name})"
    lines = [
        f"The smallest compute {of_best} is {least.setting.name}: {least.iterations:.2f} iterations on average, loss {least.loss:.4f}."
        if least.loss <= best.loss * (1 + WITHIN)
        else f"No iterative setting comes {of_best}."
    ]
    by_name = {m.setting.name: m for m in here}
    tolerance, fixed = by_name.get("tolerance 1e-04"), by_name.get("30 steps")
    if tolerance is not None and fixed is not None:
        lines.append(
            f"Tolerance 1e-4 gives {100 * (tolerance.loss / fixed.loss - 1):+.3f} % of the loss of 30 fixed steps with "
            f"{100 * tolerance.iterations / fixed.iterations:.0f} % of the iterations."
        )
    return lines


def _by_length(results: Sequence[Measured]) -> dict[int, list[Measured]]:
    return {length: [m for m in results if m.length == length] for length in sorted({m.length for m in results})}


def sections(results: Sequence[Measured], facts: Mapping[str, object]) -> list[Section]:
    """A table for each context length, with what it says above it; then the iterations of each head."""
    known = listed({name: value for name, value in facts.items() if name != "checkpoint"})
    found = [Section(f"Quality and speed by steps of the solver: {facts['checkpoint']}", [known])]
    by_head = []
    for length, here in _by_length(results).items():
        at = [
            Column[Measured](f"loss at {s}", lambda m, s=s: m.loss_by_position.get(s), digits(4))
            for s in here[0].loss_by_position
        ]
        table = Table.of(here, [*_COLUMNS, *at], "setting", lambda m: m.setting.name)
        found.append(Section(f"Context of {length} tokens", [*statements(here, length), table]))
        shown = _shown(here)
        layers = enumerate(zip(shown.mean_iterations, shown.max_iterations, strict=True))
        rows = [[Cell(f"{i}"), *(Cell(f"{a:.2f}, {b}") for a, b in zip(*both, strict=True))] for i, both in layers]
        heads = [f"head {h}" for h in range(len(shown.mean_iterations[0]))]
        by_head += [f"Context of {length}, {shown.setting.name}:", Table(["layer", *heads], rows)]
    iterations = Section("Iterations by layer and head (mean, maximum)", by_head)
    return [*found, iterations, Section("Picture", [_quality(results)])]


def _shown(results: Sequence[Measured]) -> Measured:
    """The setting whose iterations are shown: tolerance 1e-4, the layer's default, or else the tightest tolerance, or the most steps."""
    by_name = {m.setting.name: m for m in results}
    tolerances = sorted((m for m in results if m.setting.kind == "tolerance"), key=lambda m: m.setting.value)
    return by_name.get("tolerance 1e-04") or (tolerances or sorted(results, key=lambda m: -m.iterations))[0]


def save(results: Sequence[Measured], facts: Mapping[str, object], folder: Path) -> list[Path]:
    """Writes sweep.html, sweep.md, sweep.json, quality_against_compute.png and iterations.png; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "facts": {name: value for name, value in facts.items() if value is not None},
        "smallest_compute": {length: cheapest(here).setting.name for length, here in _by_length(results).items()},
        "results": [{"name": m.setting.name, "iterations": m.iterations, **asdict(m)} for m in results],
    }
    heat = folder / "iterations.png"
    _iterations(results).savefig(heat, dpi=150)
    return [*files.write(folder, "sweep", sections(results, facts), content), heat]


def _quality(results: Sequence[Measured]) -> Picture:
    """Loss against the mean number of iterations, a panel for each context length; the exact solve is a line."""
    losses = [m.loss for m in results]
    margin = 0.1 * (max(losses) - min(losses)) or 0.1
    panels = []
    for length, here in _by_length(results).items():
        lines = {}
        for kind, label in (("steps", "fixed steps"), ("tolerance", "tolerance")):
            if points := sorted((m for m in here if m.setting.kind == kind), key=lambda m: m.iterations):
                names = [f"{m.setting.value:.0e}" for m in points if kind == "tolerance"]
                lines[label] = Line([m.iterations for m in points], [m.loss for m in points], names=names)
        for m in here:
            if m.is_exact:
                lines["exact solve"] = Line([0, max(x for line in lines.values() for x in line.x)], [m.loss] * 2)
        limits = (min(losses) - margin, max(losses) + margin)
        panels.append(Panel("iterations, mean", "loss, nats a token", lines, f"context {length}", limits=limits))
    return Picture(
        "quality_against_compute",
        "Quality against compute",
        "Loss by mean iterations, a panel for each context length.",
        panels,
        _LOOKS,
    )


def _iterations(results: Sequence[Measured]) -> Figure:
    """Mean iterations of every layer and head by position, a panel for each context length."""
    by_length = _by_length(results)
    figure = Figure(figsize=(4.2 * len(by_length), 3.6), layout="constrained")
    axes = figure.subplots(1, len(by_length), squeeze=False)[0]
    for axis, (length, here) in zip(axes, by_length.items(), strict=True):
        shown = _shown(here)
        heads = {f"{i}.{h}": row for i, of in enumerate(shown.iterations_by_position) for h, row in enumerate(of)}
        image = axis.imshow(list(heads.values()), aspect="auto", interpolation="nearest", vmin=0)
        spans = [range_name(positions) for positions in position_ranges(length)]
        axis.set_xticks(range(len(spans)), spans, rotation=60, fontsize=6)
        axis.set_yticks(range(len(heads)), list(heads), fontsize=6)
        axis.set(xlabel="position", ylabel="layer.head")
        axis.set_title(f"context {length}, {shown.setting.name}", fontsize=8)
        figure.colorbar(image, ax=axis, label="iterations, mean")
    return figure
