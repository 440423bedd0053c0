"""Launches of the kernels over sequences."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from fla.utils import input_guard

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import Chunks, cumulative_gates, cut, key_norms, local_cumsum, marked_beta
from fla_mesa.ops.triton.kernels_gradients import keys_values_backward_kernel
from fla_mesa.ops.triton.kernels_precise import precise_backward_kernel, precise_output_kernel
from fla_mesa.ops.triton.kernels_solve import output_kernel, solve_kernel, sums_kernel
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
    """The states H and G before each chunk and after each sequence, by the kernels' argument names."""

    h_kk: torch.Tensor  # [chunks, H, K, K]; float16: the high part of diag(lamb)^-1/2 H diag(lamb)^-1/2 / unit
    h_low: torch.Tensor | None  # the low part, 2,048 times
    h_unit: torch.Tensor | None  # [chunks, H]
    h_kv: torch.Tensor  # [chunks, H, K, V]; float16: over the scales of their blocks
    h_kv_scale: torch.Tensor | None  # [chunks, H, blocks]
    h_kk_final: torch.Tensor  # [N, H, K, K] after the last position, float32
    h_kv_final: torch.Tensor  # [N, H, K, V]


def state_blocks(K: int, V: int) -> dict[str, int]:
    """Blocks of the state kernels and their number."""
    BK = min(STATE_BLOCK, power_of_two(K))
    BC = min(STATE_BLOCK, power_of_two(max(K, V)))
    return {"BK": BK, "BC": BC, "N_K": triton.cdiv(K, BK), "N_CK": triton.cdiv(K, BC), "N_CV": triton.cdiv(V, BC)}


def solve_blocks(K: int, V: int, plan: Plan) -> dict[str, Any]:
    """Sizes that the kernels of the solve take, those of float16 or those of float32."""
    blocks = {"BT": CHUNK, "BK": power_of_two(K), "BV": min(STATE_BLOCK, power_of_two(V))}
    if not plan.HALF:
        return blocks | {"BR": plan.BR, "BS": plan.BS, "BD": plan.BS} | {n: getattr(plan, n) for n in ("RESIDENT", "PRECISION", "FINE")}
    state = state_blocks(K, V)
    return blocks | {"X": row_length(K, plan), "BC": state["BC"], "BN": state["BK"], "TILE": plan.BR}


def row_length(K: int, plan: Plan) -> int:
    """Columns of x and y: in float16 their exponent follows the K, with which rows still begin at 16 bytes."""
    return K + 8 if plan.HALF else K


def of_chunks(chunks: Chunks, like: torch.Tensor, K: int, N: int, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Room for a state [K, N] of each chunk and, in float16, for the scale of each of its blocks."""
    H, parts = like.shape[2], triton.cdiv(K, STATE_BLOCK) * triton.cdiv(N, STATE_BLOCK)
    state = like.new_empty(chunks.total, H, K, N, dtype=torch.float16 if plan.HALF else torch.float32)
    return state, like.new_empty(chunks.total, H, parts, dtype=torch.float32) if plan.HALF else None


class Call(NamedTuple):
    """What forward and backward make of their arguments before they differ."""

    plan: Plan
    chunks: Chunks
    states: States
    given: dict[str, Any]  # arguments that all kernels over tiles share
    blocks: dict[str, int]


def prepare(
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None,
    h_kv_init: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
    cu_seqlens_cpu: torch.Tensor | None,
    plan: Plan | None,
) -> Call:
    T, H, K, V = *k.shape[1:], v.shape[-1]
    kind = kind_of(k.device)
    plan = plan or make_plan(K, torch.promote_types(k.dtype, v.dtype) if k.dtype != v.dtype else k.dtype, kind=kind)
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    norm, a = key_norms(k), cumulative_gates(g, chunks)
    beta = marked_beta(norm, beta)
    h_kk = k.new_empty(chunks.total, H, K, K, dtype=torch.float16 if plan.HALF else torch.float32)
    states = States(
        h_kk,
        torch.empty_like(h_kk) if plan.HALF else None,
        k.new_empty(chunks.total, H, dtype=torch.float32) if plan.HALF else None,
        *of_chunks(chunks, k, K, V, plan),
        k.new_empty(chunks.n_sequences, H, K, K, dtype=torch.float32),
        k.new_empty(chunks.n_sequences, H, K, V, dtype=torch.float32),
    )
    blocks = state_blocks(K, V)
    programs = chunks.n_sequences * H * blocks["N_K"] * (blocks["N_CK"] + blocks["N_CV"])
    states_kernel[(programs,)](
        k=k, v=v, g=a, beta=beta, lamb=lamb, norm=norm, **states._asdict(), h_kk_init=h_kk_init, h_kv_init=h_kv_init,
        cu_seqlens=chunks.cu_seqlens, chunk_offsets=chunks.offsets, T=T, size=size_class(programs), H=H, K=K, V=V, BT=CHUNK,
        BP=forward_positions_block(kind, k.dtype), PRECISION=plan.FINE, **blocks,
    )  # fmt: skip
    given = {"k": k, "v": v, "g": a, "beta": beta, "T": T, "H": H, "K": K, "V": V, "n_chunks": chunks.per_grid}
    given |= {"cu_seqlens": chunks.cu_seqlens, "chunk_indices": chunks.indices}
    return Call(plan, chunks, states, given, blocks)


def launch(kernel: Any, call: Call, B: int, rows: int, **arguments: Any) -> None:
    """Launch a kernel over all tiles of this many rows, with those of `call` that it takes beside its own."""
    programs = B * call.given["H"] * call.chunks.per_grid * (CHUNK // rows)
    names = kernel.arg_names
    every = call.given | call.states._asdict() | arguments | {"size": size_class(programs)}
    kernel[(programs,)](**{name: value for name, value in every.items() if name in names})


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

    x comes as the kernels keep it: float32 ``[B, T, H, K]`` or, of 16-bit inputs, float16 ``[B, T, H, K + 8]``, where column K holds the
    exponent of the power of two that the row is to be multiplied by.

    Args:
        plan: Tiles and precisions; the default for these inputs if None.
    """
    B, T, H, K, V = *k.shape, v.shape[-1]
    call = prepare(k, v, g, beta, lamb, h_kk_init, h_kv_init, cu_seqlens, cu_seqlens_cpu, plan)
    plan, sizes = call.plan, solve_blocks(K, V, call.plan)
    x = k.new_empty(B, T, H, row_length(K, plan), dtype=torch.float16 if plan.HALF else torch.float32)
    o = torch.empty_like(v)
    iterations = k.new_empty(B, T, H, dtype=torch.int32)
    residual = k.new_empty(B, T, H, dtype=torch.float32)
    solved = sizes | {"lamb": lamb, "iterations": iterations, "residual": residual, "max_steps": max_steps, "tolerance": tolerance}
    if plan.HALF:
        solve_in_rounds(call, solved, x, {"q": q, "do": None}, output_kernel, {"x": x, "o": o})
    else:
        r = None if plan.RESIDENT else torch.empty_like(x)
        launch(precise_output_kernel, call, B, plan.BR, q=q, x=x, o=o, r=r, **solved)
    return ChunkForward(o, x, call.states.h_kk_final, call.states.h_kv_final, iterations, residual)


def solve_in_rounds(
    call: Call, solved: dict[str, Any], like: torch.Tensor, side: dict[str, Any], end: Any, own: dict[str, Any]
) -> None:
    """Both rounds of the float16 solve for right-hand sides made of `side`; `end` is the kernel that a round ends with."""
    B, rows = len(like), call.plan.BR
    b, d, r = torch.empty_like(like), torch.empty_like(like), torch.empty_like(like, dtype=torch.float32)
    launch(solve_kernel, call, B, rows, b=b, d=d, FIRST=True, BR=rows, **side, **solved)
    launch(end, call, B, rows, b=b, d=d, d_before=d, r=r, FIRST=True, BR=rows, **own, **solved)
    more, again = torch.empty_like(r), call.plan.AGAIN
    launch(solve_kernel, call, B, again, b=r, d=more, FIRST=False, BR=again, q=None, do=None, **solved)
    launch(end, call, B, rows, b=r, d=more, d_before=d, r=r, FIRST=False, BR=rows, **own, **solved)


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
    call = prepare(k, v, g, beta, lamb, h_kk_init, h_kv_init, cu_seqlens, cu_seqlens_cpu, plan)
    plan, chunks, states, sizes = call.plan, call.chunks, call.states, solve_blocks(K, V, call.plan)

    y = torch.empty_like(x)
    da_rows, residual = k.new_empty(2, B, T, H, dtype=torch.float32)
    dlamb = k.new_empty(chunks.total * (CHUNK // plan.BR), H, K, dtype=torch.float32)
    solved = sizes | {"lamb": lamb, "residual": residual, "max_steps": max_steps, "tolerance": tolerance}
    own = {"x": x, "y": y, "da_rows": da_rows, "dlamb": dlamb}
    if plan.HALF:
        dq = torch.empty_like(k)
        solved["iterations"] = k.new_empty(B, T, H, dtype=torch.int32)
        solve_in_rounds(call, solved, x, {"q": None, "do": do}, sums_kernel, own | {"dq": dq})
    else:
        dq = y
        launch(precise_backward_kernel, call, B, plan.BR, do=do, dx=torch.empty_like(x), r=torch.empty_like(x), **own, **solved)

    dh_kk_chunks, dh_kk_scale = of_chunks(chunks, k, K, K, plan)
    dh_kv_chunks, dh_kv_scale = of_chunks(chunks, k, K, V, plan)
    parts = call.blocks["N_K"] * (call.blocks["N_CK"] + call.blocks["N_CV"])
    inner = k.new_empty(chunks.total, H, parts, dtype=torch.float32)
    dh_kk_init = None if h_kk_init is None else torch.empty_like(states.h_kk_final)
    dh_kv_init = None if h_kv_init is None else torch.empty_like(states.h_kv_final)
    programs = chunks.n_sequences * H * parts
    X = x.shape[-1]
    dh = {"dh_kk": dh_kk_chunks, "dh_kk_scale": dh_kk_scale, "dh_kv": dh_kv_chunks, "dh_kv_scale": dh_kv_scale}
    h = {name: value for name, value in states._asdict().items() if name != "h_low"}
    states_backward_kernel[(programs,)](
        x=x, y=y, do=do, g=call.given["g"], lamb=lamb, **h, dh_kk_final=dh_kk, dh_kv_final=dh_kv, **dh, dh_kk_init=dh_kk_init,
        dh_kv_init=dh_kv_init, inner=inner, cu_seqlens=chunks.cu_seqlens, chunk_offsets=chunks.offsets, T=T, size=size_class(programs),
        H=H, K=K, V=V, X=X, BT=CHUNK, BP=positions_block(kind_of(k.device)), PRECISION="bf16x3" if plan.HALF else plan.FINE,
        **call.blocks,
    )  # fmt: skip

    dk, dv = torch.empty_like(k), torch.empty_like(v)
    dbeta, da = torch.empty_like(da_rows), torch.empty_like(da_rows)
    tile = gradient_blocks(K, V, k.dtype, plan.FINE)
    launch(
        keys_values_backward_kernel, call, B, tile["BR"], x=x, y=y, do=do, **dh, inner=inner.sum(-1), da_rows=da_rows, dk=dk, dv=dv,
        dbeta=dbeta, da=da, X=X, BT=CHUNK, BC=call.blocks["BC"], **tile,
    )  # fmt: skip
    dg = local_cumsum(da, chunk_size=CHUNK, reverse=True, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices)
    return ChunkGradients(dq, dk, dv, dg, dbeta, dlamb.sum(0), dh_kk_init, dh_kv_init)
