"""Softmax attention for hybrid models: fla's layer with the batch layouts of this package's mixers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from fla.layers import attn
from fla.models.utils import Cache

from fla_mesa.layers.kept_keys import Kept, extend, positions_after, refuse_packed, tokens_before
from fla_mesa.layers.layout import Layout, find_layout
from fla_mesa.layers.recurrent import refuse_attentions

Tensor = torch.Tensor


class Attention(attn.Attention):
    """fla's attention: its parameters, its rotary embedding, its kernels.

    Its own ``forward`` takes padding on the left only where there is a cache, takes a cached call under a mask one position at a time,
    and writes to a cache that it is to read only.
    """

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool | None = False,
        use_cache: bool | None = False,
        *,
        cu_seqlens: Tensor | None = None,
        layout: Layout | None = None,
    ) -> tuple[Tensor, None, Cache | None]:
        """As :meth:`~fla_mesa.layers.recurrent.RecurrentMixer.forward`; the cache holds keys and values.

        Raises:
            ValueError: An argument has a wrong shape or value, or packed sequences come with a cache.
        """
        refuse_attentions(output_attentions)
        if layout is None:
            batch, length = hidden_states.shape[:2]
            layout = find_layout(batch, length, attention_mask, cu_seqlens=cu_seqlens)
        use_cache = bool(use_cache) and past_key_values is not None
        return attend(self, hidden_states, layout, past_key_values, use_cache), None, past_key_values


def attend(
    layer: attn.Attention, hidden_states: Tensor, layout: Layout, past_key_values: Cache | None, use_cache: bool
) -> Tensor:
    """Applies one of fla's attention layers, ``[B, T, D] -> [B, T, D]``, for any layout and cache."""
    if layout.packed:
        refuse_packed(layer, past_key_values, use_cache)
    before = 0 if layout.packed else tokens_before(layer, past_key_values, layout)
    x = layout.pack(hidden_states)  # [1, tokens, D], or [B, T, D] if nothing is padding
    q, k, v = (y.unflatten(-1, (-1, layer.head_dim)) for y in (layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)))
    if layer.qk_norm:
        q, k = layer.q_norm(q), layer.k_norm(k)
    q, k = _turn(layer, q, k, before, layout)
    if layout.packed and layout.cu_seqlens is not None:
        o = _attend_packed(layer, q, k, v, layout.cu_seqlens, layout.cu_seqlens)
        return layout.unpack(layer.o_proj(o.flatten(-2)))

    padded = isinstance(before, torch.Tensor)
    positions = positions_after(before, layout, x.device) if padded else None
    new = Kept(layout.unpack(k.flatten(-2)), layout.unpack(v.flatten(-2)), positions)
    k, v, positions = extend(layer, past_key_values, new, use_cache, layer.window_size)
    k, v = (y.unflatten(-1, (-1, layer.head_dim)) for y in (k, v))
    if positions is None:
        kernel: Any = attn.flash_attn_func
        o = kernel(q, k, v, causal=True, window_size=_window(layer))
    else:
        here = slice(None) if layout.rows is None else layout.rows  # rows that have a token now
        tokens = positions[here] >= 0
        bounds = layout.cu_seqlens
        if bounds is None:
            bounds = torch.arange(0, layout.batch * layout.length + 1, layout.length, device=x.device)
        k, v = (y[here][tokens][None] for y in (k, v))
        bounds_k = F.pad(tokens.sum(1).cumsum(0), (1, 0))
        o = _attend_packed(layer, q.flatten(0, 1)[None], k, v, bounds, bounds_k).view_as(q)
    return layout.unpack(layer.o_proj(o.flatten(-2)))


def _window(layer: attn.Attention) -> tuple[int, int]:
    return (-1, -1) if layer.window_size is None else (layer.window_size - 1, 0)


def _turn(layer: attn.Attention, q: Tensor, k: Tensor, before: int | Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Rotary embedding of tokens at given positions of their row or, if packed, counted from 0 in each sequence."""
    if isinstance(before, torch.Tensor):
        longest = layout.length + int(before.max())
        before = before if layout.rows is None else before[layout.rows]
    else:
        longest = layout.length + before
    longest = max(longest, layer.max_position_embeddings or 0)
    return layer.rotary(q, k, seqlen_offset=before, max_seqlen=longest, cu_seqlens=layout.cu_seqlens)


def _attend_packed(
    layer: attn.Attention, q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor
) -> Tensor:
    """Queries ``[1, tokens, H, d]``, the last ones of their sequences' keys and values ``[1, more tokens, H, d]``."""
    bounds_q, bounds_k = bounds_q.to(torch.int32), bounds_k.to(torch.int32)
    kernel: Any = attn.flash_attn_varlen_func
    return kernel(
        q[0],
        k[0],
        v[0],
        cu_seqlens_q=bounds_q,
        cu_seqlens_k=bounds_k,
        max_seqlen_q=int(bounds_q.diff().max()),
        max_seqlen_k=int(bounds_k.diff().max()),
        causal=True,
        window_size=_window(layer),
    )[None]
