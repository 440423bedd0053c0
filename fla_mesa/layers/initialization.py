"""Initial values of parameters, including parameters that a trainer has sharded or partitioned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
from torch.distributed.tensor import DTensor, distribute_tensor


def fill(parameter: torch.Tensor, values: torch.Tensor | float) -> None:
    """Writes initial values ``[...]`` into a parameter of that shape; works on the meta device, under FSDP2 and under ZeRO-3.

    Args:
        parameter: A plain tensor, a DTensor of FSDP2, or an empty remnant of ZeRO-3 (DeepSpeed has taken the values away; transformers
            gathers them and initialises again). One that was loaded from a checkpoint is left as it is.
        values: The same on every rank, of the whole parameter's shape, or one number.
    """
    if getattr(parameter, "_is_hf_initialized", False) or parameter.numel() == 0:
        return
    with torch.no_grad():
        if not isinstance(values, torch.Tensor):
            parameter.fill_(values)
        elif isinstance(parameter, DTensor):
            parameter.copy_(distribute_tensor(values.to(parameter.device), parameter.device_mesh, parameter.placements))
        else:
            parameter.copy_(values)


def fan_in(module: nn.Linear | nn.Conv1d) -> int:
    """Number of inputs that one output of a linear map or (depthwise) convolution sums over."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.in_channels // module.groups * module.kernel_size[0]


def gate_biases(init: Sequence[float], num_heads: int) -> list[float]:
    """Biases of ``H`` gates whose sigmoids go from the first number to the last, evenly spaced in the logits; the middle for one head."""
    first, last = (math.log(share / (1 - share)) for share in init)
    steps = [i / (num_heads - 1) for i in range(num_heads)] if num_heads > 1 else [0.5]
    return [first + step * (last - first) for step in steps]


def start_bias(linear: nn.Linear, values: Sequence[float]) -> None:
    """Sets a linear map's bias ``[out]``, now and whenever a model initializes its weights.

    The values are kept with the module that has the bias: transformers initializes no module that has no parameter of its own, so that
    the layer around it would not be asked.
    """
    linear.start = tuple(values)  # pyright: ignore[reportArgumentType]
    reset_bias(linear)


def reset_bias(linear: nn.Linear | nn.Conv1d) -> None:
    """Gives a bias the values that :func:`start_bias` left with its module, else zero."""
    start = getattr(linear, "start", None)
    if linear.bias is not None:
        fill(linear.bias, 0.0 if start is None else torch.tensor(start))
