"""What the pictures of a comparison show, as numbers: plots.py draws them into PNG files, page.py into report.html."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fla_mesa.eval.compare.columns import COLUMNS, Spread
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.results import ModelResult
from fla_mesa.eval.measure.trained import Trained

POSITION, LOSS = "position in the context", "loss (nats a token)"
OPTIMUM = "optimum"


@dataclass(frozen=True)
class Line:
    """A model's values; `half` is how far they may lie off: a standard deviation over seeds, or half of an interval."""

    x: list[float]
    y: list[float]
    half: list[float] | None = None

    @classmethod
    def of(cls, x: Sequence[float], values: Sequence[Spread]) -> Line:
        half = [value.std or 0.0 for value in values] if any(value.std is not None for value in values) else None
        return cls(list(x), [value.mean for value in values], half)


@dataclass(frozen=True)
class Panel:
    """Axes and a line for each model.

    Attributes:
        log: Whether x doubles from tick to tick.
        points: Whether the values are points with bars rather than lines with bands.
        mark: Where a vertical line stands.
        limits: Of y.
    """

    x: str
    y: str
    lines: Mapping[str, Line]
    title: str = ""
    log: bool = False
    points: bool = False
    mark: float | None = None
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Picture:
    name: str  # of its file, without the suffix
    title: str
    caption: str
    panels: list[Panel] = field(repr=False)


def pictures(models: Sequence[ModelResult], seq_len: int, baseline: str | None = None) -> list[Picture]:
    """What there is data for.

    Args:
        models: Those that finished.
        seq_len: That they were trained with.
        baseline: The model that losses by position are held against, by its label.
    """
    shaded = "; shaded: one standard deviation over the seeds" if any(len(model.runs) > 1 for model in models) else ""
    found = [
        Picture(
            "loss_curves",
            "Loss in training",
            f"Validation loss in training{shaded}.",
            _loss_curves(models),
        ),
        Picture(
            "loss_by_position",
            "Loss by position",
            f"Loss by position in the context{shaded}. The dashed line is the length of the training sequences.",
            _loss_by_position(models, seq_len),
        ),
        Picture(
            "loss_difference",
            f"Loss by position, less that of {baseline}",
            f"Left: loss by position less that of {baseline}. Right: the same for the mean of all losses up to a position. The axes are "
            "those of the training length, the dashed line. Shaded: 95 % intervals over pairs of runs of one seed.",
            _loss_difference(models, seq_len, baseline),
        ),
        Picture(
            "error_by_position",
            "Squared error by position",
            f"Left: squared error by position, and that of the closed-form {OPTIMUM}, dashed. Right: what is above it, as a share of it.",
            _error_by_position(models),
        ),
        Picture(
            "quality_speed",
            "Quality and speed",
            "Quality against speed in training and in decoding.",
            _quality_against_speed(models),
        ),
    ]
    return [picture for picture in found if picture.panels]


def judged_by(models: Sequence[ModelResult]) -> tuple[str, str, str]:
    """What models are judged by, and its column and key: of text bits per byte, of a suite its own score, of regression the optimum."""
    for label, name, key in (
        ("validation bits per byte", "bits_per_byte", ""),
        ("test accuracy", "test", "accuracy"),
        ("error over the optimum", "error_over_optimum", ""),
    ):
        if models and all(model.spread(name, key) is not None for model in models):
            return label, name, key
    return "validation accuracy", "accuracy", ""


def quality_by_width(found: Mapping[tuple[str, int], Mapping[str, Spread]], label: str) -> list[Panel]:
    """Quality against model width, a panel for each task.

    Args:
        found: By task and width: the quality by model.
        label: What the quality is.
    """
    models = dict.fromkeys(model for of in found.values() for model in of)

    def line(task: str, model: str) -> Line:
        widths = sorted(width for other, width in found if other == task and model in found[other, width])
        return Line.of(widths, [found[task, width][model] for width in widths])

    tasks = dict.fromkeys(task for task, _ in found)
    return [
        Panel("model width", label, {model: line(task, model) for model in models}, title=task, log=True)
        for task in tasks
    ]


def _loss_curves(models: Sequence[ModelResult]) -> list[Panel]:
    lines = {}
    for model in models:
        # A run that was interrupted may have evaluated at more steps than the others: those that all seeds have.
        by_step = [{step: loss for step, loss in metrics.history["validation"]} for metrics in model.metrics]
        steps = sorted(set(by_step[0]).intersection(*by_step[1:]))
        if steps:
            lines[model.label] = Line.of(steps, [Spread.of([curve[step] for curve in by_step]) for step in steps])
    if not lines:
        return []
    limits = None
    if max(len(line.x) for line in lines.values()) > 5:
        # The first third falls so far that nothing could be told apart later: the picture is of the rest.
        latest = [loss for line in lines.values() for loss in line.y[len(line.y) // 3 :]]
        margin = 0.08 * (max(latest) - min(latest)) or 0.1
        limits = (min(latest) - margin, max(latest) + 4 * margin)
    of_vectors = any(model.curve("squared_error_by_position") is not None for model in models)
    return [Panel("step", "validation squared error" if of_vectors else f"validation {LOSS}", lines, limits=limits)]


View = Callable[
    [list[float]], tuple[list[float], list[float]]
]  # of a loss at positions 1, 2, ...: some positions, and values there


def _by_position(models: Sequence[ModelResult]) -> dict[str, list[list[float]]]:
    """The curve of each seed, of the models that have them."""
    curves = {model.label: [_curve(trained) for trained in model.trained] for model in models}
    return {label: of for label, of in curves.items() if of and all(of)}


def _loss_by_position(models: Sequence[ModelResult], seq_len: int) -> list[Panel]:
    lines = {}
    for label, of in _by_position(models).items():
        at, values = _over_seeds(of, _windows)
        lines[label] = Line.of(at, [Spread.of(seeds) for seeds in values])
    return [Panel(POSITION, LOSS, lines, log=True, mark=seq_len)] if lines else []


def _over_seeds(curves: Sequence[list[float]], view: View) -> tuple[list[float], list[tuple[float, ...]]]:
    """Positions, and at each the values of all seeds."""
    views = [view(curve) for curve in curves]
    return views[0][0], list(zip(*(values for _, values in views), strict=True))


def _loss_difference(models: Sequence[ModelResult], seq_len: int, baseline: str | None) -> list[Panel]:
    """By position, and of the mean so far; one line a model, over pairs of runs."""
    curves = _by_position(models)
    if baseline not in curves or len(curves) < 2:
        return []
    panels = []
    for what, view in (("loss", _windows), ("mean so far", _so_far)):
        base, lines = _over_seeds(curves[baseline], view)[1], {}
        for label, of in curves.items():
            if len(of) != len(curves[baseline]):
                continue
            at, values = _over_seeds(of, view)
            found = [Difference.of(own, others) for own, others in zip(values, base, strict=True)]
            sure = label != baseline and len(of) > 1
            half = [one.half or 0.0 for one in found] if sure else None
            lines[label] = Line(at, [one.mean for one in found], half)
        name = f"{what} less {baseline}'s (nats a token)"
        panels.append(Panel(POSITION, name, lines, log=True, mark=seq_len, limits=_within(lines, seq_len)))
    return panels


def _error_by_position(models: Sequence[ModelResult]) -> list[Panel]:
    """Of in-context regression."""
    curves = {model.label: curve for model in models if (curve := model.curve("squared_error_by_position")) is not None}
    optimum = next((curve for model in models if (curve := model.curve("optimal_error_by_position")) is not None), None)
    if not curves or optimum is None:
        return []
    at = [float(position) for position in range(1, len(optimum) + 1)]
    errors = {label: Line(at, curve) for label, curve in {**curves, OPTIMUM: optimum}.items()}
    above = {
        label: Line(at, [100 * (own / least - 1) for own, least in zip(curve, optimum, strict=True)])
        for label, curve in curves.items()
    }
    return [
        Panel(POSITION, "squared error", errors, log=True),
        Panel(POSITION, f"above the {OPTIMUM} (%)", above, log=True),
    ]


def _within(lines: Mapping[str, Line], seq_len: int) -> tuple[float, float]:
    """Limits by what lies within the training length: beyond it one model may leave all others a line."""
    values = [y for line in lines.values() for x, y in zip(line.x, line.y, strict=True) if x <= seq_len]
    margin = 0.25 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin


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


def _quality_against_speed(models: Sequence[ModelResult]) -> list[Panel]:
    label, *quality = judged_by(models)
    panels = []
    for column, key, name in (
        ("training_tokens_per_second", "", "training, tokens a second"),
        ("decode_tokens_per_second", "8", "decoding, tokens a second (batch 8)"),
    ):
        at = {model.label: (model.spread(column, key), model.spread(*quality)) for model in models}
        lines = {model: Line.of([x.mean], [y]) for model, (x, y) in at.items() if x is not None and y is not None}
        panels += [Panel(name, label, lines, points=True)] if lines else []
    return panels if panels and len(panels[0].lines) > 1 else []  # else there is nothing to compare
