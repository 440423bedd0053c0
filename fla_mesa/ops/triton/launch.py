"""Launches of the kernels: the forward and the backward pass over sequences, and the decoding step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from fla.utils import input_guard

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import Chunks, cumulative_gates, cut, local_cumsum, marked_beta
from fla_mesa.ops.triton.kernels_linear import keys_values_backward_kernel, states_backward_kernel, states_kernel
from fla_mesa.ops.triton.kernels_solve import solve_backward_kernel, solve_output_kernel
from fla_mesa.ops.triton.kernels_step import step_kernel
from fla_mesa.ops.triton.plan import (
    CHUNK,
    Plan,
    forward_positions_block,
    gradient_blocks,
    kind_of,
    make_plan,
    positions_block,
    power_of_two,
    size_class,
)
from fla_mesa.ops.types import ChunkForward, ChunkGradients, DecodingStep

STATE_BLOCK = 64


class States(NamedTuple):
    """The states H and G before each chunk and after each sequence."""

    h_kk: torch.Tensor  # [chunks, H, K, K] before each chunk, float32
    h_kv: torch.Tensor  # [chunks, H, K, V]
    h_kk_final: torch.Tensor  # [N, H, K, K] after the last position
    h_kv_final: torch.Tensor  # [N, H, K, V]


def state_blocks(K: int, V: int) -> dict[str, int]:
    """Blocks of the state kernels and their number."""
    BK = min(STATE_BLOCK, power_of_two(K))
    BC = min(STATE_BLOCK, power_of_two(max(K, V)))
    return {"BK": BK, "BC": BC, "N_K": triton.cdiv(K, BK), "N_CK": triton.cdiv(K, BC), "N_CV": triton.cdiv(V, BC)}


def n_blocks(blocks: dict[str, int]) -> int:
    """Of both states of a head."""
    return blocks["N_K"] * (blocks["N_CK"] + blocks["N_CV"])


def compute_states(
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    beta: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    chunks: Chunks,
    precision: str,
) -> States:
    T, H, K, V = *k.shape[1:], v.shape[-1]
    states = States(
        k.new_empty(chunks.total, H, K, K, dtype=torch.float32),
        k.new_empty(chunks.total, H, K, V, dtype=torch.float32),
        k.new_empty(chunks.n_sequences, H, K, K, dtype=torch.float32),
        k.new_empty(chunks.n_sequences, H, K, V, dtype=torch.float32),
    )
    blocks = state_blocks(K, V)
    programs = chunks.n_sequences * H * n_blocks(blocks)
    states_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, h_kk=states.h_kk, h_kv=states.h_kv, h_kk_init=h_kk_init, h_kv_init=h_kv_init,
        h_kk_final=states.h_kk_final, h_kv_final=states.h_kv_final, cu_seqlens=chunks.cu_seqlens,
        chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK,
        BP=forward_positions_block(kind_of(k.device), k.dtype), PRECISION=precision, **blocks,
    )  # fmt: skip
    return states


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
    plan: Plan | None = None,
) -> ChunkForward:
    """The forward pass in Triton kernels. Shapes ``[B, T, H, ...]`` as in ``fla_mesa.ops.chunk_mesa_net``; q and k are not normalized.

    Args:
        plan: Tile shapes and precisions of the solve; the default for key size, dtype and tolerance if None.
    """
    B, T, H, K, V = *k.shape, v.shape[-1]
    plan = plan or make_plan(K, k.dtype, tolerance, kind=kind_of(k.device))
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, h_kk_init, h_kv_init, chunks, plan.FINE)
    x = k.new_empty(B, T, H, K, dtype=torch.float32)
    o = torch.empty_like(v)
    iterations = k.new_empty(B, T, H, dtype=torch.int32)
    residual = k.new_empty(B, T, H, dtype=torch.float32)
    solve_output_kernel[chunks.tiles(H)](
        q=q, k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, o=o, iterations=iterations,
        residual=residual, r=None if plan.RESIDENT else torch.empty_like(x), cu_seqlens=chunks.cu_seqlens,
        chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid, size=size_class(chunks.total * H), max_steps=max_steps,
        tolerance=tolerance, H=H, K=K, V=V, BV=output_block(V), **plan._asdict(),
    )  # fmt: skip
    return ChunkForward(o, x, states.h_kk_final, states.h_kv_final, iterations, residual)


def output_block(V: int) -> int:
    """Columns of the output computed at a time: larger blocks compute x_t'k_s less often."""
    return min(128, power_of_two(V))


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
    plan: Plan | None = None,
) -> ChunkGradients:
    """The backward pass in Triton kernels, given the solution x of the forward pass.

    Gradients of q, k and v come in their dtype, the others in float32.

    Sums over positions and tiles are taken in a fixed order: the same inputs give the same bits, as long as autotuning (whose choices
    Triton keeps on disk) picks the same configurations.

    Args:
        do: Gradient of the output ``[B, T, H, V]``.
        dh_kk: Gradient of the final ``H``, ``[N, H, K, K]``, or None.
        dh_kv: Gradient of the final ``G``, ``[N, H, K, V]``, or None.
        plan: Tile shapes and precisions of the solve, as in ``chunk_forward``.

    Raises:
        ValueError: There are no gradients of a solve without steps.
    """
    check_gradients(max_steps)
    B, T, H, K, V = *k.shape, v.shape[-1]
    plan = plan or make_plan(K, k.dtype, tolerance, kind=kind_of(k.device))
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, h_kk_init, h_kv_init, chunks, plan.FINE)

    dx, y = torch.empty_like(x), torch.empty_like(x)
    da_rows, residual = k.new_empty(2, B, T, H, dtype=torch.float32)
    solve_backward_kernel[chunks.tiles(H)](
        k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, do=do, dx=dx, y=y, da_rows=da_rows,
        residual=residual, r=torch.empty_like(x), cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid,
        size=size_class(chunks.total * H), max_steps=max_steps, tolerance=tolerance, H=H, K=K, V=V, BE=min(plan.BK, 64),
        **plan._asdict(),
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
        chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK, PRECISION=plan.FINE, **blocks,
    )  # fmt: skip

    # y is dq, in float32.
    dq = None if k.dtype == torch.float32 else torch.empty_like(k)
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dbeta, da = torch.empty_like(da_rows), torch.empty_like(da_rows)
    dlamb = k.new_empty(chunks.total, H, K, dtype=torch.float32)
    blocks = gradient_blocks(K, V, k.dtype, plan.FINE)
    programs = B * H * chunks.per_grid * (CHUNK // blocks["BR"])
    keys_values_backward_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, x=x, y=y, do=do, dh_kk=dh_kk_chunks, dh_kv=dh_kv_chunks, inner=inner.sum(-1),
        da_rows=da_rows, dq=dq, dk=dk, dv=dv, dbeta=dbeta, da=da, dlamb=dlamb, cu_seqlens=chunks.cu_seqlens,
        chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK,
        **blocks,
    )  # fmt: skip
    dg = local_cumsum(da, chunk_size=CHUNK, reverse=True, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices)
    return ChunkGradients(y if dq is None else dq, dk, dv, dg, dbeta, dlamb.sum(0), dh_kk_init, dh_kv_init)


@input_guard  # pyright: ignore[reportArgumentType] (fla types it for functions that return a tensor)
def decoding_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk: torch.Tensor,
    h_kv: torch.Tensor,
    *,
    max_steps: int,
    tolerance: float,
) -> DecodingStep:
    """One position in one kernel, without gradients. Shapes ``[B, H, ...]`` as in ``fla_mesa.ops.mesa_net_decoding_one_step``."""
    B, H, K, V = *k.shape, v.shape[-1]
    BK = power_of_two(K)
    result = DecodingStep(
        torch.empty_like(v),
        torch.empty_like(h_kk, dtype=torch.float32),
        torch.empty_like(h_kv, dtype=torch.float32),
        k.new_empty(B, H, dtype=torch.int32),
        k.new_empty(B, H, dtype=torch.float32),
    )
    resident = BK <= 128
    step_kernel[(B * H,)](
        q=q, k=k, v=v, g=g, beta=beta, lamb=lamb, h_kk=h_kk, h_kv=h_kv, h_kk_new=result.h_kk, h_kv_new=result.h_kv,
        o=result.o, iterations=result.iterations, residual=result.residual,
        scratch=None if resident else k.new_empty(B, H, K, dtype=torch.float32), size=size_class(B * H), max_steps=max_steps,
        tolerance=tolerance, H=H, K=K, V=V, BK=BK, BV=min(power_of_two(V), 64), BD=32, RESIDENT=resident,
    )  # fmt: skip
    return result
