"""`fla-mesa sweep CHECKPOINT`: the command line.

    fla-mesa sweep runs/mesa
    fla-mesa sweep runs/mesa --text held_out.txt --context_lengths 512,1024,4096 --steps 1,2,4,8 --tolerances 1e-2,1e-4

A checkpoint of text reads held-out text, and is asked for needles in an own haystack (recall); one that was trained on a synthetic suite
reads that suite. Steps start where the paper's do, at q / diag(H + lamb), which is zero steps; a
tolerance is relative to q (the paper's: to the residual of the start). Writes sweep.html, sweep.md, sweep.json and two pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from fla_mesa.commands import command
from fla_mesa.errors import UserError
from fla_mesa.eval.mesa_checkpoint import Opened, open_checkpoint, parser
from fla_mesa.eval.sweep.measured import Measured, Setting, measure_quality, measure_speed
from fla_mesa.eval.sweep.reading import Reading, read_suite, read_text
from fla_mesa.eval.sweep.report import save, statements
from fla_mesa.models.checkpoint import tokenizer_of_checkpoint
from fla_mesa.report.tables import shortest

STEPS = (0, 1, 2, 5, 10, 20, 30)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# The smallest values that are allowed.
LEAST = {"sequences": 1, "needles": 1, "batch_size": 1, "repeats": 0, "seed": 0, "most_steps": 1}


@command("sweep")
def main(argv: list[str]) -> int:
    """Run `fla-mesa sweep` with these arguments.

    Raises:
        UserError: An argument or the checkpoint cannot be used; the command prints it in one line and exits with 2.
    """
    given = _parser().parse_args(argv)
    settings = _settings(given)
    if given.context_lengths and min(given.context_lengths) < 2:
        raise UserError(f"context_lengths must be integers >= 2; got {min(given.context_lengths)!r}")
    opened = open_checkpoint(given, ["sweep", *argv], LEAST, ("text", "needles", "seed"))
    readings = _readings(given, opened)
    results: list[Measured] = []
    for reading in readings:
        print(f"context of {reading.length} tokens, {len(reading.ids)} sequences", flush=True)
        here = []
        for setting in settings:
            one = measure_quality(opened.model, setting, reading, given.batch_size)
            recall = "" if one.recall is None else f", recall {one.recall:.3f}"
            print(f"  {setting.name:<16} loss {one.loss:.4f}, {one.iterations:.2f} iterations{recall}", flush=True)
            here.append(one)
        if given.repeats:
            measure_speed(opened.model, here, reading, given.repeats)
        results += here
        print("".join(f"  {line}\n" for line in statements(here, reading.length)), end="", flush=True)
    facts = opened.facts | {
        "recall": readings[0].recall_name,
        "steps": "from the paper's start, q / diag(H + lamb), which is 0 steps",
        "tolerance": "of the residual, relative to q, in the norm weighted by 1 / lamb (the paper's is relative to the start's)",
        "time": f"median of {given.repeats} turns, one sequence at a time; the exact solve is not timed",
    }
    for path in save(results, facts, opened.folder):
        print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "sweep",
        "Measure the quality and speed of a MesaNet checkpoint at several step counts and tolerances of its solver.",
    )
    steps, tolerances = (",".join(map(shortest, values)) for values in (STEPS, TOLERANCES))
    add = made.add_argument
    add("--context_lengths", type=_numbers(int), help="default: 1, 2, 4 and 8 times the training length")
    add("--steps", type=_numbers(int), default=STEPS, help=f"fixed numbers of steps (default: {steps})")
    help_ = f"relative residuals at which to stop (default: {tolerances})"
    add("--tolerances", type=_numbers(float), default=TOLERANCES, help=help_)
    add("--most_steps", type=int, default=30, help="maximum number of steps at each tolerance (default: %(default)s)")
    add("--no_exact", action="store_true", help="skip the exact solution, which is slow")
    add("--sequences", type=int, default=8, help="sequences of the longest context (default: %(default)s)")
    add("--needles", type=int, help="recall documents at each context length for a checkpoint of text (default: 16)")
    add(
        "--batch_size",
        type=int,
        default=4,
        help="sequences at a time; does not change the results (default: %(default)s)",
    )
    help_ = "timed runs of each setting; 0 skips timing (default: %(default)s)"
    add("--repeats", type=int, default=3, help=help_)
    return made


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[float, ...]]:
    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be comma-separated numbers, got {text!r}") from None

    return read


def _settings(given: argparse.Namespace) -> list[Setting]:
    for name, allowed, holds in (
        ("steps", "integers >= 0", lambda value: value >= 0),
        ("tolerances", "numbers in (0, 1)", lambda value: 0 < value < 1),
    ):
        if wrong := [value for value in getattr(given, name) if not holds(value)]:
            raise UserError(f"{name} must be {allowed}; got {wrong[0]!r}")
    settings = [Setting("steps", value) for value in given.steps]
    settings += [Setting("tolerance", value, given.most_steps) for value in given.tolerances]
    return settings if given.no_exact else [*settings, Setting("exact")]


def _readings(given: argparse.Namespace, opened: Opened) -> list[Reading]:
    trained = opened.model.config.max_position_embeddings
    lengths = sorted(set(given.context_lengths or (trained, 2 * trained, 4 * trained, 8 * trained)))
    if opened.suite:
        return read_suite(opened.suite, lengths, given.sequences)
    tokenizer = tokenizer_of_checkpoint(given.checkpoint)
    return read_text(tokenizer, opened.text, lengths, given.sequences, given.needles or 16, opened.seed)
