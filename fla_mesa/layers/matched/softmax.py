"""Softmax attention in MesaNet's parametrisation: the same projections, convolutions and norms, with RoPE."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.utils import Cache

from fla_mesa.layers.matched.registry import rule
from fla_mesa.layers.padding import find_packing, pack, unpack
from fla_mesa.layers.recurrent import QKVMixer, put_rows, take_rows
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
        **kwargs,
    ) -> tuple[Tensor, None, Cache | None]:
        """As :meth:`RecurrentMixer.forward`; the cache holds keys and values of all positions.

        Raises:
            ValueError: Packed sequences with a cache.
        """
        batch, length, _ = hidden_states.shape
        use_cache = bool(use_cache) and past_key_values is not None
        cache = get_layer_cache(self, past_key_values)
        if cu_seqlens is not None:
            if use_cache:
                raise ValueError(
                    "cu_seqlens: packed sequences cannot be cached by softmax attention; got use_cache=True"
                )
            q, k, v, _ = self._normalised(hidden_states, None, False, cu_seqlens)
            bounds = cu_seqlens.tolist()
            lengths = [end - start for start, end in pairwise(bounds)]
            positions = torch.cat([torch.arange(n, device=q.device) for n in lengths])[None]
            q, k = self._turn(q, positions), self._turn(k, positions)
            parts = zip(q.split(lengths, 1), k.split(lengths, 1), v.split(lengths, 1), strict=True)
            o = torch.cat([self._attend(q_n, k_n, v_n, None) for q_n, k_n, v_n in parts], 1)
            return self._output(o, hidden_states), None, past_key_values

        packing = None if attention_mask is None else find_packing(attention_mask, length)
        rows = None if packing is None else packing.rows
        kept_conv = None if cache is None else cache["conv_state"]
        conv = take_rows(kept_conv, rows)
        if packing is None:
            q, k, v, conv = self._normalised(hidden_states, conv, use_cache, None)
        else:
            packed = self._normalised(pack(hidden_states, packing), conv, use_cache, packing.cu_seqlens)
            q, k, v = (self._heads(unpack(x.flatten(-2), packing, batch, length)) for x in packed[:3])
            conv = packed[3]

        before = (
            past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None and cache is not None else 0
        )
        seen = None if attention_mask is None else attention_mask[:, -(before + length) :] != 0  # [B, before + T]
        if seen is None or bool(seen.all()):
            seen, positions = None, torch.arange(before, before + length, device=q.device)[None]
        else:
            positions = (seen.cumsum(1) - 1)[:, before:].clamp(min=0)
        q, k = self._turn(q, positions), self._turn(k, positions)
        if use_cache:
            kept = update_layer_cache(
                self,
                past_key_values,
                attn_state=(k.flatten(-2), v.flatten(-2)),
                conv_state=put_rows(kept_conv, conv, rows, batch),
                offset=length,
            )
            assert kept is not None
            k, v = (self._heads(x) for x in kept["attn_state"])
        elif cache is not None:
            k, v = (torch.cat([self._heads(old), new], 1) for old, new in zip(cache["attn_state"], (k, v), strict=True))
        o = self._attend(q, k, v, seen)
        return self._output(o, hidden_states), None, past_key_values

    def _normalised(self, x: Tensor, conv, use_cache: bool, cu_seqlens: Tensor | None):
        q, k, v, conv = self._qkv(x, conv, use_cache, cu_seqlens)
        return l2_normalize(q), l2_normalize(k), v, conv

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
        """q ``[B, Tq, H, d]``, the last queries of k and v ``[B, Tk, H, d]``; seen ``[B, Tk]``, true for tokens; None for all."""
        queries, keys = q.shape[1], k.shape[1]
        mask = None
        if seen is not None or (1 < queries < keys):
            at = torch.arange(keys, device=q.device)
            mask = at <= at[keys - queries :, None]  # [Tq, Tk]
            if seen is not None:
                # A query at padding sees itself, so that its (unused) output is a number.
                mask = (mask & seen[:, None]) | (at == at[keys - queries :, None])
                mask = mask[:, None]  # [B, 1, Tq, Tk]
        o = F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)),
            attn_mask=mask,
            is_causal=mask is None and queries > 1,
            scale=self.head_dim**0.5,
        )
        return o.transpose(1, 2)
