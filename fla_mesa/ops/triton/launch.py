"""Launches of the kernels over sequences: the states before each chunk, the stages of a solve, the forward and the backward pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from fla.utils import get_multiprocessor_count, input_guard

from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import Chunks, cumulative_gates, cut, local_cumsum, marked_beta
from fla_mesa.ops.triton.kernels_gradients import keys_values_backward_kernel
from fla_mesa.ops.triton.kernels_solve import solve_backward_kernel, solve_output_kernel
from fla_mesa.ops.triton.kernels_states import states_backward_kernel, states_kernel
from fla_mesa.ops.triton.plan import (
    CHUNK,
    Plan,
    forward_positions_block,
    gradient_blocks,
    kind_of,
    make_stages,
    positions_block,
    power_of_two,
    size_class,
)
from fla_mesa.ops.types import ChunkForward, ChunkGradients

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


class Stage(NamedTuple):
    """How to launch one stage of the solve."""

    plan: Plan
    tiles: int  # of its own size
    todo: torch.Tensor | None  # tiles that the stage before left to it, int32, their number first; None: all
    left: torch.Tensor  # the same for the stage after it
    NEXT: int  # rows of a tile of that stage; 0 in the last

    def grid(self, meta: dict) -> tuple[int]:
        if self.todo is None:
            return (self.tiles // meta["MERGE"],)
        return (min(self.tiles, programs_at_once(self.todo.device)),)

    @property
    def arguments(self) -> dict[str, Any]:
        """The kernels' arguments of these names."""
        lists = {"todo": self.todo, "left": self.left, "NEXT": self.NEXT, "AGAIN": self.todo is not None}
        return self.plan._asdict() | lists | {"size": size_class(self.tiles)}


def lay_out(plans: tuple[Plan, ...], chunks: int, like: torch.Tensor) -> list[Stage]:
    """The stages of a solve over this many chunks (of all heads), on the device of ``like [...]``."""
    stages, todo = [], None
    for plan, NEXT in zip(plans, (*(after.BR for after in plans[1:]), 0), strict=True):
        left = torch.zeros(1 + (chunks * (CHUNK // NEXT) if NEXT else 0), dtype=torch.int32, device=like.device)
        stages.append(Stage(plan, chunks * (CHUNK // plan.BR), todo, left, NEXT))
        todo = left
    return stages


def programs_at_once(device: torch.device) -> int:
    """Number of multiprocessors: a kernel of the last stage fills one."""
    return get_multiprocessor_count(device.index or 0) if device.type == "cuda" else 2


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
