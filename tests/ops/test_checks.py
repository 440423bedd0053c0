"""Bad arguments: an error that names the argument, what came and what is allowed."""

import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.testing.cases import Case, draw

CASE = Case(B=2, T=5, H=2, K=4, V=3)


def chunk_args(**changes):
    return {**{n: v.detach() for n, v in draw(CASE).items()}, **changes}


def packed_args(**changes):
    x = {n: v.detach() for n, v in draw(Case(B=1, T=5, H=2, K=4, V=3, initial=False)).items() if v is not None}
    return {**x, "cu_seqlens": torch.tensor([0, 2, 5]), **changes}


def changed(**changes):
    return lambda: chunk_mesa_net(**chunk_args(**changes))


def packed(**changes):
    return lambda: chunk_mesa_net(**packed_args(**changes))


z = torch.zeros
BAD = {
    "q of rank 3": (
        changed(q=z(2, 5, 4)),
        ValueError,
        r"q must have shape \[B, T, H, K\].*got a torch.float32 tensor of shape \[2, 5, 4\]",
    ),
    "q empty": (changed(q=z(2, 0, 2, 4)), ValueError, r"q must have shape.*\[2, 0, 2, 4\]"),
    "q of integers": (
        changed(q=z(2, 5, 2, 4, dtype=torch.long)),
        TypeError,
        "q must be a tensor of float64.*got a torch.int64",
    ),
    "q no tensor": (changed(q=[1.0]), TypeError, "q must be a tensor.*got .1.0. of type list"),
    "k of another length": (
        changed(k=z(2, 6, 2, 4)),
        ValueError,
        r"k must have shape \[B, T, H, K\] = \[2, 5, 2, 4\]; got .*\[2, 6, 2, 4\]",
    ),
    "k of another size": (changed(k=z(2, 5, 2, 8)), ValueError, r"k must have shape.*got .*\[2, 5, 2, 8\]"),
    "v of other heads": (changed(v=z(2, 5, 3, 3)), ValueError, r"v must have shape \[B, T, H, V\] = \[2, 5, 2, any\]"),
    "v without channels": (changed(v=z(2, 5, 2, 0)), ValueError, "v must have a value size V >= 1"),
    "g of rank 4": (changed(g=z(2, 5, 2, 4)), ValueError, r"g must have shape \[B, T, H\] = \[2, 5, 2\]"),
    "beta transposed": (changed(beta=z(2, 2, 5)), ValueError, r"beta must have shape \[B, T, H\] = \[2, 5, 2\]"),
    "lamb of another shape": (changed(lamb=torch.ones(4, 2)), ValueError, r"lamb must have shape \[H, K\] = \[2, 4\]"),
    "lamb zero": (changed(lamb=z(2, 4)), ValueError, "lamb must be > 0 everywhere; its smallest value is 0"),
    "lamb negative": (
        changed(lamb=-torch.ones(2, 4)),
        ValueError,
        "lamb must be > 0 everywhere; its smallest value is -1",
    ),
    "a gate above 1": (
        changed(g=torch.full((2, 5, 2), 0.5)),
        ValueError,
        "g must be <= 0 everywhere, the logarithm of a gate; its largest value is 0.5",
    ),
    "beta above 1": (
        changed(beta=torch.full((2, 5, 2), 1.5)),
        ValueError,
        r"beta must be in \[0, 1\] .* between 1.5 and 1.5",
    ),
    "beta below 0": (changed(beta=torch.full((2, 5, 2), -0.5)), ValueError, r"beta must be in \[0, 1\] everywhere"),
    "an asymmetric state": (
        changed(h_kk_init=torch.ones(2, 2, 4, 4).triu()),
        ValueError,
        "h_kk_init must be symmetric; entries differ from their transposes by up to 1 of the largest",
    ),
    "dtypes that differ": (
        changed(v=z(2, 5, 2, 3, dtype=torch.bfloat16)),
        TypeError,
        "v must have the dtype of q, torch.float32; got",
    ),
    "devices that differ": (
        changed(k=z(2, 5, 2, 4, device="meta")),
        ValueError,
        "k must be on the device of q, cpu; got .* on meta",
    ),
    "less than no step": (changed(max_CG_iteration=-1), ValueError, "max_CG_iteration must be an integer >= 0; got -1"),
    "half a step": (changed(max_CG_iteration=2.5), ValueError, "max_CG_iteration must be an integer >= 0; got 2.5"),
    "tolerance zero": (changed(cg_tolerance=0), ValueError, "cg_tolerance must be None or a finite number > 0; got 0"),
    "tolerance negative": (
        changed(cg_tolerance=-1e-4),
        ValueError,
        "cg_tolerance must be None or a finite number > 0; got -0.0001",
    ),
    "tolerance NaN": (
        changed(cg_tolerance=float("nan")),
        ValueError,
        "cg_tolerance must be None or a finite number > 0; got nan",
    ),
    "only h_kk": (changed(h_kv_init=None), ValueError, "must be given together; got h_kk_init without h_kv_init"),
    "only h_kv": (changed(h_kk_init=None), ValueError, "must be given together; got h_kv_init without h_kk_init"),
    "h_kk of another shape": (
        changed(h_kk_init=z(2, 2, 4, 3)),
        ValueError,
        r"h_kk_init must have shape \[N, H, K, K\] = \[2, 2, 4, 4\]",
    ),
    "h_kv of another shape": (
        changed(h_kv_init=z(1, 2, 4, 3)),
        ValueError,
        r"h_kv_init must have shape \[N, H, K, V\] = \[2, 2, 4, 3\]",
    ),
    "state of 16 bits": (
        changed(h_kk_init=z(2, 2, 4, 4).bfloat16()),
        TypeError,
        "h_kk_init must be float32 or float64",
    ),
    "unknown back end": (
        changed(backend="cuda"),
        ValueError,
        "backend must be None or one of .*'pytorch'.*; got 'cuda'",
    ),
    "packed with B = 2": (
        changed(cu_seqlens=torch.tensor([0, 5])),
        ValueError,
        "cu_seqlens describes .* B = 1; got B = 2",
    ),
    "boundaries not from 0": (
        packed(cu_seqlens=torch.tensor([1, 5])),
        ValueError,
        "cu_seqlens must start at 0 and end at T = 5; got 1 and 5",
    ),
    "boundaries not to T": (
        packed(cu_seqlens=torch.tensor([0, 4])),
        ValueError,
        "cu_seqlens must start at 0 and end at T = 5; got 0 and 4",
    ),
    "boundaries that fall": (
        packed(cu_seqlens=torch.tensor([0, 4, 2, 5])),
        ValueError,
        "cu_seqlens must increase; got 4 and then 2 at index 1",
    ),
    "empty sequence": (
        packed(cu_seqlens=torch.tensor([0, 2, 2, 5])),
        ValueError,
        "cu_seqlens must increase; got 2 and then 2",
    ),
    "boundaries as floats": (
        packed(cu_seqlens=torch.tensor([0.0, 5.0])),
        TypeError,
        "cu_seqlens must be an int32 or int64 tensor",
    ),
    "boundaries of rank 2": (
        packed(cu_seqlens=torch.tensor([[0, 5]])),
        ValueError,
        r"cu_seqlens must have shape \[N \+ 1\]",
    ),
    "copy without original": (
        packed(cu_seqlens=None, cu_seqlens_cpu=torch.tensor([0, 5])),
        ValueError,
        "cu_seqlens_cpu is a copy of cu_seqlens",
    ),
    "copy that differs": (
        packed(cu_seqlens_cpu=torch.tensor([0, 5])),
        ValueError,
        "cu_seqlens_cpu must be a copy of cu_seqlens, 3 entries",
    ),
    "state per row, not per sequence": (
        packed(h_kk_init=z(1, 2, 4, 4), h_kv_init=z(1, 2, 4, 3)),
        ValueError,
        r"h_kk_init must have shape \[N, H, K, K\] = \[2, 2, 4, 4\]",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_chunk(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_gates_of_0_and_1_nan_and_rounding_pass():
    x = chunk_args()
    x["g"][0], x["g"][1, 2, 1], x["g"][1, 3] = 0, -torch.inf, torch.nan
    x["beta"][0], x["beta"][1, 0], x["beta"][1, 3] = 1, 0, torch.nan
    x["h_kk_init"] = x["h_kk_init"] * (1 + 1e-5 * torch.rand(4, 4))
    chunk_mesa_net(**x)
    x["h_kk_init"][0, 0, 1, 2] = torch.nan
    chunk_mesa_net(**x)


def step_args(**changes):
    x = {n: v.detach() for n, v in draw(Case(B=2, T=1, H=2, K=4, V=3)).items()}
    one = {n: x[n][:, 0] for n in ("q", "k", "v", "g", "beta")}
    return {**one, "lamb": x["lamb"], "prev_h_kk": x["h_kk_init"], "prev_h_kv": x["h_kv_init"], **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": z(2, 1, 2, 4)}, ValueError, r"q must have shape \[B, H, K\]"),
        ({"v": z(2, 3, 3)}, ValueError, r"v must have shape \[B, H, V\] = \[2, 2, any\]"),
        ({"prev_h_kk": None}, TypeError, "prev_h_kk must be a tensor"),
        ({"prev_h_kv": z(2, 2, 3, 4)}, ValueError, r"prev_h_kv must have shape \[N, H, K, V\] = \[2, 2, 4, 3\]"),
        ({"lamb": z(2, 4)}, ValueError, "lamb must be > 0"),
        ({"max_CG_iteration": -3}, ValueError, "max_CG_iteration must be an integer >= 0; got -3"),
        ({"cg_tolerance": 0.0}, ValueError, "cg_tolerance"),
        ({"g": torch.ones(2, 2)}, ValueError, "g must be <= 0"),
        ({"beta": -torch.ones(2, 2)}, ValueError, "beta must be in"),
        ({"prev_h_kk": torch.ones(2, 2, 4, 4).tril()}, ValueError, "prev_h_kk must be symmetric"),
        ({"backend": "numpy"}, ValueError, "backend must be None or one of"),
    ],
)
def test_step(changes, error, message):
    with pytest.raises(error, match=message):
        mesa_net_decoding_one_step(**step_args(**changes))
