"""Launches of the forward pass."""

from __future__ import annotations

import torch
from fla.utils import input_guard

from fla_mesa.ops.triton.chunks import compute_states, cumulative_gates, cut, marked_beta
from fla_mesa.ops.triton.kernels_forward import solve_output_kernel
from fla_mesa.ops.triton.plan import Plan, kind_of, make_stages, power_of_two
from fla_mesa.ops.triton.stages import lay_out
from fla_mesa.ops.types import ChunkForward


@input_guard  # pyright: ignore[reportArgumentType] (fla types it for functions that return a tensor)
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
    stages: tuple[Plan, ...] = (),
) -> ChunkForward:
    """The forward pass in Triton kernels. Shapes ``[B, T, H, ...]`` as in ``fla_mesa.ops.chunk_mesa_net``; q and k are not normalized.

    Args:
        stages: Tile shapes and precisions of the solve; each stage takes the rows that those before it left above the tolerance.
            The default for the key size and the tolerance if empty.
    """
    B, T, H, K, V = *k.shape, v.shape[-1]
    stages = stages or make_stages(K, tolerance, kind=kind_of(k.device))
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, h_kk_init, h_kv_init, chunks, stages[0].FINE)
    x = k.new_empty(B, T, H, K, dtype=torch.float32)
    o = torch.empty_like(v)
    iterations = k.new_empty(B, T, H, dtype=torch.int32)
    before, residual = None, k.new_empty(B, T, H, dtype=torch.float32)
    for stage in lay_out(stages, B * H * chunks.per_grid, k):
        if stage.todo is not None:
            before, residual = residual, residual.clone()
        solve_output_kernel[stage.grid](
            q=q, k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, o=o,
            iterations=iterations, residual=residual, r=None if stage.plan.RESIDENT else torch.empty_like(x),
            cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid,
            max_steps=max_steps, tolerance=tolerance, H=H, K=K, V=V, BV=output_block(V, stage.todo is not None),
            before=before, **stage.arguments,
        )  # fmt: skip
    return ChunkForward(o, x, states.h_kk_final, states.h_kv_final, iterations, residual)


def output_block(V: int, AGAIN: bool) -> int:
    """Columns of the output computed at a time: larger blocks compute x_t'k_s less often; 128 would spill in a second stage."""
    return min(64 if AGAIN else 128, power_of_two(V))
