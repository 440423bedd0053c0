"""The elementwise recurrence of fla.ops.hgrn, also used by RG-LRU (Hawk).

h_t = exp(g_t) * h_{t-1} + x_t          x, g, h `[B, T, D]`, states `[N, D]`
"""

from __future__ import annotations

from typing import Any

import torch
from fla.ops import hgrn

from fla_mesa.cpu.packing import sequence_lengths
from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor


class _Recurrence(torch.autograd.Function):
    """a, x `[T, B, D]` -> h_t = a_t h_{t-1} + x_t with h_{-1} = 0. One autograd node, where a loop would keep T."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor) -> Tensor:
        h = x.clone(memory_format=torch.contiguous_format)
        rows = h.unbind(0)
        for t, a_t in enumerate(a.unbind(0)[1:], 1):
            rows[t].addcmul_(a_t, rows[t - 1])
        ctx.save_for_backward(a, h)
        return h

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        a, h = ctx.saved_tensors
        dx = grads[0].clone(memory_format=torch.contiguous_format)
        rows, a_rows = dx.unbind(0), a.unbind(0)
        for t in range(len(rows) - 2, -1, -1):
            rows[t].addcmul_(a_rows[t + 1], rows[t + 1])
        da = torch.zeros_like(a)
        torch.mul(dx[1:], h[:-1], out=da[1:])
        return da, dx


def _hgrn(x: Tensor, g: Tensor, initial_state: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """-> o in the dtype of x, final states in float32 (float64 stays)"""
    lengths = sequence_lengths(x, cu_seqlens)
    N = x.shape[0] if lengths is None else len(lengths)
    if initial_state is not None and initial_state.shape[0] != N:
        raise ValueError(
            f"`initial_state` must hold one state for each of the {N} sequences, got {initial_state.shape[0]}"
        )
    a, h = up(g).exp().transpose(0, 1), up(x).transpose(0, 1)  # [T, B, D]
    if lengths is None:
        if initial_state is not None:
            h = torch.cat([h[:1] + a[:1] * initial_state, h[1:]])
        h = _Recurrence.apply(a, h)
        return h.transpose(0, 1).to(x.dtype), h[-1]

    # One run over all sequences: a gate of zero starts each anew, its initial state enters with its first token.
    ends = torch.tensor(lengths).cumsum(0)
    nonempty = torch.tensor(lengths) > 0
    first = (ends - torch.tensor(lengths))[nonempty]
    if initial_state is not None:
        h = h.index_add(0, first, (a[first, 0] * initial_state[nonempty])[:, None])
    h = _Recurrence.apply(a.index_fill(0, first, 0), h)
    final = h.new_zeros(N, h.shape[-1]) if initial_state is None else initial_state.to(h.dtype)
    final = final.masked_scatter(nonempty[:, None].expand(final.shape), h[ends[nonempty] - 1, 0])
    return h.transpose(0, 1).to(x.dtype), final


@stand_in(hgrn.chunk_hgrn)
def chunk_hgrn(x: Tensor, g: Tensor, initial_state: Tensor | None = None, output_final_state: bool = False):
    o, state = _hgrn(x, g, initial_state, None)
    return o, state if output_final_state else None


@stand_in(hgrn.fused_recurrent_hgrn)
def fused_recurrent_hgrn(
    x: Tensor,
    g: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
):
    o, state = _hgrn(x, g, initial_state, cu_seqlens)
    return o, state if output_final_state else None
