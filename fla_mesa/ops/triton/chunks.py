"""Shared by the forward and backward passes: cumulative gates and chunks of packed sequences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
from fla.ops.utils import chunk_local_cumsum, prepare_chunk_indices, prepare_chunk_offsets
from fla.ops.utils.constant import RCP_LN2

from fla_mesa.ops.triton.plan import CHUNK

# A gate below e^-64 forgets everything; larger steps would only cost digits in the sums of the others, and -inf all of them.
LEAST_LOG_GATE = -64.0
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

    def tiles(self, H: int) -> Callable[[dict[str, Any]], tuple[int]]:
        """The grid of a kernel with a program for each tile of BR positions of a chunk and head."""
        return lambda meta: (self.total * H * (CHUNK // meta["BR"]),)


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
