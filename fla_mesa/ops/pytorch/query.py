"""Many queries on one state, in PyTorch: one tile with a row per query, all with the same matrix."""

from __future__ import annotations

import torch

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.pytorch.solver import Solve, conjugate_gradients
from fla_mesa.ops.pytorch.step import StateOperator
from fla_mesa.ops.types import QueryForward, QueryGradients


def query_forward(
    q: torch.Tensor,
    h_kk: torch.Tensor,
    h_kv: torch.Tensor,
    lamb: torch.Tensor,
    *,
    max_steps: int,
    tolerance: float,
    solve: Solve = conjugate_gradients,
) -> QueryForward:
    """See :func:`fla_mesa.ops.mesa_net_query`."""
    dtype = torch.promote_types(h_kk.dtype, torch.promote_types(q.dtype, torch.float32))
    x, iterations, residual = _solve(q.transpose(1, 2).to(dtype), h_kk, lamb, max_steps, tolerance, solve)
    o = (x @ h_kv.to(dtype)).transpose(1, 2)
    return QueryForward(o.to(q.dtype), x.transpose(1, 2), iterations.transpose(1, 2), residual.transpose(1, 2).float())


def query_backward(
    h_kk: torch.Tensor,
    h_kv: torch.Tensor,
    lamb: torch.Tensor,
    x: torch.Tensor,
    do: torch.Tensor,
    *,
    max_steps: int,
    tolerance: float,
    solve: Solve = conjugate_gradients,
) -> QueryGradients:
    """With ``y = (H + diag(lamb))^-1 G do [B, T, H, K]``: ``dq = y``, ``dH = - sum y x'``, ``dG = sum x do'``, ``dlamb = - sum x * y``."""
    if solve is conjugate_gradients:
        check_gradients(max_steps)
    x, do = x.transpose(1, 2), do.transpose(1, 2).to(x.dtype)  # [B, H, T, *]
    y, _, _ = _solve(do @ h_kv.to(x.dtype).mT, h_kk, lamb, max_steps, tolerance, solve)
    return QueryGradients(q=y.transpose(1, 2), h_kk=-(y.mT @ x), h_kv=x.mT @ do, lamb=-(x * y).sum((0, 2)))


def _solve(b: torch.Tensor, h: torch.Tensor, lamb: torch.Tensor, max_steps: int, tolerance: float, solve: Solve):
    """``(H + diag(lamb)) x = b`` for ``b [B, H, T, K]``; what ``conjugate_gradients`` returns, ``[B, H, T, ...]``."""
    unit = lamb.to(b.dtype).rsqrt()[:, None]  # [H, 1, K]
    matrix = unit.mT * h.to(b.dtype) * unit
    x, *rest = solve(StateOperator(matrix.flatten(0, 1)), (b * unit).flatten(0, 1), max_steps, tolerance)
    return x.view_as(b) * unit, *(r.view(b.shape[:-1]) for r in rest)
