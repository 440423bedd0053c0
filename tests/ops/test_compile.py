"""The op inside `torch.compile`: one break of the graph a call, and the same results."""

import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step, mesa_net_query
from fla_mesa.testing.cases import INPUTS, Case, draw

CASE = Case(T=40, H=1, K=8, V=8, lengths=(15, 25))


def over_sequences(x):
    o, h_kk, h_kv, stats = chunk_mesa_net(
        *(2 * x[name] if name == "v" else x[name] for name in INPUTS),
        output_final_state=True, use_qk_l2norm_in_kernel=True, cu_seqlens=CASE.cu_seqlens, cg_tolerance=1e-6, return_stats=True,
    )  # fmt: skip
    return o.square().sum() + h_kk.sum() + h_kv.sum() + stats.residual.max()


def one_step(x):
    first = [x[name][0, :2] for name in ("q", "k", "v", "g")]
    return mesa_net_decoding_one_step(*first, x["lamb"], x["beta"][0, :2], x["h_kk_init"], x["h_kv_init"])[0].sum() * 2


def read(x):
    return mesa_net_query(x["q"][:, :5], x["h_kk_init"][:1], x["h_kv_init"][:1], x["lamb"]).sum() * 2


@pytest.mark.parametrize("function", [over_sequences, one_step, read])
def test_one_break_and_the_same_results(function):
    x = draw(CASE)
    # What follows the op is compiled: two graphs, or one where nothing stands before it.
    found = torch._dynamo.explain(function)(x)
    assert found.graph_break_count <= 1 and found.graph_count <= 2, found.break_reasons
    compiled = torch.compile(function, backend="eager")
    want, got = function(x), compiled(x)
    assert torch.equal(got, want)
    if function is one_step:
        return
    needed = [value for value in x.values() if value is not None]
    for a, b in zip(
        torch.autograd.grad(got, needed, allow_unused=True),
        torch.autograd.grad(want, needed, allow_unused=True),
        strict=True,
    ):
        assert (a is None and b is None) or torch.equal(a, b)
