"""Results of the back ends. Shapes: B batch, T time, H heads, K key size, V value size, N sequences (B, or the packed ones)."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SolverStats(NamedTuple):
    """How each position's linear system was solved.

    Attributes:
        iterations: Conjugate-gradient steps spent, int32, ``[B, T, H]`` (``[B, H]`` for a decoding step). Where the Triton kernels had to
            solve a position a second time, in float32, those of the second time. On "fla" all are ``max_CG_iteration``.
        residual: Final relative residual ``||q - (H + diag(lamb)) x|| / ||q||``, float32, same shape, in the norm weighted by
            ``1 / lamb`` (the plain norm where lamb is one number). It is the one that the solver's recurrence carries (in the Triton
            kernels' rounds of float16, a recurrence of float32 from round to round); 0 where q is zero, NaN where the input was. On
            "fla", whose kernels do not say, NaN everywhere.
    """

    iterations: torch.Tensor
    residual: torch.Tensor


class ChunkForward(NamedTuple):
    """Result of a back end's ``chunk_forward``."""

    o: torch.Tensor  # [B, T, H, V], dtype of v
    x: torch.Tensor  # [B, T, H, K], the solution (H_t + diag(lamb))^-1 q_t, float32 (float64 for float64 inputs)
    h_kk: torch.Tensor  # [N, H, K, K] after the last position
    h_kv: torch.Tensor  # [N, H, K, V]
    iterations: torch.Tensor  # [B, T, H] int32
    residual: torch.Tensor  # [B, T, H] float32


class ChunkGradients(NamedTuple):
    """Result of a back end's ``chunk_backward``, one gradient per input; the last two are None where the states were."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    lamb: torch.Tensor
    h_kk_init: torch.Tensor | None
    h_kv_init: torch.Tensor | None


class QueryForward(NamedTuple):
    """Result of a back end's ``query_forward``."""

    o: torch.Tensor  # [B, T, H, V], dtype of q
    x: torch.Tensor  # [B, T, H, K], the solution
    iterations: torch.Tensor  # [B, T, H] int32
    residual: torch.Tensor  # [B, T, H] float32


class QueryGradients(NamedTuple):
    """Result of a back end's ``query_backward``, one gradient per input."""

    q: torch.Tensor
    h_kk: torch.Tensor
    h_kv: torch.Tensor
    lamb: torch.Tensor


class DecodingStep(NamedTuple):
    """Result of a back end's ``decoding_step``."""

    o: torch.Tensor  # [B, H, V], dtype of v
    h_kk: torch.Tensor  # [B, H, K, K]
    h_kv: torch.Tensor  # [B, H, K, V]
    iterations: torch.Tensor  # [B, H] int32
    residual: torch.Tensor  # [B, H] float32
