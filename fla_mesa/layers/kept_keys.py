"""Keys and values of softmax attention in fla's cache, in batches that may contain padding.

A layer's ``attn_state`` is ``(k, v)``, each ``[B, S, ...]``, and once there was padding ``(k, v, positions)``: positions ``[B, S]`` count a
row's tokens from 0, and are -1 where there is none. So it is known for good what a cached place holds, and on which side the padding
lies makes no difference.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn as nn
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.utils import Cache

from fla_mesa.layers.layout import Layout

Tensor = torch.Tensor


class Kept(NamedTuple):
    """Keys and values ``[B, S, ...]``, and their positions ``[B, S]``, or None if all places hold tokens."""

    k: Tensor
    v: Tensor
    positions: Tensor | None


def kept_keys(layer: nn.Module, past_key_values: Cache | None) -> Kept | None:
    """The cached keys and values of a layer, or None."""
    cache = get_layer_cache(layer, past_key_values)
    state = None if cache is None else cache["attn_state"]
    return None if state is None else Kept(state[0], state[1], state[2] if len(state) > 2 else None)


def tokens_before(layer: nn.Module, past_key_values: Cache | None, layout: Layout) -> int | Tensor:
    """Number of tokens in the cache: per row ``[B]`` if there is or was padding, otherwise one number."""
    kept = kept_keys(layer, past_key_values)
    if kept is not None and kept.positions is not None:
        return kept.positions.amax(1) + 1
    before = _calls(layer, past_key_values)
    return before if layout.indices is None else layout.indices.new_full((layout.batch,), before)


def _calls(layer: nn.Module, past_key_values: Cache | None) -> int:
    """Total length of all calls so far, including padding."""
    return 0 if past_key_values is None else past_key_values.get_seq_length(cast("int", layer.layer_idx))


def positions_after(before: int | Tensor, layout: Layout, device: torch.device) -> Tensor:
    """Positions of the inputs: ``[1, T]``, or ``[B, T]`` with -1 at padding if `before` is per row."""
    if isinstance(before, int):
        return torch.arange(before, before + layout.length, device=device)[None]
    real = torch.ones(layout.batch, layout.length, dtype=torch.bool, device=device)
    if layout.indices is not None:
        real = torch.zeros_like(real).flatten().index_fill(0, layout.indices, True).view_as(real)
    return (before[:, None] + real.cumsum(1) - 1).masked_fill(~real, -1)


def refuse_packed(layer: nn.Module, past_key_values: Cache | None, use_cache: bool) -> None:
    """Refuses to cache packed sequences, because the cache holds keys by row.

    Raises:
        ValueError: Packed sequences come with a cache.
    """
    if use_cache or kept_keys(layer, past_key_values) is not None:
        raise ValueError(
            f"cu_seqlens: packed sequences cannot be cached by softmax attention; got use_cache={use_cache} and a cache of "
            f"{_calls(layer, past_key_values)} tokens"
        )


def extend(
    layer: nn.Module,
    past_key_values: Cache | None,
    new: Kept,
    use_cache: bool,
    window: int | None = None,
) -> Kept:
    """Cached and new keys and values ``[B, T, ...]``, concatenated to ``[B, S + T, ...]``; stored in the cache if `use_cache`.

    Args:
        window: How many of a row's last tokens the cache need keep; None for all.
    """
    old = kept_keys(layer, past_key_values)
    if old is None:
        both = new
    else:
        k, v = torch.cat([old.k, new.k], 1), torch.cat([old.v, new.v], 1)
        positions = old.positions
        if positions is None and new.positions is not None:  # the first padding
            seen = _calls(layer, past_key_values)
            positions = torch.arange(seen - old.k.shape[1], seen, device=k.device).expand(old.k.shape[:2])
        both = Kept(
            k, v, None if positions is None or new.positions is None else torch.cat([positions, new.positions], 1)
        )
    if use_cache:
        state = update_layer_cache(
            layer,
            past_key_values,
            attn_state=(new.k, new.v),
            offset=new.k.shape[1],
            cache_kwargs={"window_size": window},
        )
        assert state is not None
        if both.positions is not None:
            state["attn_state"] = tuple(_last(both, window))
    return both


def _last(kept: Kept, window: int | None) -> Kept:
    """The last `window` tokens of each row, aligned at its end."""
    if window is None or kept.k.shape[1] <= window or kept.positions is None:
        return kept
    places = (
        (kept.positions >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, -window:]
    )  # padding first, tokens in their order
    k, v = (x.gather(1, places[..., None].expand(-1, -1, x.shape[-1])) for x in (kept.k, kept.v))
    return Kept(k, v, kept.positions.gather(1, places))
