# pyright: reportArgumentType=false, reportAssignmentType=false
# (fla annotates what it takes and returns more narrowly than it is)
"""The back end "fla": flash-linear-attention's own kernels for 16-bit inputs, combined so that the scale of a row does not matter.

fla adds 1e-5 to the denominators of its conjugate gradients and computes in float16, so that a right-hand side much smaller than 1 is
solved wrong (benchmarks/fla_gradients.py: dq is off by 32 % where the incoming gradient has entries of 1e-4). Here every row of a
right-hand side is multiplied by a power of two first, its largest entry then between 1 and 2, and its solution divided by it; neither
rounds. fla's solver starts at 0; conjugate gradients from x0 are those from 0 for the correction x - x0, whose right-hand side is the
residual of x0, so that a read of H x0 before them makes the start q / diag(H + lamb), as everywhere else. Only fla's kernels run.

It takes ``max_CG_iteration`` steps always, and knows neither a tolerance nor the residual that it ends at: statistics hold the number of
steps, and NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from fla.modules.norm.l2norm import l2norm as l2_normalize
from fla.ops.common.chunk_h import chunk_bwd_dh
from fla.ops.common.chunk_o import chunk_fwd_o
from fla.ops.mesa_net.chunk_cg_solver_bwd import chunk_mesa_cg_bwd
from fla.ops.mesa_net.chunk_h_fwd import chunk_mesa_fwd_h
from fla.ops.mesa_net.chunk_h_kk_intra_bwd import chunk_mesa_net_h_kk_bwd_intra_fn
from fla.ops.mesa_net.chunk_h_kv_intra_bwd import chunk_mesa_net_h_kv_bwd_intra_fn
from fla.ops.mesa_net.decoding_one_step import mesa_net_decoding_one_step_kernel as fla_step_kernel
from fla.utils import input_guard

from fla_mesa.ops import gpu
from fla_mesa.ops.checks import check_gradients
from fla_mesa.ops.triton.chunks import CHUNK, cumulative_gates, cut, local_cumsum
from fla_mesa.ops.types import ChunkForward, ChunkGradients, DecodingStep

__all__ = ["TOLERANCE", "chunk_backward", "chunk_forward", "decoding_step", "l2_normalize", "why_not"]

TOLERANCE = None  # it has none
SIZES = range(16, 129)
# A state of more than 64 channels takes 84 to 132 KiB of shared memory, depending on kernel and GPU; RTX cards have 99.
SMALL = 64
LARGE_NEEDS = 132 * gpu.KIB
LEAST_ROWS = 16  # of a matrix that tensor cores multiply
GRID = 65_535  # programs along the second dimension of a CUDA grid, which is B * H

if gpu.interpreted():
    from fla_mesa.interpreter import mend_loops

    mend_loops()


def why_not(
    function: str, tensors: Mapping[str, torch.Tensor | None], *, max_steps: int, tolerance: float | None
) -> str | None:
    """Why fla's kernels, as used here, do not support these arguments ``[B, T, H, ...]``; None if they do."""
    if function == "query":
        return "cannot read a state without a step"
    q, k, v = (tensors[name] for name in ("q", "k", "v"))
    assert q is not None and k is not None and v is not None
    if (reason := gpu.why_no_kernels(q.device)) is not None:
        return reason
    if q.dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16; q has dtype {q.dtype}"
    for name, x in tensors.items():
        if x is not None and x.dtype == torch.float64:
            return f"computes in float32; {name} has dtype torch.float64"
    K, V = k.shape[-1], v.shape[-1]
    if K != V or K not in SIZES:
        return f"takes heads of K = V from {SIZES[0]} to {SIZES[-1]}; got K = {K} and V = {V}"
    kind = gpu.of(q.device)
    assert kind is not None
    if K > SMALL and gpu.treatment(kind).shared < LARGE_NEEDS:
        return f"takes heads of at most {SMALL} on {kind}, which has too little shared memory for more; got K = {K}"
    if q.shape[0] * q.shape[-2] > GRID:
        return f"takes at most {GRID} heads in all; got B * H = {q.shape[0] * q.shape[-2]}"
    if tolerance is not None:
        return f"always takes max_CG_iteration steps and cannot stop at a tolerance; got cg_tolerance={tolerance:g}"
    return None


def unit_scale(largest: torch.Tensor) -> torch.Tensor:
    """The power of two that scales numbers ``[...]`` to between 1 and 2, float32; 1 for 0 and for non-finite numbers."""
    exponent = torch.frexp(largest.float()).exponent
    scale = torch.ldexp(torch.ones_like(largest, dtype=torch.float32), (1 - exponent).clamp(-100, 100))
    return torch.where(largest.isfinite() & (largest > 0), scale, 1.0)


def largest(x: torch.Tensor) -> torch.Tensor:
    """The largest absolute value of each row, ``[..., 1]``."""
    return torch.linalg.vector_norm(x, torch.inf, -1, keepdim=True)


def times(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``x * scale`` for ``x [..., K]`` in one pass, rounded to ``dtype`` once."""
    return torch.mul(x, scale, out=torch.empty_like(x, dtype=dtype))


@dataclass(frozen=True)
class Solver:
    """Solves ``(H_t + lamb) x_t = b_t`` at every position, given the states H before each chunk and the keys within.

    Attributes:
        k: ``[B, T, H, K]``, float16.
        a: Base-2 logarithm of the decay since the start of the chunk, float32 ``[B, T, H]``.
        beta: float32 ``[B, T, H]``.
        lamb: float32 ``[H, K]``.
        h_kk: float32 ``[B, chunks, H, K, K]``.
        cutting: How fla cuts the positions into chunks.
    """

    k: torch.Tensor
    a: torch.Tensor
    beta: torch.Tensor
    lamb: torch.Tensor
    h_kk: torch.Tensor
    cutting: Mapping[str, Any]

    @cached_property
    def beta_k(self) -> torch.Tensor:
        """The factor of k or v in the states' sums: ``beta_t k_t``, float32 ``[B, T, H, K]``."""
        return self.beta[..., None] * self.k

    def read(self, x: torch.Tensor, values: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """``S_t' x_t`` for ``S_t = gamma_t S_(t-1) + beta_t k_t values_t'``, in the dtype of `values` ``[B, T, H, V]``; x is float32.

        Args:
            states: S before each chunk, ``[B, chunks, H, K, V]``.
        """
        return chunk_fwd_o(q=x, k=self.beta_k, v=values, h=states.float(), g=self.a, scale=1, **self.cutting)

    @cached_property
    def diagonal(self) -> torch.Tensor:
        """``diag(H_t + lamb)``, float32 ``[B, T, H, K]``; diag(H) is a one-row state to which each position adds ``beta_t k_t^2``."""
        rows = self.beta.new_zeros(2, *self.beta.shape, LEAST_ROWS)
        rows[..., 0] = torch.stack([torch.ones_like(self.beta), self.beta])
        ones, betas = rows
        states = self.h_kk.new_zeros(*self.h_kk.shape[:-2], LEAST_ROWS, self.h_kk.shape[-1])
        states[..., 0, :] = self.h_kk.diagonal(dim1=-2, dim2=-1)
        squares = self.k.float().square()
        return chunk_fwd_o(q=ones, k=betas, v=squares, h=states, g=self.a, scale=1, **self.cutting) + self.lamb

    def solve(self, b: torch.Tensor, steps: int) -> torch.Tensor:
        """The solution x, float32 ``[B, T, H, K]``."""
        s = unit_scale(largest(b))  # [B, T, H, 1]
        b = b * s  # float32
        x0 = b / self.diagonal
        r0 = b - self.read(x0, self.k.float(), self.h_kk) - self.lamb * x0
        s0 = unit_scale(largest(r0))
        correction = chunk_mesa_cg_bwd(
            dq=r0 * s0, k=self.k, h=self.h_kk, g_local_cumsum=self.a, beta=self.beta, lamb=self.lamb, max_CG_iteration=steps,
            output_dtype=torch.float32, **self.cutting,
        )  # fmt: skip
        return (correction / s0 + x0) / s


@input_guard
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
    tolerance: None,
) -> ChunkForward:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a, k, beta = cumulative_gates(g, chunks), k.half(), beta.float()
    cutting: dict[str, Any] = {"cu_seqlens": cu_seqlens, "chunk_size": CHUNK}
    h_kk, h_kv, h_kk_final, h_kv_final = chunk_mesa_fwd_h(
        k=k, v=v, g=a, beta=beta, h_init=h_kk_init, h_kv_init=h_kv_init, output_final_state=True, **cutting
    )
    solver = Solver(k, a, beta, lamb.float(), h_kk, cutting | {"chunk_indices": chunks.indices})
    x = solver.solve(q, max_steps)
    scale = unit_scale(largest(x))  # [B, T, H, 1]
    o = solver.read(x * scale, v, h_kv) / scale
    steps = torch.full(k.shape[:-1], max_steps, dtype=torch.int32, device=k.device)
    return ChunkForward(o, x, h_kk_final, h_kv_final, steps, torch.full_like(steps, torch.nan, dtype=torch.float32))


@input_guard
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
    tolerance: None,
) -> ChunkGradients:
    """See :class:`~fla_mesa.ops.backends.Backend`. Two powers of two keep fla's float16 in range:

    - ``c``, for each head, on x;
    - ``d``, for each head, on the output's gradient. The right-hand side of the solve is linear in it, and dq in that.

    All other gradients are sums of products with x, so they carry ``c * d``, which those of the final states have to be given.
    """
    check_gradients(max_steps)
    chunks = cut(k, cu_seqlens, cu_seqlens_cpu)
    a, k16, beta, lamb = cumulative_gates(g, chunks), k.half(), beta.float(), lamb.float()
    cutting: dict[str, Any] = {"cu_seqlens": cu_seqlens, "chunk_size": CHUNK}
    intra: dict[str, Any] = cutting | {"chunk_indices": chunks.indices}
    h_kk, h_kv, _, _ = chunk_mesa_fwd_h(
        k=k16, v=v, g=a, beta=beta, h_init=h_kk_init, h_kv_init=h_kv_init, output_final_state=False, **cutting
    )

    c = unit_scale(largest(x).amax((0, 1)))  # [H, 1]
    # Products of gradients and values have to fit as well.
    sizes = [largest(do).amax((0, 1)).float() * largest(v).amax((0, 1)).clamp(min=1)]  # [H, 1]
    sizes += [largest(dh.flatten(2)).amax(0) * c for dh in (dh_kk, dh_kv) if dh is not None]
    d = unit_scale(torch.stack(sizes).amax(0))  # [H, 1]
    cd = c * d
    x, do = times(x, c, torch.float16), times(do, d, v.dtype)
    dh_kk, dh_kv = (None if dh is None else dh.float() * cd[..., None] for dh in (dh_kk, dh_kv))

    of_states: dict[str, Any] = cutting | {"scale": 1}
    dh_kv_chunks, dh_kv_init = chunk_bwd_dh(
        q=x, k=k16, v=v, g=a, do=do, h0=h_kv_init, dht=dh_kv, **of_states
    )  # dG after each chunk, float16
    dx, dk_values, dv, da = chunk_mesa_net_h_kv_bwd_intra_fn(
        q_star=x, k=k16, v=v, beta=beta, h_kv=h_kv, dh_kv=dh_kv_chunks, g=a, do=do, **intra
    )
    y = Solver(k16, a, beta, lamb, h_kk, intra).solve(dx, max_steps)
    y16 = y.half()
    dh_kk_chunks, dh_kk_init = chunk_bwd_dh(
        q=y16, k=k16, v=k16, g=a, do=x, h0=h_kk_init, dht=None if dh_kk is None else -dh_kk, **of_states
    )  # -dH
    dk, da_keys, _, dbeta = chunk_mesa_net_h_kk_bwd_intra_fn(
        k=k16, g=a, beta=beta, h=h_kk, dh=dh_kk_chunks, dk_beta=dk_values, q_star=x, dq=y16, **intra
    )
    dg = local_cumsum(da + da_keys, chunk_size=CHUNK, reverse=True, cu_seqlens=cu_seqlens, chunk_indices=chunks.indices)
    dlamb = -(x * y).sum((0, 1))  # fla's own is summed in float16

    return ChunkGradients(
        y.div_(d),
        dk.float().div_(cd),
        dv.float().div_(cd),
        dg / cd[:, 0],
        dbeta / cd[:, 0],
        dlamb / cd,
        None if dh_kk_init is None else dh_kk_init / -cd[..., None],
        None if dh_kv_init is None else dh_kv_init / cd[..., None],
    )


step_kernel: Any = fla_step_kernel
# Its iteration is all float32, where the larger the row, the smaller 1e-5 beside it.
STEP_SIZE = 2.0**20


@input_guard
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
    tolerance: None,
) -> DecodingStep:
    """See :class:`~fla_mesa.ops.backends.Backend`."""
    B, H, K = k.shape
    block = max(triton.next_power_of_2(K), 16)
    scale = unit_scale(largest(q)) * STEP_SIZE  # [B, H, 1]
    o = torch.empty_like(v, dtype=torch.float32)
    h_kk_new, h_kv_new = torch.empty_like(h_kk), torch.empty_like(h_kv)
    # Not fla's function, which replace_fla_op() may have replaced by this one.
    step_kernel[(B * H,)](
        q=q * scale, k=k, v=v, g=g, o=o, lamb=lamb, beta=beta, prev_h_kk=h_kk, prev_h_kv=h_kv, curr_h_kk=h_kk_new,
        curr_h_kv=h_kv_new, B=B, H=H, K=K, V=K, BK=block, BV=block, MAX_CG_STEP=max_steps,
        num_warps=4 if block <= 64 else 8,
    )  # fmt: skip
    steps = torch.full((B, H), max_steps, dtype=torch.int32, device=k.device)
    unknown = torch.full_like(steps, torch.nan, dtype=torch.float32)
    return DecodingStep(o.div_(scale).to(v.dtype), h_kk_new, h_kv_new, steps, unknown)
