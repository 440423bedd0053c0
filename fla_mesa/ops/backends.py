"""Which implementation of the op runs.

A back end is a module with ``chunk_forward``, ``chunk_backward``, ``decoding_step`` and ``l2_normalize``, imported when it is first asked
for.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch

BACKENDS = {"pytorch": "fla_mesa.ops.pytorch", "triton": "fla_mesa.ops.triton"}


def choose_backend(name: str | None, q: torch.Tensor) -> ModuleType:
    """The back end of this name; if the name is None, Triton on a GPU and PyTorch elsewhere (and for what the kernels do not take)."""
    if name is None:
        fits = q.device.type == "cuda" and q.dtype != torch.float64 and q.shape[-1] <= 256
        name = "triton" if fits and importlib.util.find_spec("triton") else "pytorch"
    if name not in BACKENDS:
        raise ValueError(f"backend must be None or one of {sorted(BACKENDS)}; got {name!r}")
    return importlib.import_module(BACKENDS[name])


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """``x / sqrt(sum x^2 + 1e-6)`` over the last dimension, in the dtype of x; inside float32 or better. fla's definition."""
    return choose_backend(None, x).l2_normalize(x)
