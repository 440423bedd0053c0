"""The back end "exact": solves every system densely in float64, with gradients. For measuring the error of the iterative back ends.

Everything but the solve is the PyTorch back end's. A position takes K^3 operations and, while its tile is solved, K^2 numbers.
"""

from __future__ import annotations

import torch

from fla_mesa.ops import pytorch
from fla_mesa.ops.pytorch import TOLERANCE, l2_normalize
from fla_mesa.ops.pytorch.solver import Operator
from fla_mesa.ops.types import ChunkForward, ChunkGradients, DecodingStep, QueryForward, QueryGradients

__all__ = [
    "TOLERANCE",
    "chunk_backward",
    "chunk_forward",
    "decoding_step",
    "l2_normalize",
    "query_backward",
    "query_forward",
    "why_not",
]

ENTRIES = 2**24  # of the matrices that exist at a time


def why_not(function: str, tensors, *, max_steps: int, tolerance: float | None) -> None:
    """Always None: it supports everything."""


def solve_exactly(
    operator: Operator, b: torch.Tensor, max_steps: int, tolerance: float, preconditioner: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As ``conjugate_gradients`` on ``b [Z, C, K]``, by Gaussian elimination; ignores the settings of steps."""
    Z, C, K = b.shape
    scale = b.abs().amax(-1, keepdim=True)
    b = b.div_(scale.masked_fill(scale == 0, 1))
    x = torch.empty_like(b)
    for tiles in torch.arange(Z, device=b.device).split(max(1, ENTRIES // (C * K * K))):
        a = operator.select(tiles).matrices()
        if a.shape[1] == 1:  # one matrix for all rows
            x[tiles] = torch.linalg.solve_ex(a.squeeze(1), b[tiles].mT).result.mT
        else:
            x[tiles] = torch.linalg.solve_ex(a, b[tiles]).result
    r = b - operator(x, torch.empty_like(x))
    residual = r.norm(dim=-1) / b.norm(dim=-1).masked_fill(scale.squeeze(-1) == 0, 1)
    return x.mul_(scale), torch.zeros_like(residual, dtype=torch.int32), residual


def _double(*tensors: torch.Tensor | None) -> list:
    return [None if x is None else x.double() for x in tensors]


def _state_dtype(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def chunk_forward(q, k, v, g, beta, lamb, h_kk_init, h_kv_init, **options) -> ChunkForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    out = pytorch.chunk_forward(*_double(q, k, v, g, beta, lamb, h_kk_init, h_kv_init), **options, solve=solve_exactly)
    dtype = _state_dtype(k)
    return out._replace(o=out.o.to(v.dtype), h_kk=out.h_kk.to(dtype), h_kv=out.h_kv.to(dtype))


def chunk_backward(*tensors, **options) -> ChunkGradients:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.chunk_backward(*_double(*tensors), **options, solve=solve_exactly)


def decoding_step(q, k, v, g, beta, lamb, h_kk, h_kv, **options) -> DecodingStep:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    out = pytorch.decoding_step(*_double(q, k, v, g, beta, lamb, h_kk, h_kv), **options, solve=solve_exactly)
    return out._replace(o=out.o.to(v.dtype), h_kk=out.h_kk.to(h_kk.dtype), h_kv=out.h_kv.to(h_kv.dtype))


def query_forward(q, h_kk, h_kv, lamb, **options) -> QueryForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    out = pytorch.query_forward(*_double(q, h_kk, h_kv, lamb), **options, solve=solve_exactly)
    return out._replace(o=out.o.to(q.dtype))


def query_backward(*tensors, **options) -> QueryGradients:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    return pytorch.query_backward(*_double(*tensors), **options, solve=solve_exactly)
