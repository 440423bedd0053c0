"""Softmax attention with flash-attn's names and conventions, using scaled_dot_product_attention.

Shapes: q `[B, Tq, H, D]`, k `[B, Tk, Hk, D]`, v `[B, Tk, Hk, Dv]` with Hk dividing H (grouped queries); variable length:
`[sum of T, H, D]` and cumulative lengths `[N + 1]`. The last query is aligned with the last key: query i sees keys up to
i + Tk - Tq if causal, and within `window_size` = (left, right) of that (-1: no limit). A query that sees no key gives zero.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.registry import put, replacement, unsupported

Tensor = torch.Tensor


def _mask(Tq: int, Tk: int, causal: bool, window: tuple[int, int], device: torch.device) -> Tensor | None:
    """-> `[Tq, Tk]`, true where the query sees the key; None if it sees all"""
    left, right = window
    if causal:
        right = 0
    aligned = torch.arange(Tk - Tq, Tk, device=device)[:, None]
    keys = torch.arange(Tk, device=device)
    mask = None
    if right >= 0 and not (Tq == 1 and Tk > 0):
        mask = keys <= aligned + right
    if 0 <= left < Tk - 1:
        near = keys >= aligned - left
        mask = near if mask is None else mask & near
    return mask


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, softcap: float) -> Tensor:
    """Attention with scores softcap * tanh(score / softcap), which no fused operator offers."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = up(q @ k.mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0).to(v.dtype) @ v


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
) -> Tensor:
    Tq, Tk = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, T, D]
    plain_causal = causal and Tq == Tk and Tq > 1 and not 0 <= window_size[0] < Tk - 1
    mask = None if plain_causal and not softcap else _mask(Tq, Tk, causal, window_size, q.device)
    if softcap:
        if dropout_p:
            raise unsupported("dropout_p", dropout_p, "0.0 together with `softcap`")
        return _capped(q, k, v, mask, softmax_scale, softcap).transpose(1, 2)
    o = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout_p,
        is_causal=plain_causal,
        scale=softmax_scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return o.transpose(1, 2)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """As in flash-attn, on CPU tensors of any float dtype -> `[B, Tq, H, Dv]`. Always deterministic."""
    _check(q, alibi_slopes, return_attn_probs)
    return attention(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """As in flash-attn, on CPU tensors of any float dtype -> `[sum of Tq, H, Dv]`. Always deterministic.

    The maxima are not needed: the lengths are read from `cu_seqlens_q` and `cu_seqlens_k`.

    Raises:
        NotImplementedError: An argument is not supported on a CPU.
    """  # noqa: DOC501 (`unsupported` makes that error)
    _check(q, alibi_slopes, return_attn_probs)
    if block_table is not None:
        raise unsupported("block_table", block_table.shape, "None: no paged key-value cache")
    options = (dropout_p, softmax_scale, causal, window_size, softcap)
    len_q, len_k = (cu.diff().tolist() for cu in (cu_seqlens_q, cu_seqlens_k))
    if len(set(len_q)) == len(set(len_k)) == 1:  # one batched call
        q, k, v = (x.unflatten(0, (len(len_q), -1)) for x in (q, k, v))
        return attention(q, k, v, *options).flatten(0, 1)
    parts = zip(q.split(len_q), k.split(len_k), v.split(len_k), strict=True)
    return torch.cat([attention(q_[None], k_[None], v_[None], *options)[0] for q_, k_, v_ in parts])


def _check(q: Tensor, alibi_slopes: Tensor | None, return_attn_probs: bool) -> None:
    if alibi_slopes is not None:
        raise unsupported("alibi_slopes", alibi_slopes.shape, "None")
    if return_attn_probs:
        raise unsupported("return_attn_probs", return_attn_probs, "False")
    if q.device.type != "cpu":
        raise ImportError(
            f"softmax attention on {q.device.type} tensors needs flash-attn: pip install flash-attn --no-build-isolation"
        )


@replacement("flash_attn.flash_attn_func, flash_attn.flash_attn_varlen_func in fla.layers")
def _stand_in_for_flash_attn() -> None:
    """fla's layers hold flash-attn's functions by name, or None if the package is missing."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.layers.") and hasattr(module, "flash_attn_func"):
            for ours in (flash_attn_func, flash_attn_varlen_func):
                theirs = getattr(module, ours.__name__, None)
                put(module, ours.__name__, ours if theirs is None else _by_device(ours, theirs))


def _by_device(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
    def function(q: Tensor, *args: Any, **kwargs: Any) -> Any:
        return (ours if q.device.type == "cpu" else theirs)(q, *args, **kwargs)

    function.__name__ = ours.__name__
    return function


importlib.import_module("fla.layers")
