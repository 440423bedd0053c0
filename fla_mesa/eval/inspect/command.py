"""`fla-mesa inspect CHECKPOINT`: the command line.

    fla-mesa inspect runs/mesa
    fla-mesa inspect runs/mesa --text held_out.txt --length 2048

A checkpoint of text reads held-out text; one that was trained on a synthetic suite reads that suite's validation split.
"""

from __future__ import annotations

import argparse

import fla.models  # noqa: F401 (hybrids)
import torch
from transformers import AutoTokenizer

from fla_mesa.commands import command
from fla_mesa.data import synthetic
from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.eval.checkpoint import recorded_suite, tokenizer_of
from fla_mesa.eval.inspect.measure import inspect_layers
from fla_mesa.eval.inspect.report import markdown, save
from fla_mesa.eval.mesa_checkpoint import add_arguments, load_mesa, new_folder, provenance_of
from fla_mesa.eval.sweep.reading import text_blocks


@command("inspect")
def main(argv: list[str]) -> int:
    """Run `fla-mesa inspect` with these arguments; 0, or 2 after one line on stderr about a mistake."""
    arguments = _parser().parse_args(argv)
    for name, low in (("sequences", 1), ("length", 2), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise UserError(f"{name} must be an integer >= {low}; got {value!r}")
    folder = new_folder(arguments.output_dir)
    model = load_mesa(arguments.checkpoint, arguments.device)
    suite = recorded_suite(arguments.checkpoint)
    ids = _suite(suite, arguments) if suite else _text(arguments, model.config.max_position_embeddings)
    layers = inspect_layers(model, ids.to(model.device))
    facts = {
        **provenance_of(arguments.checkpoint, model, ["inspect", *argv]),
        "data": suite or arguments.text or "stdlib",
        "read": f"{ids.shape[0]} sequences of {ids.shape[1]} tokens",
        "seed": (arguments.seed or 0) if suite is None else None,
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    paths = save(layers, facts, folder)
    print(markdown(layers, facts))
    for path in paths:
        print(f"wrote {path}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa inspect",
        description="What the Mesa layers of a checkpoint hold and solve, by layer, head and position: gates, lambda, condition numbers, "
        "iterations, and how far the solve turns what is read. Writes inspect.md, inspect.json and three pictures.",
        allow_abbrev=False,
    )
    add_arguments(parser, "inspect")
    add = parser.add_argument
    add("--length", type=int, help="tokens of each sequence of text (default: the training length)")
    add("--sequences", type=int, default=8, help="how many are read, at a time (default: %(default)s)")
    add("--seed", type=int, help="of the choice of text (default: 0)")
    return parser


def _suite(spec: str, arguments: argparse.Namespace) -> torch.Tensor:
    for name in ("text", "length", "seed"):
        if getattr(arguments, name) is not None:
            raise UserError(f"{name}: the checkpoint was trained on {spec}, and reads that")
    suite = synthetic.get(spec)
    return torch.from_numpy(suite.validation[0][0].generate("validation", arguments.sequences, suite.seed)["input_ids"])


def _text(arguments: argparse.Namespace, trained: int) -> torch.Tensor:
    with mistakes_of(OSError, ValueError, prefix=f"checkpoint {arguments.checkpoint!r}: "):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_of(arguments.checkpoint))
    return text_blocks(
        tokenizer, arguments.text or "stdlib", arguments.length or trained, arguments.sequences, arguments.seed or 0
    )
