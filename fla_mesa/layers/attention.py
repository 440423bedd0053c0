"""Softmax attention of hybrid models: fla's layer, with one gap closed."""

from __future__ import annotations

from typing import cast

import torch
from fla.layers.attn import Attention as FlaAttention
from fla.models.utils import Cache


class Attention(FlaAttention):
    """fla's attention, which takes a cached call under a padding mask only one position at a time: a longer one is fed to it so."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Cache | None]:
        """As fla's: ``hidden_states [B, T, D]``, ``attention_mask [B, cached + T]``; returns ``[B, T, D]``, None, and the cache."""
        length = hidden_states.shape[1]
        cached = past_key_values is not None and past_key_values.get_seq_length(self.layer_idx) > 0
        options = {
            "past_key_values": past_key_values,
            "output_attentions": output_attentions,
            "use_cache": use_cache,
            **kwargs,
        }
        if attention_mask is None or not cached or length == 1:
            output, attentions, _ = super().forward(hidden_states, attention_mask=attention_mask, **options)
            return output, attentions, past_key_values
        before = attention_mask.shape[1] - length
        outputs = [
            super(Attention, self).forward(
                hidden_states[:, t : t + 1],
                attention_mask=cast("torch.LongTensor", attention_mask[:, : before + t + 1]),
                **options,
            )[0]
            for t in range(length)
        ]
        return torch.cat(outputs, 1), None, past_key_values
