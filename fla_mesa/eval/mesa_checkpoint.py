"""What `fla-mesa sweep` and `fla-mesa inspect` share: a checkpoint with Mesa layers, a folder, where the figures are from."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

import torch
from transformers import PreTrainedModel

from fla_mesa.errors import UserError
from fla_mesa.eval.checkpoint import check_checkpoint, load_model
from fla_mesa.eval.devices import check_device
from fla_mesa.layers.solver import mesa_layers
from fla_mesa.provenance import commit, device_name, versions


def add_arguments(parser: argparse.ArgumentParser, folder: str) -> None:
    """What both commands take: the checkpoint, the text, where to compute, and where the report goes, `folder` if nothing is said."""
    add = parser.add_argument
    add("checkpoint", help="a MesaNet checkpoint, or the folder of a PEFT adapter to one")
    add("--output_dir", default=folder, help="where the report goes (default: %(default)s)")
    text = "held-out text for a checkpoint of text: stdlib (default), a text file, a .jsonl file or a folder"
    add("--text", help=text)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def load_mesa(checkpoint: str, device: str) -> PreTrainedModel:
    """The model of a checkpoint on a device, ready to be evaluated.

    Raises:
        UserError: No checkpoint, no Mesa layer in it, or no such device.
    """
    check_checkpoint(checkpoint)
    where = check_device(device)
    model = load_model(checkpoint)
    model.to(where)  # pyright: ignore[reportArgumentType] (transformers' own typing)
    if not mesa_layers(model):
        raise UserError(
            f"checkpoint {checkpoint!r} is a {model.config.model_type!r}; only Mesa layers ('mesanet') have a solver to look at"
        )
    return model


def new_folder(path: str) -> Path:
    """The folder of a report, which need not exist yet. Raises UserError if a file is in its way."""
    folder = Path(path)
    if file := next((place for place in (folder, *folder.parents) if place.is_file()), None):
        raise UserError(f"output_dir: {str(file)!r} is a file")
    return folder


def provenance_of(checkpoint: str, model: PreTrainedModel, argv: list[str]) -> dict[str, str | int | None]:
    """What a report says first; `argv` is the line behind ``fla-mesa``."""
    return {
        "checkpoint": Path(checkpoint).name,
        "command": shlex.join(["fla-mesa", *argv]),
        "device": device_name(model.device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": commit(),
        "parameters": f"{model.num_parameters():,}, {str(model.dtype).removeprefix('torch.')}",
        "training length": model.config.max_position_embeddings,
    }
