"""`fla-mesa export`: merges a checkpoint written by several processes into a folder that `from_pretrained` reads."""

import argparse
from pathlib import Path

from transformers import AutoTokenizer

from fla_mesa import plugins
from fla_mesa.commands import command
from fla_mesa.errors import UserError
from fla_mesa.models.remote_code import write_remote_code
from fla_mesa.train import run_folder, sharding


def export(checkpoint: Path, output_dir: Path) -> None:
    """Merges the pieces, on one process and without a GPU.

    Args:
        checkpoint: A folder `checkpoint-N` of a run with `--shard`, complete.
        output_dir: New, or empty.

    Raises:
        UserError: The checkpoint is missing, whole or incomplete, or the output folder is not empty.
    """
    if not checkpoint.is_dir():
        raise UserError(f"checkpoint: {checkpoint} is not a folder")
    if not sharding.is_sharded(checkpoint):
        reads = (checkpoint / "config.json").exists()
        raise UserError(
            f"checkpoint: {checkpoint} "
            + (
                "is already whole: from_pretrained reads it directly"
                if reads
                else f"is not a checkpoint: it has no {sharding.WEIGHTS}"
            )
        )
    if not run_folder.is_complete(checkpoint):
        raise UserError(f"checkpoint: {checkpoint} is incomplete: the run ended while writing it")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise UserError(f"output_dir: {output_dir} is not empty: name another folder")
    plugins.load_those_of(checkpoint)
    sharding.assemble(checkpoint).save_pretrained(output_dir)
    if (checkpoint / "tokenizer_config.json").exists():
        AutoTokenizer.from_pretrained(checkpoint).save_pretrained(output_dir)
    write_remote_code(output_dir)


@command("export")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0, or 2 for a wrong argument."""
    parser = argparse.ArgumentParser(
        prog="fla-mesa export",
        description="Merge a checkpoint written by `fla-mesa train --shard` into a folder that from_pretrained reads.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint-N folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="output folder; must be new or empty")
    given = parser.parse_args(argv)
    export(given.checkpoint, given.output_dir)
    print(f"wrote the model and its tokenizer to {given.output_dir}")
    return 0
