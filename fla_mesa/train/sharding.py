"""Shards parameters, gradients and optimizer state over torchrun's processes with plain PyTorch: FSDP2 and distributed checkpoints.

With gloo on CPUs as with NCCL on GPUs. A checkpoint of such a run holds, in place of `model.safetensors` and `optimizer.pt`:

    weights_of_ranks/  optimizer_of_ranks/     a file a process, and `.metadata`, which says where each piece of each tensor is

so that no process ever has the whole of it. Going on is tested with as many processes as wrote it.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from fla_mesa.errors import UserError

WEIGHTS, OPTIMIZER = "weights_of_ranks", "optimizer_of_ranks"


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shards a model over all processes, in place, block by block. Every process must hold the same weights when calling it.

    Computation stays in the dtype that it is called in: under autocast, what is gathered is float32, so that the figures are those of
    one process.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    blocks = set(model._no_split_modules or ())
    for module in reversed(list(model.modules())):  # from the inside out
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def save_weights(model: nn.Module, checkpoint: Path) -> None:
    """Saves the sharded weights. All processes must call this, as all functions below except `assemble`."""
    save({"model": get_model_state_dict(model)}, checkpoint_id=checkpoint / WEIGHTS)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    state = {"model": get_model_state_dict(model)}
    load(state, checkpoint_id=checkpoint / WEIGHTS)
    set_model_state_dict(model, state["model"])


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=checkpoint / OPTIMIZER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    state = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    load(state, checkpoint_id=checkpoint / OPTIMIZER)
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def gather(model: PreTrainedModel) -> dict[str, Any]:
    """The whole model's weights in the first process's memory, shared ones once; an empty dictionary elsewhere."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return without_tied(get_model_state_dict(model, options=options), model)


def assemble(checkpoint: Path) -> PreTrainedModel:
    """The whole model of a checkpoint that several processes wrote, in one process."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # that is meant
        load({"model": without_tied(model.state_dict(), model)}, checkpoint_id=checkpoint / WEIGHTS, no_dist=True)
    return model


def without_tied(state: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """The weights without those that are others under a second name."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return {name: value for name, value in state.items() if name not in tied}


def is_sharded(checkpoint: Path) -> bool:
    """Whether several processes wrote pieces of this checkpoint."""
    return (checkpoint / WEIGHTS).is_dir()


def check_kind(checkpoint: Path, sharded: bool) -> None:
    """Checks that a checkpoint was saved with, or without, sharding as the present run is.

    Raises:
        UserError: It was not.
    """
    if is_sharded(checkpoint) != sharded:
        saved, now = ("with", "without") if is_sharded(checkpoint) else ("without", "with")
        raise UserError(
            f"shard: {checkpoint} was saved {saved} --shard, so continue it the same way; got a command {now} it"
        )
