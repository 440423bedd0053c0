"""Forward pass of the Mesa op in PyTorch."""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.nonfinite import Nonfinite
from fla_mesa.ops.pytorch.problem import Problem
from fla_mesa.ops.pytorch.solver import conjugate_gradients
from fla_mesa.ops.types import ChunkForward


def chunk_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    *,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    max_steps: int,
    tolerance: float,
) -> ChunkForward:
    """See :func:`fla_mesa.ops.chunk_mesa_net`; q and k come normalised. Returns what the backward pass and the caller need."""
    boundaries = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    nonfinite = Nonfinite(k, v, g, beta, cu_seqlens)
    k, v, g, beta = nonfinite.clean(k, v, g, beta)
    problem = Problem(k, v, g, beta, lamb, h_kk_init, h_kv_init, boundaries)
    b, K = problem.split_scaled(q), k.shape[-1]
    o, x = torch.empty_like(problem.v), torch.empty_like(b)
    iterations, residual = b.new_empty(b.shape[:2], dtype=torch.int32), b.new_empty(b.shape[:2])
    for group in problem.groups():
        inner = problem.inner_decay(group).mul_(problem.beta[group].unsqueeze(-2))  # M, [Z, C, C]
        states = problem.states_at(problem.states, group)
        operator = problem.operator(group, inner, states[..., :K])
        x[group], iterations[group], residual[group] = conjugate_gradients(operator, b[group], max_steps, tolerance)
        scores = torch.bmm(x[group], problem.k[group].mT).mul_(inner)
        torch.baddbmm(
            torch.bmm(x[group] * problem.entry_decay(group), states[..., K:]), scores, problem.v[group], out=o[group]
        )
    join = problem.tiles.join
    h_kk, h_kv = nonfinite.mark_states(*problem.last_states())
    return ChunkForward(
        o=nonfinite.mark(join(o), channels=True).to(v.dtype),
        x=nonfinite.mark(problem.join_scaled(x)),
        h_kk=h_kk,
        h_kv=h_kv,
        iterations=join(iterations),
        residual=nonfinite.mark(join(residual)).float(),
    )
