"""The stand-ins compute in float32 whatever their inputs, as fla's kernels do; float64 stays float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def up(x: torch.Tensor) -> torch.Tensor:
    """`x` in the dtype to compute in."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that turns autocast off, which would compute matrix products in 16 bits."""
    return torch.autocast("cpu", enabled=False)(function)
