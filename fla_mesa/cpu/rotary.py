"""Rotary position embedding, forward and (conjugate) backward.

Shapes: x, y `[B, T, H, D]` (packed: B = 1), cos, sin `[TR, R]` with 2R <= D. Channel pairs (i, R + i), or (2i, 2i + 1) if
interleaved, turn by the angle of their position; channels from 2R on pass through.
"""

from __future__ import annotations

import torch
from fla.modules.rotary import ops

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor


def _positions(T: int, offsets: int | Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """-> position of each token, `[1, T]` or `[B, T]`; negative under left padding"""
    t = torch.arange(T)[None]
    if cu_seqlens is not None:
        starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.long().diff()
        shift = offsets - starts
        return t + shift.repeat_interleave(lengths)
    return t + (offsets[:, None] if isinstance(offsets, Tensor) else offsets)


def _check(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> None:
    TR, R = cos.shape
    if x.shape[-1] < 2 * R:
        raise ValueError(f"`cos`: rotary dimension 2 x {R} must not exceed the head dimension {x.shape[-1]}")
    if not x.dtype == cos.dtype == sin.dtype:
        raise TypeError(f"`x`, `cos` and `sin` must have one dtype, got {x.dtype}, {cos.dtype} and {sin.dtype}")
    if positions.numel() and int(positions.max()) >= TR:
        raise ValueError(f"`cos` covers {TR} positions, but position {int(positions.max())} is asked for")


@stand_in(ops.rotary_embedding_fwdbwd)
def rotary_embedding_fwdbwd(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
    chunk_indices: Tensor | None = None,
) -> Tensor:
    positions = _positions(x.shape[1], seqlen_offsets, cu_seqlens)
    _check(x, cos, sin, positions)
    R = cos.shape[1]
    at = positions.clamp(min=0)
    c, s = up(cos)[at][:, :, None], up(-sin if conjugate else sin)[at][:, :, None]  # [1 or B, T, 1, R]

    def halves(z: Tensor) -> tuple[Tensor, Tensor]:
        return (z[..., : 2 * R : 2], z[..., 1 : 2 * R : 2]) if interleaved else (z[..., :R], z[..., R : 2 * R])

    x0, x1 = (up(half) for half in halves(x))
    y0, y1 = x0 * c - x1 * s, x0 * s + x1 * c
    y = x if inplace else torch.empty_like(x, memory_format=torch.contiguous_format)
    if not inplace and x.shape[-1] > 2 * R:
        y[..., 2 * R :] = x[..., 2 * R :]
    first, second = halves(y)
    padding = (positions < 0)[:, :, None, None]
    if bool(padding.any()):
        # Padding before position 0 stays as it is in place and is zero in a new output, as in fla.
        y0, y1 = (torch.where(padding, x_ if inplace else 0, y_) for x_, y_ in ((x0, y0), (x1, y1)))
    first.copy_(y0)
    second.copy_(y1)
    return y
