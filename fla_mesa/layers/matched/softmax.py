"""Softmax attention in MesaNet's parametrisation: the same projections, convolutions and norms, with RoPE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fla.layers.utils import get_layer_cache
from fla.models.utils import Cache

from fla_mesa.layers.kept_keys import Kept, extend, positions_after, refuse_packed, tokens_before
from fla_mesa.layers.layout import Layout, find_layout
from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.recurrent import QKVMixer, put_rows, refuse_attentions, take_rows
from fla_mesa.ops.backends import l2_normalize

Tensor = torch.Tensor


@rule("softmax", "softmax attention with RoPE on the same normalised queries and keys")
class SoftmaxAttention(QKVMixer):
    """``o_t = sum_s softmax_s(sqrt(d) q_t' k_s) v_s`` over s <= t, q and k of norm 1, turned by RoPE.

    sqrt(d) is the scale at which unit vectors stand to each other as vectors of norm sqrt(d) do at the usual 1 / sqrt(d). Positions
    count real tokens only.
    """

    forget_gate = input_gate = False
    rope_theta = 10000.0

    def _turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """RoPE: ``x [B, T, H, d]``, positions ``[B or 1, T]``."""
        half = self.head_dim // 2
        rates = self.rope_theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        angles = (positions[..., None] * rates)[:, :, None]  # [B, T, 1, d/2]
        cos, sin = angles.cos(), angles.sin()
        a, b, rest = x.float().split([half, half, self.head_dim - 2 * half], -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1).to(x.dtype)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        cu_seqlens: Tensor | None = None,
        *,
        layout: Layout | None = None,
    ) -> tuple[Tensor, None, Cache | None]:
        """As :meth:`RecurrentMixer.forward`; the cache holds keys and values of all positions.

        Raises:
            ValueError: An argument has a wrong shape or value, or packed sequences come with a cache.
        """
        refuse_attentions(output_attentions)
        batch, length, _ = hidden_states.shape
        if layout is None:
            layout = find_layout(batch, length, attention_mask, cu_seqlens=cu_seqlens)
        use_cache = bool(use_cache) and past_key_values is not None
        x = layout.pack(hidden_states)  # [1, tokens, D], or [B, T, D] if nothing is padding
        if layout.packed:
            refuse_packed(self, past_key_values, use_cache)
            q, k, v, _ = self._normalised(x, None, False, layout.cu_seqlens)
            return layout.unpack(self._output(self._attend_packed(q, k, v, layout), x)), None, past_key_values

        cache = get_layer_cache(self, past_key_values)
        kept_conv = None if cache is None else cache["conv_state"]
        q, k, v, conv = self._normalised(x, take_rows(kept_conv, layout.rows), use_cache, layout.cu_seqlens)
        q, k, v = (self._heads(layout.unpack(y.flatten(-2))) for y in (q, k, v))
        before = tokens_before(self, past_key_values, layout)
        positions = positions_after(before, layout, x.device)
        q, k = self._turn(q, positions), self._turn(k, positions)
        new = Kept(k.flatten(-2), v.flatten(-2), positions if isinstance(before, torch.Tensor) else None)
        conv = put_rows(kept_conv, conv, layout.rows, batch)
        k, v, key_positions = extend(self, past_key_values, new, use_cache, conv_state=conv)
        o = self._attend(
            q, self._heads(k), self._heads(v), None if key_positions is None else (positions, key_positions)
        )
        return self._output(o, hidden_states), None, past_key_values

    def _attend_packed(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """``[1, tokens, H, d]``, each sequence to itself."""
        assert layout.cu_seqlens is not None
        lengths = layout.cu_seqlens.diff().tolist()
        positions = torch.cat([torch.arange(n, device=q.device) for n in lengths])[None]
        q, k = self._turn(q, positions), self._turn(k, positions)
        parts = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True)
        return torch.cat([self._attend(q_n, k_n, v_n, None) for q_n, k_n, v_n in parts], 1)

    def _normalised(self, x: Tensor, conv, use_cache: bool, cu_seqlens: Tensor | None):
        q, k, v, conv = self._qkv(x, conv, use_cache, cu_seqlens)
        return l2_normalize(q), l2_normalize(k), v, conv

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: tuple[Tensor, Tensor] | None) -> Tensor:
        """Queries ``[B, Tq, H, d]``, the last of keys and values ``[B, Tk, H, d]``; positions of both, or None without padding."""
        queries, keys = q.shape[1], k.shape[1]
        mask = None
        if positions is not None:
            of_queries, of_keys = (x[:, None, :] for x in positions)
            of_queries = of_queries.mT  # [B, Tq, 1]
            # A query at padding sees all, so that its (unused) output is a number.
            mask = ((of_keys >= 0) & (of_keys <= of_queries) | (of_queries < 0))[:, None]  # [B, 1, Tq, Tk]
        elif 1 < queries < keys:
            at = torch.arange(keys, device=q.device)
            mask = at <= at[keys - queries :, None]  # [Tq, Tk]
        o = F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)),
            attn_mask=mask,
            is_causal=mask is None and queries > 1,
            scale=self.head_dim**0.5,
        )
        return o.transpose(1, 2)
