"""Softmax attention as a rule: its states are the keys and values that later tokens may see."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from fla.modules import RotaryEmbedding

from fla_mesa.layers.recurrent import Call, QKVMixer, QKVSettings, States

Tensor = torch.Tensor

# Queries that share a copy of the keys in a window, at least.
BLOCK = 64


class SoftmaxRule(QKVMixer):
    """Base of rules ``o_t = sum_s softmax_s(scale q_t' k_s) v_s`` over the last `window` tokens s <= t, with RoPE on q and k.

    States before and after: keys (not yet turned) and values ``[N, S, H d]``, and how many of the S, at their end, are tokens, ``[N]``.
    RoPE knows differences of positions only, so that positions may be counted from the first place kept. Padding is no token: no place
    is kept for it, and windows do not count it.

    Attributes:
        window: How many tokens a query sees, itself included; None for all before it.
    """

    forget_gate = input_gate = False
    window: int | None = None

    def __init__(self, settings: QKVSettings, layer_idx: int | None = None):
        super().__init__(settings, layer_idx)
        self.rotary = RotaryEmbedding(settings.head_dim)

    def _scale(self) -> float:
        return self.head_dim**-0.5

    def _normalise(self, x: Tensor) -> Tensor:
        """Applied to queries and keys before RoPE."""
        return x

    def _recur(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor | None,
        beta: Tensor | None,
        states: States | None,
        call: Call,
    ) -> tuple[Tensor, States | None]:
        q, k = self._normalise(q), self._normalise(k)
        outputs, kept = [], []
        for q_n, k_n, v_n, before in _sequences(q, k, v, states, call.cu_seqlens):
            count = None
            if before is not None:
                k_n, v_n = (torch.cat([self._heads(x), y], 1) for x, y in zip(before, (k_n, v_n), strict=False))
                count = before[2] + q_n.shape[1]  # tokens among these keys
            outputs.append(self._attend(q_n, k_n, v_n, count))
            if call.use_cache:
                kept.append(self._keep(k_n, v_n, count))
        o = outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)
        if not call.use_cache:
            return o, None
        longest = max(k_n.shape[1] for k_n, _, _ in kept)
        k_all, v_all = (torch.cat([pad_front(x[i], longest) for x in kept]) for i in (0, 1))
        return o, (k_all, v_all, torch.cat([count for _, _, count in kept]))

    def _keep(self, k: Tensor, v: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The states after ``k, v [B, S, H, d]``."""
        length = k.shape[1] if self.window is None else min(k.shape[1], self.window - 1)
        start = k.shape[1] - length
        count = torch.full((len(k),), length, device=k.device) if count is None else count.clamp(max=length)
        return k[:, start:].flatten(-2), v[:, start:].flatten(-2), count

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, count: Tensor | None) -> Tensor:
        """Queries ``[B, T, H, d]``, the last of ``k, v [B, S, H, d]``, of which the last `count` ``[B]`` are tokens; None for all."""
        T, S = q.shape[1], k.shape[1]
        q, k = self._turn(q, k)
        if self.window is not None and self.window < S and T > 1:
            return self._attend_in_blocks(q, k, v, count, self.window)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if count is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, scale=self._scale()).transpose(1, 2)
        at = torch.arange(S, device=q.device)
        mask = (at <= at[S - T :, None]) & (at >= S - count[:, None, None, None])  # [B, 1, T, S]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self._scale()).transpose(1, 2)

    def _turn(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """``q [B, T, H, d]``, the last of ``k [B, S, H, d]``, rotated by RoPE; positions count from the first key."""
        before, longest = k.shape[1] - q.shape[1], k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)  # fla turns in the dtype that it is given
        q_wide, k_wide = q.to(wide), k.to(wide)
        if before == 0:
            q_wide, k_wide = self.rotary(q_wide, k_wide, max_seqlen=longest)
        else:  # it turns both from one position on: one at a time, with next to nothing in the place of the other
            q_wide, _ = self.rotary(q_wide, q_wide[:, :1], seqlen_offset=before, max_seqlen=longest)
            _, k_wide = self.rotary(k_wide[:, :1], k_wide, max_seqlen=longest)
        return q_wide.to(q.dtype), k_wide.to(k.dtype)

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, count: Tensor | None, window: int) -> Tensor:
        """The same with a window, for C queries at a time, which see C + window - 1 keys and no others."""
        (B, T), S = q.shape[:2], k.shape[1]
        C = min(max(window, BLOCK), T)
        blocks = -(-T // C)
        front, back = (
            window - 1 - (S - T),
            blocks * C - T,
        )  # places before the first key that is seen, and after the last
        q = F.pad(q, (0, 0, 0, 0, 0, back)).unflatten(1, (blocks, C)).flatten(0, 1)
        k, v = (F.pad(x, (0, 0, 0, 0, front, back)).unfold(1, C + window - 1, C).movedim(-1, 2) for x in (k, v))
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # [B * blocks, C + window - 1, H, d]
        query, key = (torch.arange(n, device=q.device) for n in (C, C + window - 1))
        seen = (key >= query[:, None]) & (key < query[:, None] + window)  # [C, C + window - 1]
        place = key + C * torch.arange(blocks, device=q.device)[:, None] - front  # of a block's keys among all
        first = torch.zeros(1, device=q.device) if count is None else S - count
        mask = seen & (place >= first[:, None, None])[:, :, None]  # [B or 1, blocks, C, C + window - 1]
        mask = mask.expand(B, -1, -1, -1).flatten(0, 1)[:, None]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self._scale())
        return o.transpose(1, 2).unflatten(0, (B, blocks)).flatten(1, 2)[:, :T]


def _sequences(
    q: Tensor, k: Tensor, v: Tensor, states: States | None, cu_seqlens: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor, States | None]]:
    """The whole batch, or each packed sequence: q, k, v and the states before it."""
    if cu_seqlens is None:
        yield q, k, v, states
        return
    lengths = cu_seqlens.diff().tolist()
    for n, parts in enumerate(zip(*(x.split(lengths, 1) for x in (q, k, v)), strict=True)):
        yield *parts, None if states is None else tuple(s[n : n + 1] for s in states)


def pad_front(x: Tensor, length: int) -> Tensor:
    """``[N, S, ...]`` padded with zeros in front to this length."""
    return x if x.shape[1] == length else torch.cat([x.new_zeros(len(x), length - x.shape[1], *x.shape[2:]), x], 1)
