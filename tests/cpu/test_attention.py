"""Softmax attention under flash-attn's names, against its conventions written out here."""

import fla.layers.attn
import pytest
import torch

from tests.cpu.compare import check_gradients, close, compare

H, HK, D, DV = 4, 2, 8, 6
flash_attn_func = fla.layers.attn.flash_attn_func
flash_attn_varlen_func = fla.layers.attn.flash_attn_varlen_func


def definition(q, k, v, causal=False, window=(-1, -1), scale=D**-0.5, softcap=0.0):
    Tq, Tk = q.shape[1], k.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    i, j = torch.arange(Tq)[:, None] + Tk - Tq, torch.arange(Tk)
    left, right = window[0], 0 if causal else window[1]
    seen = torch.ones(Tq, Tk, dtype=torch.bool)
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    weights = scores.masked_fill(~seen, -1e30).softmax(-1) * seen.any(-1)[:, None]
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def tensors(Tq, Tk, B=2):
    return torch.randn(B, Tq, H, D), torch.randn(B, Tk, HK, D), torch.randn(B, Tk, HK, DV)


@pytest.mark.parametrize(("Tq", "Tk"), [(7, 7), (3, 9), (1, 9), (9, 3), (1, 1)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [(-1, -1), (2, 0), (2, 1), (0, 0), (100, 100)])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_attention(Tq, Tk, causal, window, softcap):
    """With more queries than keys the first queries see nothing, and give zero."""
    compare(
        lambda *x: flash_attn_func(*x, causal=causal, window_size=window, softcap=softcap, softmax_scale=0.3),
        lambda *x: definition(*x, causal, window, 0.3, softcap),
        tensors(Tq, Tk),
    )


@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_gradcheck(softcap):
    check_gradients(lambda *x: flash_attn_func(*x, causal=True, softcap=softcap), tensors(3, 5))


@pytest.mark.parametrize(
    ("len_q", "len_k"), [([5, 1, 7], [5, 1, 7]), ([4, 4], [4, 4]), ([1, 1, 1], [3, 8, 1]), ([1, 1], [6, 6])]
)
def test_variable_length(len_q, len_k):
    cu_q, cu_k = (torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0) for lengths in (len_q, len_k))
    q, k, v = (x[0] for x in tensors(sum(len_q), sum(len_k), 1))

    def reference(q, k, v):
        parts = zip(q[None].split(len_q, 1), k[None].split(len_k, 1), v[None].split(len_k, 1), strict=True)
        return torch.cat([definition(*part, causal=True, window=(3, 0)) for part in parts], 1)[0]

    compare(
        lambda *x: flash_attn_varlen_func(*x, cu_q, cu_k, max(len_q), max(len_k), causal=True, window_size=(3, 0)),
        reference,
        [q, k, v],
    )


def test_low_precision():
    q, k, v = (x.bfloat16() for x in tensors(7, 7))
    o = flash_attn_func(q, k, v, causal=True)
    assert o.dtype == torch.bfloat16
    close(o, definition(q.double(), k.double(), v.double(), True), 2**-7)


def test_dropout():
    q, k, v = tensors(64, 64)
    assert not torch.equal(flash_attn_func(q, k, v, dropout_p=0.5), flash_attn_func(q, k, v, dropout_p=0.5))


def test_what_it_does_not_do():
    q, k, v = tensors(3, 3)
    for options, name in (
        ({"alibi_slopes": torch.ones(H)}, "alibi_slopes"),
        ({"return_attn_probs": True}, "return_attn_probs"),
        ({"softcap": 1.0, "dropout_p": 0.1}, "dropout_p"),
    ):
        with pytest.raises(NotImplementedError, match=name):
            flash_attn_func(q, k, v, **options)
    cu = torch.tensor([0, 3])
    with pytest.raises(NotImplementedError, match="block_table"):
        flash_attn_varlen_func(q[0], k[0], v[0], cu, cu, 3, 3, block_table=torch.zeros(1, 1))
    with pytest.raises(ImportError, match="flash-attn"):
        flash_attn_func(*(x.to("meta") for x in (q, k, v)))
