"""Launches of the backward pass."""

from __future__ import annotations

import torch
from fla.utils import input_guard

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import (
    CHUNK,
    compute_states,
    cumulative_gates,
    cut,
    local_cumsum,
    marked_beta,
    n_blocks,
    state_blocks,
)
from fla_mesa.ops.triton.kernels_backward import keys_values_backward_kernel, solve_backward_kernel
from fla_mesa.ops.triton.kernels_states import states_backward_kernel
from fla_mesa.ops.triton.plan import (
    Plan,
    gradient_blocks,
    kind_of,
    make_stages,
    positions_block,
    size_class,
)
from fla_mesa.ops.triton.stages import lay_out
from fla_mesa.ops.types import ChunkGradients


@input_guard  # pyright: ignore[reportArgumentType] (fla types it for functions that return a tensor)
def chunk_backward(
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    x: torch.Tensor,
    do: torch.Tensor,
    dh_kk: torch.Tensor | None,
    dh_kv: torch.Tensor | None,
    *,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    max_steps: int,
    tolerance: float,
    stages: tuple[Plan, ...] = (),
) -> ChunkGradients:
    """The backward pass in Triton kernels, given the solution x of the forward pass.

    Gradients of q, k and v come in their dtype, the others in float32.

    Sums over positions and tiles are taken in a fixed order: the same inputs give the same bits, as long as autotuning (whose choices
    Triton keeps on disk) picks the same configurations.

    Args:
        do: Gradient of the output ``[B, T, H, V]``.
        dh_kk: Gradient of the final ``H``, ``[N, H, K, K]``, or None.
        dh_kv: Gradient of the final ``G``, ``[N, H, K, V]``, or None.
        stages: Tile shapes and precisions of the solve, as in ``chunk_forward``.

    Raises:
        ValueError: There are no gradients of a solve without steps.
    """
    check_gradients(max_steps)
    B, T, H, K, V = *k.shape, v.shape[-1]
    stages = stages or make_stages(K, tolerance, kind=kind_of(k.device))
    FINE = stages[0].FINE
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, h_kk_init, h_kv_init, chunks, FINE)

    dx, y = torch.empty_like(x), torch.empty_like(x)
    da_rows, residual = k.new_empty(2, B, T, H, dtype=torch.float32)
    before, dlamb = None, []
    for stage in lay_out(stages, B * H * chunks.per_grid, k):
        if stage.todo is not None:
            before, residual = residual, residual.clone()
        # Zero, because a later stage writes those of its tiles that it has.
        dlamb.append(k.new_zeros(chunks.total * (CHUNK // stage.plan.BR), H, K, dtype=torch.float32))
        solve_backward_kernel[stage.grid](
            k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, do=do, dx=dx, y=y,
            da_rows=da_rows, dlamb=dlamb[-1], residual=residual, r=torch.empty_like(x),
            cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid,
            max_steps=max_steps, tolerance=tolerance, H=H, K=K, V=V, BE=min(stage.plan.BK, 64), before=before,
            **stage.arguments,
        )  # fmt: skip

    dh_kk_chunks, dh_kv_chunks = torch.empty_like(states.h_kk), torch.empty_like(states.h_kv)
    has_init = h_kk_init is not None
    dh_kk_init = torch.empty_like(states.h_kk_final) if has_init else None
    dh_kv_init = torch.empty_like(states.h_kv_final) if has_init else None
    blocks = state_blocks(K, V) | {"BP": positions_block(kind_of(k.device))}
    parts = n_blocks(blocks)
    inner = k.new_empty(chunks.total, H, parts, dtype=torch.float32)
    programs = chunks.n_sequences * H * parts
    states_backward_kernel[(programs,)](
        x=x, y=y, do=do, g=a, h_kk=states.h_kk, h_kv=states.h_kv, h_kk_final=states.h_kk_final,
        h_kv_final=states.h_kv_final, dh_kk_final=dh_kk, dh_kv_final=dh_kv, dh_kk=dh_kk_chunks, dh_kv=dh_kv_chunks,
        dh_kk_init=dh_kk_init, dh_kv_init=dh_kv_init, inner=inner, cu_seqlens=chunks.cu_seqlens,
        chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK, PRECISION=FINE, **blocks,
    )  # fmt: skip

    # y is dq, in float32.
    dq = None if k.dtype == torch.float32 else torch.empty_like(k)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dbeta, da = torch.empty_like(da_rows), torch.empty_like(da_rows)
    blocks = gradient_blocks(K, V, k.dtype, FINE)
    programs = B * H * chunks.per_grid * (CHUNK // blocks["BR"])
    keys_values_backward_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, x=x, y=y, do=do, dh_kk=dh_kk_chunks, dh_kv=dh_kv_chunks, inner=inner.sum(-1),
        da_rows=da_rows, dq=dq, dk=dk, dv=dv, dbeta=dbeta, da=da, cu_seqlens=chunks.cu_seqlens,
        chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK,
        **blocks,
    )  # fmt: skip
    dg = local_cumsum(da, chunk_size=CHUNK, reverse=True, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices)
    return ChunkGradients(y if dq is None else dq, dk, dv, dg, dbeta, torch.cat(dlamb).sum(0), dh_kk_init, dh_kv_init)
