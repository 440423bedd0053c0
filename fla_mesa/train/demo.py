"""`fla-mesa demo`: a tiny MesaNet learns the source code of this Python in minutes, and shows how far it came."""

import argparse
import sys
from pathlib import Path

from fla_mesa.data import TokenBlocks
from fla_mesa.data.tokenizer import is_byte_tokenizer
from fla_mesa.data.yardsticks import UNIFORM_BITS_PER_BYTE, bigram_bits_per_byte
from fla_mesa.train import command
from fla_mesa.train.recipe import Run
from fla_mesa.train.sample import sample
from fla_mesa.train.settings import parse

PROMPT = "def "
# Found by trial on 2 cores; a longer run goes on learning.
SETTINGS = {
    "model": "mesanet",
    "size": "tiny",
    "output_dir": "runs/demo",
    "max_steps": "500",
    "eval_steps": "100",
    "save_steps": "100",
    "eval_tokens": "32768",
    "per_device_eval_batch_size": "16",
}


def _parse(argv: list[str]) -> list[str]:
    """The command line of the training: the demo's settings, then what the user gave, which counts where both name a flag."""
    parser = argparse.ArgumentParser(
        prog="fla-mesa demo",
        usage="fla-mesa demo [flags of fla-mesa train]",
        description="Train a tiny MesaNet on the source code of Python's standard library, compare its bits per byte with "
        "two yardsticks, and let it write. Interrupted, it goes on where it was when started again; --overwrite starts anew.",
        epilog="It is fla-mesa train "
        + " ".join(f"--{name} {value}" for name, value in SETTINGS.items())
        + " --resume.",
    )
    _, given = parser.parse_known_args(argv)
    again = [] if "--overwrite" in given else ["--resume"]
    return [word for name, value in SETTINGS.items() for word in (f"--{name}", value)] + [*again, *given]


def main(argv: list[str]) -> int:
    """Runs the demo; returns the exit code, as `fla-mesa train` does."""
    flags = _parse(argv)
    try:
        settings, arguments = parse(flags)
        run = Run(settings, arguments, command=["fla-mesa", "demo", *argv])
        if run.splits.tokenizer is None or not is_byte_tokenizer(run.splits.tokenizer):
            raise ValueError("tokenizer: the demo's yardsticks are of bytes; use fla-mesa train for other tokens")
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        print(f"fla-mesa demo: {error}", file=sys.stderr)
        return 2
    code = command.finish(run)
    if code == 0 and arguments.process_index == 0:
        print(report(run))
    return code


def report(run: Run) -> str:
    """The finished run beside two yardsticks, and a sample of what it writes."""
    train, validation = run.splits.train, run.splits.validation
    assert isinstance(train, TokenBlocks) and isinstance(validation, TokenBlocks)
    figures = {
        "uniform bytes": UNIFORM_BITS_PER_BYTE,
        "byte bigram, add-one": bigram_bits_per_byte(train, validation),
        f"{run.settings.model} {run.settings.size}": run.metrics["bits_per_byte"],
    }
    width = max(map(len, figures))
    table = "\n".join(f"  {name:<{width}}  {bits:.3f}" for name, bits in figures.items())
    text = sample(Path(run.folder), PROMPT, seed=run.arguments.seed)
    indented = "\n".join(f"  | {line}" for line in text.splitlines())
    return (
        f"\nvalidation text, bits per byte (lower is better)\n{table}\n"
        f"\nwhat the model writes after {PROMPT!r} (sampled at temperature 0.8)\n{indented}\n"
        f"\nsaved: {run.folder}/ (model.safetensors, tokenizer, metrics.json, loss.png, checkpoints)"
    )
