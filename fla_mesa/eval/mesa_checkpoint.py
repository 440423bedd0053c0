"""What `fla-mesa sweep` and `fla-mesa inspect` share: a checkpoint with Mesa layers, a folder, where the figures are from."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fla.models  # noqa: F401 (hybrids)
import torch
from transformers import PreTrainedModel

from fla_mesa.devices import check_device
from fla_mesa.errors import UserError, check_folder, check_integer
from fla_mesa.layers.solver import mesa_layers
from fla_mesa.models.checkpoint import check_checkpoint, load_model, recorded_suite
from fla_mesa.provenance import commit, device_name, versions


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Of the command `name`, with what both take: the checkpoint, the text, where to compute, and where the report goes."""
    made = argparse.ArgumentParser(prog=f"fla-mesa {name}", description=description, allow_abbrev=False)
    add = made.add_argument
    add("checkpoint", help="a MesaNet checkpoint, or the folder of a PEFT adapter to one")
    add("--output_dir", default=name, help="folder for the report (default: %(default)s)")
    text = "held-out text, for a checkpoint trained on text: stdlib (default), a text file, a .jsonl file or a folder"
    add("--text", help=text)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    add("--seed", type=int, help="seed for choosing the text (default: 0)")
    return made


@dataclass(frozen=True)
class Opened:
    """A checkpoint, ready to be looked at.

    Attributes:
        suite: The synthetic suite that it learnt and so reads, or None for one of text.
        text, seed: What one of text reads.
        facts: What a report says first.
    """

    folder: Path
    model: PreTrainedModel
    suite: str | None
    text: str
    seed: int
    facts: dict[str, object]


def open_checkpoint(
    arguments: argparse.Namespace, line: Sequence[str], least: Mapping[str, int], of_text: Sequence[str]
) -> Opened:
    """Checks what the command line says, then loads the model.

    Args:
        arguments: Those of :func:`parser` and the command's own.
        line: The words behind `fla-mesa`, to be reported.
        least: The smallest allowed value of flags that take an integer.
        of_text: Flags that a checkpoint of a synthetic suite does not take.

    Raises:
        UserError: A flag out of range, no checkpoint, no Mesa layer in it, no such device, or a file in the way.
    """
    for name, low in least.items():
        if getattr(arguments, name) is not None:
            check_integer(name, getattr(arguments, name), low)
    folder, path = check_folder("output_dir", Path(arguments.output_dir)), arguments.checkpoint
    check_checkpoint(path)
    where = check_device(arguments.device)
    model = load_model(path)
    model.to(where)  # pyright: ignore[reportArgumentType] (transformers' own typing)
    if not mesa_layers(model):
        raise UserError(
            f"checkpoint {path!r} is a {model.config.model_type!r}; only Mesa layers ('mesanet') have a solver to look at"
        )
    suite, text, seed = recorded_suite(path), arguments.text or "stdlib", arguments.seed or 0
    for name in of_text if suite else ():
        if getattr(arguments, name) is not None:
            raise UserError(f"{name}: the checkpoint was trained on {suite}, and reads that")
    facts: dict[str, object] = {
        "checkpoint": Path(path).name,
        "command": shlex.join(["fla-mesa", *line]),
        "device": device_name(model.device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": commit(),
        "parameters": f"{model.num_parameters():,}, {str(model.dtype).removeprefix('torch.')}",
        "training length": model.config.max_position_embeddings,
        "data": suite or text,
    }
    if suite is None:
        facts["seed"] = seed
    return Opened(folder, model, suite, text, seed, facts)
