"""The causal depthwise convolution of fla.modules.ShortConvolution: forward, backward, final state, one-token update.

Shapes: x, y `[B, T, D]` (packed: B = 1), weight `[D, W]`, states `[N, D, W]`: the last W inputs of each of the N sequences.

    y_t = act(sum_i weight_i x_{t-W+1+i} + bias) + residual_t,    x before the start of a sequence: its state, or zero

Both layouts become one: a buffer in which W rows of history stand before each sequence. Every window of W rows that ends in
a sequence's own row then gives that row's output, and the last W rows of each sequence are its final state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fla.modules.causal_conv1d import ops

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import stand_in

Tensor = torch.Tensor


class _Buffer:
    """`rows` `[B, L, D]`: for each sequence W rows of history, then its inputs."""

    def __init__(self, x: Tensor, width: int, state: Tensor | None, cu_seqlens: Tensor | None):
        self.width = width
        B, T, D = x.shape
        if cu_seqlens is None:
            head = x.new_zeros(B, width, D) if state is None else state.mT.to(x.dtype)
            self.tokens = self.heads = self.tails = None
            self.rows = torch.cat([head, x], 1)
            self.first, self.count = 1, T  # every window but the first ends in a token
            return
        starts, N = cu_seqlens.long(), len(cu_seqlens) - 1
        history = torch.arange(width)
        # Row of token t of sequence n, of the history of n, of the last W rows of n.
        self.tokens = torch.arange(T) + torch.arange(1, N + 1).repeat_interleave(starts.diff()) * width
        self.heads = (starts[:-1] + torch.arange(N) * width)[:, None] + history
        self.tails = (starts[1:] + torch.arange(N) * width)[:, None] + history
        self.rows = x.new_zeros(1, T + N * width, D)
        self.rows[0, self.tokens] = x[0]
        if state is not None:
            self.rows[0, self.heads] = state.mT.to(x.dtype)
        self.first, self.count = 0, self.rows.shape[1] - width + 1

    def windows(self, i: int) -> slice:
        """Rows that meet weight i, one per window."""
        return slice(self.first + i, self.first + i + self.count)

    def pick(self, windows: Tensor) -> Tensor:
        """Of one value per window, those of the windows that end in a token."""
        return windows if self.tokens is None else windows[:, self.tokens - (self.width - 1)]

    def place(self, y: Tensor) -> Tensor:
        """Transpose of `pick`."""
        if self.tokens is None:
            return y
        windows = y.new_zeros(1, self.count, y.shape[-1])
        windows[:, self.tokens - (self.width - 1)] = y
        return windows

    def final_state(self) -> Tensor:
        last = self.rows[:, -self.width :] if self.tails is None else self.rows[0, self.tails]
        return last.mT.contiguous()


def _convolve(buffer: _Buffer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """-> `[B, T, D]`, before the activation"""
    rows, w = up(buffer.rows), up(weight).T.contiguous()
    z = rows[:, buffer.windows(0)] * w[0]
    for i in range(1, buffer.width):
        z.addcmul_(rows[:, buffer.windows(i)], w[i])
    z = buffer.pick(z)
    return z if bias is None else z.add_(up(bias))


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"`activation` must be None, 'silu' or 'swish', got {activation!r}")
    return activation is not None


def _flat(x: Tensor, channels: int) -> Tensor:
    """`[B, T, H, D/H]` -> `[B, T, D]`"""
    return x if x.shape[-1] == channels else x.flatten(2)


@stand_in(ops.causal_conv1d_fwd)
def causal_conv1d_fwd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    chunk_size: int = 64,
    layout_fallback: bool = False,
):
    D, W = weight.shape
    buffer = _Buffer(_flat(x, D), W, initial_state, cu_seqlens)
    y = _convolve(buffer, weight, bias)
    if _is_silu(activation):
        y = F.silu(y, inplace=True)
    if residual is not None:
        y += residual.view_as(y)
    return y.to(x.dtype).reshape(x.shape), buffer.final_state() if output_final_state else None


@stand_in(ops.causal_conv1d_bwd)
def causal_conv1d_bwd(
    x: Tensor,
    dy: Tensor,
    dht: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    initial_state: Tensor | None = None,
    activation: str | None = None,
    cu_seqlens: Tensor | None = None,
    cu_seqlens_cpu: Tensor | None = None,
    chunk_indices: Tensor | None = None,
    chunk_size: int = 64,
    layout_fallback: bool = False,
):
    assert weight is not None
    D, W = weight.shape
    buffer = _Buffer(_flat(x, D), W, initial_state, cu_seqlens)
    dz = up(_flat(dy, D))
    if _is_silu(activation):
        dz = torch.ops.aten.silu_backward(dz, _convolve(buffer, weight, bias))
    db = None if bias is None else dz.sum((0, 1)).to(bias.dtype)
    dz = buffer.place(dz)

    rows, w = up(buffer.rows), up(weight).T.contiguous()
    drows, product = torch.zeros_like(rows), torch.empty_like(dz)
    dw = []
    for i in range(W):
        drows[:, buffer.windows(i)].addcmul_(dz, w[i])
        dw.append(torch.mul(rows[:, buffer.windows(i)], dz, out=product).sum((0, 1)))
    if dht is not None:
        if buffer.tails is None:
            drows[:, -W:] += dht.mT
        else:  # a short sequence's tail reaches into its own history, never into another sequence
            drows[0].index_put_((buffer.tails,), up(dht).mT, accumulate=True)
    if buffer.tokens is None:
        dx, dh0 = drows[:, W:], drows[:, :W]
    else:
        dx, dh0 = drows[:, buffer.tokens], drows[0, buffer.heads]
    return (
        dx.to(x.dtype).reshape(x.shape),
        torch.stack(dw, -1).to(weight.dtype),
        db,
        dy if residual is not None else None,
        dh0.mT.to(initial_state.dtype).contiguous() if initial_state is not None else None,
    )


@stand_in(ops.causal_conv1d_update_states)
def causal_conv1d_update_states(
    x: Tensor, state_len: int, initial_state: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    return _Buffer(x if x.ndim == 3 else x[None], state_len, initial_state, cu_seqlens).final_state()


@stand_in(ops.causal_conv1d_update)
def causal_conv1d_update(
    x: Tensor,
    cache: Tensor,
    residual: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str | None = None,
):
    """One token of each sequence, x `[N, D]`, `[N, 1, D]` or `[1, N, D]`; cache `[N, D, W]` is updated in place."""
    assert weight is not None
    rows = up(torch.cat([cache[..., 1:], x.reshape(-1, weight.shape[0], 1).to(cache.dtype)], -1))
    cache.copy_(rows)
    # The newest input enters the sum unrounded, as in fla, should the cache be of lower precision.
    rows[..., -1] = x.reshape(-1, weight.shape[0])
    y = (rows * up(weight)).sum(-1)
    if bias is not None:
        y = y + up(bias)
    if _is_silu(activation):
        y = F.silu(y)
    if residual is not None:
        y = y + up(residual).view_as(y)
    return y.to(x.dtype).view(x.shape), cache
