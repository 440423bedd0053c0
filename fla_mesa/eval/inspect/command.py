"""`fla-mesa inspect CHECKPOINT`: the command line.

    fla-mesa inspect runs/mesa
    fla-mesa inspect runs/mesa --text held_out.txt --length 2048

A checkpoint of text reads held-out text; one that was trained on a synthetic suite reads that suite's validation split.
"""

from __future__ import annotations

import torch

from fla_mesa.commands import command
from fla_mesa.data import synthetic
from fla_mesa.data.documents import random_blocks
from fla_mesa.eval.inspect.measure import inspect_layers
from fla_mesa.eval.inspect.report import in_words, save
from fla_mesa.eval.mesa_checkpoint import open_checkpoint, parser
from fla_mesa.models.checkpoint import tokenizer_of_checkpoint
from fla_mesa.report.sections import as_markdown


@command("inspect")
def main(argv: list[str]) -> int:
    """Run `fla-mesa inspect` with these arguments; 0, or 2 after one line on stderr about a mistake."""
    made = parser(
        "inspect",
        "Show what the Mesa layers of a checkpoint hold and solve, by layer, head and position: gates, lambda, condition numbers, "
        "iterations, and the angle between the plain and the solved read. Writes inspect.html, .md and .json and three pictures.",
    )
    made.add_argument("--length", type=int, help="tokens per sequence of text (default: the training length)")
    made.add_argument(
        "--sequences", type=int, default=8, help="number of sequences, read in one batch (default: %(default)s)"
    )
    given = made.parse_args(argv)
    least = {"sequences": 1, "length": 2, "seed": 0}
    opened = open_checkpoint(given, ["inspect", *argv], least, ("text", "length", "seed"))
    if opened.suite:
        suite = synthetic.get(opened.suite)
        rows = suite.validation[0][0].generate("validation", given.sequences, suite.seed)["input_ids"]
    else:
        tokenizer = tokenizer_of_checkpoint(given.checkpoint)
        length = given.length or opened.model.config.max_position_embeddings
        rows = random_blocks(opened.text, tokenizer, length, given.sequences, opened.seed)
    layers = inspect_layers(opened.model, torch.from_numpy(rows).to(opened.model.device))
    facts = opened.facts | {"read": f"{len(rows)} sequences of {rows.shape[1]} tokens"}
    paths = save(layers, facts, opened.folder)
    print(as_markdown([in_words(layers, facts)]))
    for path in paths:
        print(f"wrote {path}")
    return 0
