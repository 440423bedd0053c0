"""`fla-mesa sweep CHECKPOINT`: the command line.

    fla-mesa sweep runs/mesa
    fla-mesa sweep runs/mesa --text held_out.txt --context_lengths 512,1024,4096 --steps 1,2,4,8 --tolerances 1e-2,1e-4

A checkpoint of text reads held-out text, and is asked for needles in an own haystack (recall); one that was trained on a synthetic suite
reads that suite. Steps start where the paper's do, at q / diag(H + lamb), which is zero steps; a
tolerance is relative to q (the paper's: to the residual of the start). Writes sweep.md, sweep.json and two pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import fla.models  # noqa: F401 (hybrids)
from transformers import AutoTokenizer, PreTrainedModel

from fla_mesa.commands import command
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.eval.checkpoint import recorded_suite, tokenizer_of
from fla_mesa.eval.mesa_checkpoint import add_arguments, load_mesa, new_folder, provenance_of
from fla_mesa.eval.sweep.measured import Measured, Setting, measure_quality, measure_speed
from fla_mesa.eval.sweep.reading import Reading, read_suite, read_text
from fla_mesa.eval.sweep.report import save, statements

STEPS = (0, 1, 2, 5, 10, 20, 30)
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@command("sweep")
def main(argv: list[str]) -> int:
    """Run `fla-mesa sweep` with these arguments.

    Returns:
        0, or 2 after printing one line on stderr about a bad argument or checkpoint.
    """
    sweep(_parser().parse_args(argv), argv)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa sweep",
        description="Quality and speed of a MesaNet checkpoint against the steps or the tolerance of its solver.",
        allow_abbrev=False,
    )
    add_arguments(parser, "sweep")
    add = parser.add_argument
    add("--context_lengths", type=_numbers(int), help="default: 1, 2, 4 and 8 times the training length")
    add("--steps", type=_numbers(int), default=STEPS, help=f"fixed numbers of steps (default: {_list(STEPS)})")
    help_ = f"relative residuals to stop at (default: {_list(TOLERANCES)})"
    add("--tolerances", type=_numbers(float), default=TOLERANCES, help=help_)
    add("--most_steps", type=int, default=30, help="cap on the steps where a tolerance is set (default: %(default)s)")
    add("--no_exact", action="store_true", help="leave out the exact solve, which is slow")
    add("--sequences", type=int, default=8, help="sequences of the longest context (default: %(default)s)")
    add("--needles", type=int, help="recall documents at each context length for a checkpoint of text (default: 16)")
    add("--batch_size", type=int, default=4, help="sequences at a time; changes no number (default: %(default)s)")
    help_ = "timed turns of every setting; 0 measures no time (default: %(default)s)"
    add("--repeats", type=int, default=3, help=help_)
    add("--seed", type=int, help="of the choice of text and of the needles (default: 0)")
    return parser


def _list(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _numbers(kind: type[int] | type[float]) -> Callable[[str], tuple[float, ...]]:
    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be numbers parted by commas, got {text!r}") from None

    return read


def sweep(arguments: argparse.Namespace, argv: list[str]) -> list[Measured]:
    """Measure, print and save; the arguments are those of the command line `argv`.

    Raises:
        ValueError: No checkpoint, no Mesa layer in it, or an argument out of range.
    """
    settings = _settings(arguments)
    for name, low in (("sequences", 1), ("needles", 1), ("batch_size", 1), ("repeats", 0), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise UserError(f"{name} must be an integer >= {low}; got {value!r}")
    folder = new_folder(arguments.output_dir)
    model = load_mesa(arguments.checkpoint, arguments.device)
    suite = recorded_suite(arguments.checkpoint)
    readings = _readings(arguments, suite, model.config.max_position_embeddings)
    results: list[Measured] = []
    for reading in readings:
        print(f"context of {reading.length} tokens, {len(reading.ids)} sequences", flush=True)
        here = []
        for setting in settings:
            here.append(measure_quality(model, setting, reading, arguments.batch_size))
            recall = "" if here[-1].recall is None else f", recall {here[-1].recall:.3f}"
            said = f"loss {here[-1].loss:.4f}, {here[-1].iterations:.2f} iterations{recall}"
            print(f"  {setting.name:<16} {said}", flush=True)
        if arguments.repeats:
            measure_speed(model, here, reading, arguments.repeats)
        results += here
        print("".join(f"  {line}\n" for line in statements(here, reading.length)), end="", flush=True)
    for path in save(results, _facts(arguments, argv, model, suite, readings[0].recall_name), folder):
        print(f"wrote {path}")
    return results


def _settings(arguments: argparse.Namespace) -> list[Setting]:
    for value in arguments.steps:
        if value < 0:
            raise UserError(f"steps must be integers >= 0; got {value!r}")
    for value in arguments.tolerances:
        if not 0 < value < 1:
            raise UserError(f"tolerances must be numbers in (0, 1); got {value!r}")
    if arguments.most_steps < 1:
        raise UserError(f"most_steps must be an integer >= 1; got {arguments.most_steps!r}")
    settings = [Setting("steps", value) for value in arguments.steps]
    settings += [Setting("tolerance", value, arguments.most_steps) for value in arguments.tolerances]
    return settings if arguments.no_exact else [*settings, Setting("exact")]


def _readings(arguments: argparse.Namespace, suite: str | None, trained: int) -> list[Reading]:
    lengths = sorted(set(arguments.context_lengths or (trained, 2 * trained, 4 * trained, 8 * trained)))
    if lengths[0] < 2:
        raise UserError(f"context_lengths must be integers >= 2; got {lengths[0]!r}")
    if suite is not None:
        for name in ("text", "needles", "seed"):
            if getattr(arguments, name) is not None:
                raise UserError(f"{name}: the checkpoint was trained on {suite}, and is asked for that")
        return read_suite(suite, lengths, arguments.sequences)
    with mistakes_of(OSError, ValueError, prefix=f"checkpoint {arguments.checkpoint!r}: "):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(arguments.checkpoint))
    text, needles = arguments.text or "stdlib", arguments.needles or 16
    return read_text(tokenizer, text, lengths, arguments.sequences, needles, arguments.seed or 0)


def _facts(
    arguments: argparse.Namespace, argv: list[str], model: PreTrainedModel, suite: str | None, recall_name: str
) -> dict[str, str | int]:
    facts = {
        **provenance_of(arguments.checkpoint, model, ["sweep", *argv]),
        "data": suite or arguments.text or "stdlib",
        "seed": (arguments.seed or 0) if suite is None else None,
        "recall": recall_name,
        "steps": "from the paper's start, q / diag(H + lamb), which is 0 steps",
        "tolerance": "of the residual, relative to q, in the norm weighted by 1 / lamb (the paper's is relative to the start's)",
        "time": f"median of {arguments.repeats} turns, one sequence at a time; the exact solve is not timed",
    }
    return {name: value for name, value in facts.items() if value is not None}
