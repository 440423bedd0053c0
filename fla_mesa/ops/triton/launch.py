"""Launches of the kernels over sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from fla.utils import input_guard

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import Chunks, cumulative_gates, cut, local_cumsum, marked_beta
from fla_mesa.ops.triton.kernels_gradients import keys_values_backward_kernel
from fla_mesa.ops.triton.kernels_precise import precise_backward_kernel, precise_output_kernel
from fla_mesa.ops.triton.kernels_solve import solve_backward_kernel, solve_output_kernel
from fla_mesa.ops.triton.kernels_states import states_backward_kernel, states_kernel
from fla_mesa.ops.triton.plan import (
    CHUNK,
    STATE_BLOCK,
    Plan,
    forward_positions_block,
    gradient_blocks,
    kind_of,
    make_plan,
    positions_block,
    power_of_two,
    size_class,
)
from fla_mesa.ops.types import ChunkForward, ChunkGradients


class States(NamedTuple):
    root: torch.Tensor | None  # [H, K], the root of lamb; h_kk is over those of its row and column where it is not None
    h_kk: torch.Tensor  # [chunks, H, K, K] before each chunk, float32
    h_kv: torch.Tensor  # [chunks, H, K, V], over the scale of its block where that is not None
    h_kv_scale: torch.Tensor | None  # [chunks, H, blocks]
    h_kk_final: torch.Tensor  # [N, H, K, K] after the last position, float32
    h_kv_final: torch.Tensor  # [N, H, K, V]


def state_blocks(K: int, V: int) -> dict[str, int]:
    """Blocks of the state kernels, and how many of them there are."""
    BK = min(STATE_BLOCK, power_of_two(K))
    BC = min(STATE_BLOCK, power_of_two(max(K, V)))
    return {"BK": BK, "BC": BC, "N_K": triton.cdiv(K, BK), "N_CK": triton.cdiv(K, BC), "N_CV": triton.cdiv(V, BC)}


def of_chunks(
    like: torch.Tensor, total: int, N: int, K: int, V: int, half: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Room for a state [K, N] of each chunk and, where it is float16, for the scale of each of its blocks."""
    H, blocks = like.shape[2], state_blocks(K, V)
    if not half:
        return like.new_empty(total, H, K, N, dtype=torch.float32), None
    parts = blocks["N_K"] * triton.cdiv(N, blocks["BC"])
    return like.new_empty(total, H, K, N, dtype=torch.float16), like.new_empty(total, H, parts, dtype=torch.float32)


def row_length(K: int, plan: Plan) -> int:
    """Columns of x and y: in float16 their exponent follows the K, with which rows still begin at 16 bytes."""
    return K + 8 if plan.HALF else K


def compute_states(
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    chunks: Chunks,
    plan: Plan,
) -> States:
    T, H, K, V = *k.shape[1:], v.shape[-1]
    states = States(
        lamb.float().sqrt() if plan.HALF else None,
        k.new_empty(chunks.total, H, K, K, dtype=torch.float32),
        *of_chunks(k, chunks.total, V, K, V, plan.HALF),
        k.new_empty(chunks.n_sequences, H, K, K, dtype=torch.float32),
        k.new_empty(chunks.n_sequences, H, K, V, dtype=torch.float32),
    )
    blocks = state_blocks(K, V)
    programs = chunks.n_sequences * H * blocks["N_K"] * (blocks["N_CK"] + blocks["N_CV"])
    states_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, **states._asdict(), h_kk_init=h_kk_init, h_kv_init=h_kv_init, cu_seqlens=chunks.cu_seqlens,
        chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK,
        BP=forward_positions_block(kind_of(k.device), k.dtype), PRECISION=plan.FINE, **blocks,
    )  # fmt: skip
    return states


def solve_blocks(K: int, V: int, plan: Plan) -> dict[str, Any]:
    """Sizes of the solve's tiles, as its kernels take them."""
    blocks = {"BT": CHUNK, "BR": plan.BR, "BK": power_of_two(K), "BV": min(STATE_BLOCK, power_of_two(V))}
    if plan.HALF:
        return blocks | {"X": row_length(K, plan), "BC": state_blocks(K, V)["BC"]}
    return blocks | {"BS": plan.BS, "BD": plan.BS, "PRECISION": plan.PRECISION, "FINE": plan.FINE}


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
    """The forward pass in Triton kernels. Shapes as in ``fla_mesa.ops.chunk_mesa_net``; q and k are used as they are.

    x comes as the kernels keep it: float32 ``[B, T, H, K]`` or, by the plan, float16 ``[B, T, H, K + 8]``, where column K holds the
    exponent of the power of two that the row is to be multiplied by.

    Args:
        plan: Tiles and precisions; the default for these inputs if None.
    """
    B, T, H, K, V = *k.shape, v.shape[-1]
    plan = plan or make_plan(K, k.dtype, tolerance, kind=kind_of(k.device))
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, lamb, h_kk_init, h_kv_init, chunks, plan)
    x = k.new_empty(B, T, H, row_length(K, plan), dtype=torch.float16 if plan.HALF else torch.float32)
    o = torch.empty_like(v)
    iterations = k.new_empty(B, T, H, dtype=torch.int32)
    residual = k.new_empty(B, T, H, dtype=torch.float32)
    tiles = B * H * chunks.per_grid * (CHUNK // plan.BR)
    own = {"h_kv_scale": states.h_kv_scale} if plan.HALF else {"r": torch.empty_like(x)}
    kernel = solve_output_kernel if plan.HALF else precise_output_kernel
    kernel[(tiles,)](
        q=q, k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, o=o, iterations=iterations,
        residual=residual, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid,
        size=size_class(tiles), max_steps=max_steps, tolerance=tolerance, H=H, K=K, V=V, **own, **solve_blocks(K, V, plan),
    )  # fmt: skip
    return ChunkForward(o, x, states.h_kk_final, states.h_kv_final, iterations, residual)


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
    """The backward pass in Triton kernels, given the x of the forward pass. Gradients of q, k and v come in their dtype or float32, the
    others in float32.

    Sums over positions and tiles are taken in a fixed order: the same inputs give the same bits, as long as autotuning (whose choices
    Triton keeps on disk) picks the same configurations.

    Args:
        do: Gradient of the output ``[B, T, H, V]``.
        dh_kk: Gradient of the final ``H``, ``[N, H, K, K]``, or None.
        dh_kv: Gradient of the final ``G``, ``[N, H, K, V]``, or None.
        plan: As in ``chunk_forward``.

    Raises:
        ValueError: There are no gradients of a solve without steps.
    """
    check_gradients(max_steps)
    B, T, H, K, V = *k.shape, v.shape[-1]
    kind = kind_of(k.device)
    plan = plan or make_plan(K, k.dtype, tolerance, kind=kind)
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a = cumulative_gates(g, chunks)
    beta = marked_beta(k, beta)
    states = compute_states(k, v, a, beta, lamb, h_kk_init, h_kv_init, chunks, plan)

    y = torch.empty_like(x)
    da_rows, residual = k.new_empty(2, B, T, H, dtype=torch.float32)
    dlamb = k.new_empty(chunks.total * (CHUNK // plan.BR), H, K, dtype=torch.float32)
    tiles = B * H * chunks.per_grid * (CHUNK // plan.BR)
    if plan.HALF:
        kernel, dq = solve_backward_kernel, torch.empty_like(k)
        own = {"h_kv_scale": states.h_kv_scale, "dq": dq}
    else:
        kernel, dq = precise_backward_kernel, y
        own = {"dx": torch.empty_like(x), "r": torch.empty_like(x)}
    kernel[(tiles,)](
        k=k, v=v, g=a, beta=beta, lamb=lamb, h_kk=states.h_kk, h_kv=states.h_kv, x=x, do=do, y=y, da_rows=da_rows, dlamb=dlamb,
        residual=residual, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid,
        size=size_class(tiles), max_steps=max_steps, tolerance=tolerance, H=H, K=K, V=V, **own, **solve_blocks(K, V, plan),
    )  # fmt: skip

    dh_kk_chunks, dh_kk_scale = of_chunks(k, chunks.total, K, K, V, plan.HALF)
    dh_kv_chunks, dh_kv_scale = of_chunks(k, chunks.total, V, K, V, plan.HALF)
    dh_kk_init = None if h_kk_init is None else torch.empty_like(states.h_kk_final)
    dh_kv_init = None if h_kv_init is None else torch.empty_like(states.h_kv_final)
    blocks = state_blocks(K, V)
    parts = blocks["N_K"] * (blocks["N_CK"] + blocks["N_CV"])
    inner = k.new_empty(chunks.total, H, parts, dtype=torch.float32)
    programs = chunks.n_sequences * H * parts
    states_backward_kernel[(programs,)](
        x=x, y=y, do=do, g=a, **states._asdict(), dh_kk_final=dh_kk, dh_kv_final=dh_kv, dh_kk=dh_kk_chunks,
        dh_kk_scale=dh_kk_scale, dh_kv=dh_kv_chunks, dh_kv_scale=dh_kv_scale, dh_kk_init=dh_kk_init, dh_kv_init=dh_kv_init,
        inner=inner, cu_seqlens=chunks.cu_seqlens, chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V,
        X=x.shape[-1], BT=CHUNK, BP=positions_block(kind), PRECISION="bf16x3" if plan.HALF else plan.FINE, **blocks,
    )  # fmt: skip

    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dbeta, da = torch.empty_like(da_rows), torch.empty_like(da_rows)
    tile = gradient_blocks(K, V, k.dtype, plan.FINE)
    programs = B * H * chunks.per_grid * (CHUNK // tile["BR"])
    keys_values_backward_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, x=x, y=y, do=do, dh_kk=dh_kk_chunks, dh_kk_scale=dh_kk_scale, dh_kv=dh_kv_chunks,
        dh_kv_scale=dh_kv_scale, inner=inner.sum(-1), da_rows=da_rows, dk=dk, dv=dv, dbeta=dbeta, da=da,
        cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices, T=T, n_chunks=chunks.per_grid, size=size_class(programs),
        H=H, K=K, V=V, X=x.shape[-1], BT=CHUNK, BC=blocks["BC"], **tile,
    )  # fmt: skip
    dg = local_cumsum(da, chunk_size=CHUNK, reverse=True, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices)
    return ChunkGradients(dq, dk, dv, dg, dbeta, dlamb.sum(0), dh_kk_init, dh_kv_init)
