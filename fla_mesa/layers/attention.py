"""Softmax attention of hybrid models: fla's layer, going through a batch as this package's mixers do."""

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
        if layout.packed:
            refuse_packed(self, past_key_values, use_cache)
        before = 0 if layout.packed else tokens_before(self, past_key_values, layout)
        x = layout.pack(hidden_states)  # [1, tokens, D], or [B, T, D] if nothing is padding
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x)))
        q, k = self._turn(q, k, before, layout)
        if layout.packed and layout.cu_seqlens is not None:
            o = self._attend(q, k, v, layout.cu_seqlens, layout.cu_seqlens)
            return layout.unpack(self.o_proj(o.flatten(-2))), None, past_key_values

        padded = isinstance(before, torch.Tensor)
        positions = positions_after(before, layout, x.device) if padded else None
        new = Kept(layout.unpack(k.flatten(-2)), layout.unpack(v.flatten(-2)), positions)
        k, v, positions = extend(self, past_key_values, new, use_cache, self.window_size)
        k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in (k, v))
        if positions is None:
            kernel: Any = attn.flash_attn_func
            o = kernel(q, k, v, causal=True, window_size=self._window())
        else:
            here = slice(None) if layout.rows is None else layout.rows  # rows that have a token now
            tokens = positions[here] >= 0
            lengths = tokens.sum(1)
            bounds = layout.cu_seqlens
            if bounds is None:
                bounds = torch.arange(0, layout.batch * layout.length + 1, layout.length, device=x.device)
            k, v = (y[here][tokens][None] for y in (k, v))
            o = self._attend(q.flatten(0, 1)[None], k, v, bounds, F.pad(lengths.cumsum(0), (1, 0))).view_as(q)
        return layout.unpack(self.o_proj(o.flatten(-2))), None, past_key_values

    def _window(self) -> tuple[int, int]:
        return (-1, -1) if self.window_size is None else (self.window_size - 1, 0)

    def _turn(self, q: Tensor, k: Tensor, before: int | Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The rotary embedding of tokens that come after so many others of their row, or, packed, from 0 in each sequence."""
        if isinstance(before, torch.Tensor):
            longest = layout.length + int(before.max())
            before = before if layout.rows is None else before[layout.rows]
        else:
            longest = layout.length + before
        longest = max(longest, self.max_position_embeddings or 0)
        return self.rotary(q, k, seqlen_offset=before, max_seqlen=longest, cu_seqlens=layout.cu_seqlens)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor, bounds_k: Tensor) -> Tensor:
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
            window_size=self._window(),
        )[None]
