"""Forward pass of the Mesa op in PyTorch."""

from __future__ import annotations

import torch

from fla_mesa.ops.pytorch.nonfinite import Nonfinite
from fla_mesa.ops.pytorch.problem import Problem, States, accumulation_dtype
from fla_mesa.ops.pytorch.segments import plan
from fla_mesa.ops.pytorch.solver import Solve, conjugate_gradients
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
    solve: Solve = conjugate_gradients,
) -> ChunkForward:
    """See :func:`fla_mesa.ops.chunk_mesa_net`; q and k are already normalized. Returns what the backward pass and the caller need."""
    boundaries = cu_seqlens if cu_seqlens_cpu is None else cu_seqlens_cpu
    nonfinite = Nonfinite(k, v, g, beta, cu_seqlens)
    k, v, g, beta = nonfinite.clean(k, v, g, beta)
    (B, T, H, K), V = k.shape, v.shape[-1]
    N = B if boundaries is None else len(boundaries) - 1
    dtype = accumulation_dtype(k)
    o, x = v.new_empty(B, T, H, V), k.new_empty(B, T, H, K, dtype=dtype)
    iterations, residual = k.new_empty(B, T, H, dtype=torch.int32), k.new_empty(B, T, H, dtype=torch.float32)
    h_kk, h_kv = k.new_empty(N, H, K, K, dtype=dtype), k.new_empty(N, H, K, V, dtype=dtype)
    for run in plan((B, T, H), max(K, V), boundaries, k.device):
        sequences = run[0].sequences
        states: States | None = None
        if h_kk_init is not None and h_kv_init is not None:
            states = h_kk_init[sequences], h_kv_init[sequences]
        for segment in run:
            problem = Problem(segment, k, v, g, beta, lamb, states)
            join, place = problem.tiles.join, segment.place
            inner = problem.inner_decay().mul_(problem.beta.mT)  # M, [Z, C, C]
            before = problem.states_before()
            operator = problem.operator(inner, before[..., :K])
            x_, iterations_, residual_ = solve(operator, problem.split_scaled(q), max_steps, tolerance)
            scores = torch.bmm(x_, problem.k.mT).mul_(inner)
            o_ = torch.bmm(scores, problem.v).baddbmm_(x_ * problem.entry_decay, before[..., K:])
            o[place], x[place] = join(o_), problem.join_scaled(x_)
            iterations[place], residual[place] = join(iterations_), join(residual_)
            states = problem.last_states()
        assert states is not None
        h_kk[sequences], h_kv[sequences] = states
    h_kk, h_kv = nonfinite.mark_states(h_kk, h_kv)
    return ChunkForward(
        nonfinite.mark(o, channels=True), nonfinite.mark(x), h_kk, h_kv, iterations, nonfinite.mark(residual)
    )
