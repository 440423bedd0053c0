"""Shared by the forward and backward passes: cumulative gates, chunks of packed sequences, states before each chunk."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from fla.ops.utils import chunk_local_cumsum, prepare_chunk_indices, prepare_chunk_offsets
from fla.ops.utils.constant import RCP_LN2

from fla_mesa.ops.triton.kernels_states import states_kernel
from fla_mesa.ops.triton.plan import CHUNK, forward_positions_block, kind_of, power_of_two, size_class

# A gate below e^-64 forgets everything; larger steps would only cost digits in the sums of the others, and -inf all of them.
LEAST_LOG_GATE = -64.0
STATE_BLOCK = 64
# fla's decorators hide its parameters from type checkers.
local_cumsum: Any = chunk_local_cumsum


class Chunks(NamedTuple):
    """How positions are divided into chunks. A chunk never spans two sequences."""

    n_sequences: int
    per_grid: int  # chunks a row of the grid: of one sequence, or of all packed ones
    total: int
    cu_seqlens: torch.Tensor | None
    indices: torch.Tensor | None  # [total, 2]: sequence, chunk within it
    offsets: torch.Tensor | None  # [N + 1]: first chunk of each sequence


def cut(k: torch.Tensor, cu_seqlens: torch.Tensor | None, cu_seqlens_cpu: torch.Tensor | None) -> Chunks:
    B, T = k.shape[:2]
    if cu_seqlens is None:
        n = triton.cdiv(T, CHUNK)
        return Chunks(B, n, B * n, None, None, None)
    indices = prepare_chunk_indices(cu_seqlens, CHUNK, cu_seqlens_cpu=cu_seqlens_cpu)
    offsets = prepare_chunk_offsets(cu_seqlens, CHUNK)
    return Chunks(len(cu_seqlens) - 1, len(indices), len(indices), cu_seqlens, indices, offsets)


def cumulative_gates(g: torch.Tensor, chunks: Chunks) -> torch.Tensor:
    """Base-2 logarithm of the decay since the start of the chunk, including the position's own gate, float32 [B, T, H]."""
    g = g.float().clamp(min=LEAST_LOG_GATE)
    return local_cumsum(g, chunk_size=CHUNK, scale=RCP_LN2, cu_seqlens=chunks.cu_seqlens, chunk_indices=chunks.indices)


def marked_beta(k: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """beta ``[B, T, H]`` in float32, NaN at non-finite keys, so that the kernels can treat such keys as zero."""
    return beta.float() + 0 * k.sum(-1, dtype=torch.float32)


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
