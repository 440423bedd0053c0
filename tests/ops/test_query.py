"""mesa_net_query against its definition in float64."""

import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_query
from fla_mesa.testing.cases import Case, draw, relative_error

CASE = Case(B=2, T=40, H=3, K=16, V=24, spread=1.0)
NAMES = ("q", "h_kk", "h_kv", "lamb")


def inputs(dtype=torch.float32, case=CASE):
    x = draw(case, dtype)
    return [x[n].detach().requires_grad_() for n in ("q", "h_kk_init", "h_kv_init", "lamb")]


def definition(q, h_kk, h_kv, lamb):
    q, h_kk, h_kv, lamb = (x.double() for x in (q, h_kk, h_kv, lamb))
    x = torch.linalg.solve(h_kk + torch.diag_embed(lamb), q.permute(0, 2, 3, 1))
    return (h_kv.mT @ x).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("tolerance", "scale", "bound"), [(1e-4, 1e-12, 2e-4), (1e-6, 1.0, 2e-6)])
def test_it_is_its_definition_with_gradients(tolerance, scale, bound):
    x = inputs()
    o, stats = mesa_net_query(*x, cg_tolerance=tolerance, return_stats=True)
    want = definition(*x)
    weight = torch.randn_like(want)
    assert relative_error(o, want) < bound and o.dtype == torch.float32
    assert stats.iterations.shape == stats.residual.shape == (2, 40, 3) and bool((stats.residual <= tolerance).all())
    gradients = torch.autograd.grad(o, x, (scale * weight).float())
    for name, got, wanted in zip(NAMES, gradients, torch.autograd.grad(want, x, weight), strict=True):
        assert relative_error(got / scale, wanted) < bound, name
        assert got.dtype == torch.float32


def test_gradcheck():
    def f(q, h_kk, h_kv, lamb):
        return mesa_net_query(q, (h_kk + h_kk.mT) / 2, h_kv, lamb, cg_tolerance=1e-14)

    assert torch.autograd.gradcheck(f, inputs(torch.float64, Case(B=2, T=3, H=2, K=3, V=2, spread=1.0)))


def test_it_is_the_op_over_keys_of_zero():
    q, h_kk, h_kv, lamb = (x.detach() for x in inputs())
    zero = torch.zeros(2, 40, 3)
    want = chunk_mesa_net(
        q, torch.zeros_like(q), torch.zeros(2, 40, 3, 24), zero, zero, lamb, h_kk, h_kv, cg_tolerance=1e-6
    )
    torch.testing.assert_close(mesa_net_query(q, h_kk, h_kv, lamb, cg_tolerance=1e-6), want[0], rtol=1e-4, atol=1e-5)


def test_other_back_ends_and_dtypes():
    x = inputs(torch.float64)
    o = mesa_net_query(*x, backend="exact")
    assert relative_error(o, definition(*x)) < 1e-12
    weight = torch.randn_like(o)
    wanted = torch.autograd.grad(definition(*x), x, weight)
    assert all(relative_error(a, b) < 1e-11 for a, b in zip(torch.autograd.grad(o, x, weight), wanted, strict=True))
    q, h_kk, h_kv, lamb = (v.detach() for v in x)
    start = q / (torch.diagonal(h_kk, dim1=-2, dim2=-1) + lamb)[:, None]
    want = (start.transpose(1, 2) @ h_kv).transpose(1, 2)
    torch.testing.assert_close(mesa_net_query(q, h_kk, h_kv, lamb, backend="diagonal"), want)
    torch.testing.assert_close(mesa_net_query(q, h_kk, h_kv, lamb, 0), want)
    half = [v.detach() for v in inputs(torch.bfloat16)]
    o = mesa_net_query(*half)
    assert o.dtype == torch.bfloat16 and relative_error(o, definition(*half)) < 5e-3


def test_zero_and_nan_queries():
    q, h_kk, h_kv, lamb = (x.detach() for x in inputs())
    q[0, 3], q[1, 4, 2, 5] = 0, torch.nan
    o, stats = mesa_net_query(q, h_kk, h_kv, lamb, return_stats=True)
    assert not o[0, 3].any() and not stats.iterations[0, 3].any()
    assert bool(o[1, 4, 2].isnan().all()) and int(o.isnan().any(-1).sum()) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(2, 3, 16)}, ValueError, r"q must have shape \[B, T, H, K\]"),
        ({"h_kk": torch.zeros(1, 3, 16, 16)}, ValueError, r"h_kk must have shape \[B, H, K, K\] = \[2, 3, 16, 16\]"),
        ({"h_kv": torch.zeros(2, 3, 8, 24)}, ValueError, r"h_kv must have shape \[B, H, K, V\] = \[2, 3, 16, 24\]"),
        ({"h_kv": None}, TypeError, "h_kv must be a tensor"),
        ({"h_kk": torch.ones(2, 3, 16, 16).triu()}, ValueError, "h_kk must be symmetric"),
        ({"lamb": torch.zeros(3, 16)}, ValueError, "lamb must be > 0"),
        ({"max_CG_iteration": -1}, ValueError, "max_CG_iteration must be an integer >= 0"),
        (
            {"backend": "triton"},
            ValueError,
            "backend='triton' cannot read a state without a step. Use backend='pytorch'",
        ),
    ],
)
def test_bad_arguments(changes, error, message):
    arguments = dict(zip(NAMES, (x.detach() for x in inputs()), strict=True))
    with pytest.raises(error, match=message):
        mesa_net_query(**{**arguments, **changes})
