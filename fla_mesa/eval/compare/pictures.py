"""What the pictures of a comparison show."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from fla_mesa.eval.compare.columns import COLUMNS
from fla_mesa.eval.compare.paired import Difference
from fla_mesa.eval.compare.results import ModelResult, devices
from fla_mesa.models import zoo
from fla_mesa.report.pictures import Line, Look, Panel, Picture
from fla_mesa.report.tables import Spread

POSITION, LOSS = "position in the context", "loss (nats a token)"
OPTIMUM = "optimum"
NAMES = ("loss_curves", "loss_by_position", "loss_difference", "error_by_position", "quality_speed")

# Colours that stay apart for colour-blind readers (Okabe and Ito), then darker ones; a model has one colour in all pictures.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F", "#8C564B")
_COLOURS += ("#6A3D9A", "#B2DF8A", "#3B3B98", "#882255", "#44AA99", "#999933")
_MARKERS = "osD^vPX*<>hp"
_DASHES = ("-", "--", ":", "-.")


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """Colour and marker by the architecture's place in the zoo, so that they are the same in every comparison; MesaNet stands out.

    What is no model but what models are held against is grey and dashed.

    Args:
        labels: Of all models, "mesanet" or "mesanet@max_cg_step_training=5": those of one architecture differ in dashes and markers.
    """
    known = list(dict.fromkeys([*zoo.names("released"), *zoo.names("matched")]))
    turns = dict.fromkeys(known, 0)
    found = {}
    for label in dict.fromkeys(labels):
        architecture = label.partition("@")[0]
        if architecture not in turns:
            found[label] = Look("#333333", linestyle="--", linewidth=1.0, zorder=4)
            continue
        place, turn, mesa = known.index(architecture), turns[architecture], architecture == "mesanet"
        turns[architecture] += 1
        found[label] = Look(
            _COLOURS[place % len(_COLOURS)],
            _MARKERS[(place + place // len(_COLOURS) + turn) % len(_MARKERS)],
            _DASHES[turn % len(_DASHES)],
            2.2 if mesa else 1.3,
            3 if mesa else 2,
        )
    return found


def pictures(models: Sequence[ModelResult], seq_len: int, baseline: str | None = None) -> list[Picture]:
    """What there is data for.

    Args:
        models: Those that finished.
        seq_len: That they were trained with.
        baseline: The model that losses by position are held against, by its label.
    """
    shaded = "; shaded: one standard deviation over the seeds" if any(len(model.runs) > 1 for model in models) else ""
    contents = (
        (
            "Loss in training",
            f"Validation loss in training{shaded}.",
            _loss_curves(models),
        ),
        (
            "Loss by position",
            f"Loss by position in the context{shaded}. The dashed line is the length of the training sequences.",
            _loss_by_position(models, seq_len),
        ),
        (
            f"Loss by position, less that of {baseline}",
            f"Left: loss by position less that of {baseline}. Right: the same for the mean of all losses up to a position. The scale "
            "is that of positions within the training length (dashed line). Shaded: 95 % intervals over pairs of runs of one seed.",
            _loss_difference(models, seq_len, baseline),
        ),
        (
            "Squared error by position",
            f"Left: squared error by position; the dashed line is the closed-form {OPTIMUM}. Right: the excess over it, in percent of it.",
            _error_by_position(models),
        ),
        (
            "Quality and speed",
            "Quality against speed in training and in decoding.",
            _quality_against_speed(models) if len(devices(models)) == 1 else [],
        ),
    )
    styles = looks([*(model.label for model in models), OPTIMUM])
    return [Picture(name, *content, styles) for name, content in zip(NAMES, contents, strict=True) if content[-1]]


def remove_others(shown: Sequence[Picture], folder: Path) -> None:
    """Removes the PNG files of an earlier report that are not drawn again."""
    for name in set(NAMES) - {picture.name for picture in shown}:
        (folder / f"{name}.png").unlink(missing_ok=True)


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


def quality_by_width(name: str, found: Mapping[tuple[str, int], Mapping[str, Spread]], label: str) -> Picture:
    """Quality against model width, a panel for each task.

    Args:
        name: Of the file, without its suffix.
        found: By task and width: the quality by model.
        label: What the quality is.
    """
    models = dict.fromkeys(model for of in found.values() for model in of)

    def line(task: str, model: str) -> Line:
        widths = sorted(width for other, width in found if other == task and model in found[other, width])
        return Line.of(widths, [found[task, width][model] for width in widths])

    panels = [
        Panel("model width", label, {model: line(task, model) for model in models}, title=task, log=True)
        for task in dict.fromkeys(task for task, _ in found)
    ]
    return Picture(name, "Quality by width", f"{label} against the width of the model", panels, looks(models))


def _loss_curves(models: Sequence[ModelResult]) -> list[Panel]:
    lines = {}
    for model in models:
        # A run that was interrupted may have evaluated at more steps than the others: those that all seeds have.
        by_step = [{step: loss for step, loss in run.metrics.history["validation"]} for run in model.trained]
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


# Of a loss at positions 1, 2, ...: some positions, and values there.
View = Callable[[list[float]], tuple[list[float], list[float]]]


def _by_position(models: Sequence[ModelResult], view: View) -> dict[str, tuple[list[float], list[dict[int, float]]]]:
    """Of the models that have losses by position: some positions, and at each the values by seed."""
    found = {}
    for model in models:
        curves = {seed: COLUMNS["loss_by_position"].of(run) for seed, run in model.by_seed.items()}
        views = {seed: view(curve) for seed, curve in curves.items() if isinstance(curve, list)}
        if views and (at := next(iter(views.values()))[0]):
            found[model.label] = (
                at,
                [{seed: values[i] for seed, (_, values) in views.items()} for i in range(len(at))],
            )
    return found


def _loss_by_position(models: Sequence[ModelResult], seq_len: int) -> list[Panel]:
    found = _by_position(models, _windows)
    lines = {
        label: Line.of(at, [Spread.of(list(seeds.values())) for seeds in values])
        for label, (at, values) in found.items()
    }
    return [Panel(POSITION, LOSS, lines, log=True, mark=seq_len)] if lines else []


def _loss_difference(models: Sequence[ModelResult], seq_len: int, baseline: str | None) -> list[Panel]:
    """By position, and of the mean so far; one line a model, over pairs of runs."""
    panels = []
    for what, view in (("loss", _windows), ("mean so far", _so_far)):
        found = _by_position(models, view)
        if baseline not in found or len(found) < 2:
            return []
        base, lines = found[baseline][1], {}
        for label, (at, values) in found.items():
            pairs = [Difference.of(own, others) for own, others in zip(values, base, strict=False)]
            of = [pair for pair in pairs if pair is not None]
            if len(of) == len(at):
                halves = [d.half for d in of if d.half is not None]
                lines[label] = Line(at, [d.mean for d in of], halves if label != baseline and halves else None)
        name = f"{what} less {baseline}'s (nats a token)"
        panels.append(Panel(POSITION, name, lines, log=True, mark=seq_len, limits=_within(lines, seq_len)))
    return panels


def _within(lines: Mapping[str, Line], seq_len: int) -> tuple[float, float]:
    """Limits by what lies within the training length: beyond it one model may leave all others a line."""
    values = [y for line in lines.values() for x, y in zip(line.x, line.y, strict=True) if x <= seq_len]
    margin = 0.25 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin


def _halves(length: int) -> list[int]:
    """Positions from 8 to `length`, two for each doubling."""
    return [at for k in range(6, 2 * length.bit_length() + 1) if (at := round(2 ** (k / 2))) <= length]


def _so_far(curve: list[float]) -> tuple[list[float], list[float]]:
    """The mean of all losses up to a position, at the ends of the windows of :func:`_windows`."""
    sums = list(itertools.accumulate(curve))
    ends = sorted({*_halves(len(curve)), len(curve)})
    return [float(end) for end in ends], [sums[end - 1] / end for end in ends]


def _windows(curve: list[float]) -> tuple[list[float], list[float]]:
    """Means over windows of positions: their geometric middles and the losses."""
    pairs = list(itertools.pairwise([*_halves(len(curve)), len(curve) + 1]))
    return [math.sqrt(a * b) for a, b in pairs], [statistics.fmean(curve[a - 1 : b - 1]) for a, b in pairs]


def _error_by_position(models: Sequence[ModelResult]) -> list[Panel]:
    """The squared error of in-context regression, and its excess over the optimum."""
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
