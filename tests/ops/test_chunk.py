"""chunk_mesa_net with the PyTorch back end against the truth in float64."""

import functools

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, naive_mesa_net_exact
from fla_mesa.testing.cases import (
    INPUTS,
    OUTPUTS,
    SMALL,
    STATED,
    Case,
    draw,
    errors,
    paper_solve,
    relative_error,
    run,
    truth,
)

op = functools.partial(chunk_mesa_net, backend="pytorch", max_CG_iteration=64)


@pytest.mark.parametrize("scale", [1, 1e-4, 1e-8, 1e-12])
@pytest.mark.parametrize("name", STATED)
def test_stated_accuracy(name, scale):
    case = STATED[name]
    for tolerance, bound in ((1e-4, 1e-3), (1e-6, 5e-5)):
        worst = errors(run(op, case, scale=scale, cg_tolerance=tolerance), truth(case))
        assert max(worst.values()) <= bound, worst


@pytest.mark.parametrize("name", STATED)
def test_thirty_steps_suffice(name):
    worst = errors(run(functools.partial(chunk_mesa_net, backend="pytorch"), STATED[name]), truth(STATED[name]))
    assert max(worst.values()) <= 1e-3, worst


@pytest.mark.parametrize("name", SMALL)
def test_shapes(name):
    worst = errors(run(op, SMALL[name], cg_tolerance=1e-6), truth(SMALL[name]))
    assert max(worst.values()) <= 5e-6, worst


@pytest.mark.parametrize("exponent", [-30, -12, 12, 30])
def test_scaling_the_upstream_gradient_scales_the_gradients(exponent):
    # By powers of two, so that the scaling itself does not round.
    case, scale = Case(T=80, K=16, V=16), 2.0 ** (exponent * 3)
    one, scaled = run(op, case), run(op, case, scale=scale)
    for name in one:
        assert relative_error(scaled[name], one[name]) < 1e-6, name


def test_scaling_the_queries_scales_the_output():
    x = draw(Case(T=80, K=16, V=16))
    o = op(*x.values())[0]
    for scale in (2.0**-90, 2.0**90):
        torch.testing.assert_close(op(**{**x, "q": x["q"] * scale})[0] / scale, o, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["packed", "one more than a tile", "odd sizes"])
def test_gradcheck(name):
    case = {
        "packed": Case(T=23, H=1, K=4, V=3, lengths=(1, 15, 7), spread=1.0),
        "one more than a tile": Case(T=65, H=1, K=2, V=2),
        "odd sizes": Case(B=2, T=5, H=2, K=3, V=5, spread=1.0),
    }[name]
    x = draw(case, torch.float64)

    def f(q, k, v, g, beta, lamb, h_kk, h_kv):
        # The op takes H as symmetric: perturb it in that space.
        return op(
            q,
            k,
            v,
            g,
            beta,
            lamb,
            (h_kk + h_kk.mT) / 2,
            h_kv,
            output_final_state=True,
            cu_seqlens=case.cu_seqlens,
            cg_tolerance=1e-14,
        )

    assert torch.autograd.gradcheck(f, tuple(x.values()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_only_inputs_and_output(dtype):
    case = Case(T=150, K=32, V=32)
    got, want = run(op, case, dtype), truth(case, dtype)
    unit = torch.finfo(dtype).eps
    for name, error in errors(got, want).items():
        assert error < (1e-4 if name in OUTPUTS[1:] else unit), (name, error)
    assert got["o"].dtype == dtype


def test_autocast_runs_the_inside_in_float32():
    case = Case(T=150, K=32, V=32)
    x = draw(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        o = op(*x.values())[0]
        o.float().sum().backward()
    assert o.dtype == torch.bfloat16
    assert relative_error(o, truth(case, torch.float32)["o"]) < 1e-2
    plain = draw(case, torch.bfloat16)
    want = op(plain["q"], plain["k"], plain["v"], *[x[name].detach() for name in INPUTS[3:]])[0]
    torch.testing.assert_close(o, want)
    assert x["q"].grad is not None and x["q"].grad.dtype == torch.float32


def test_the_l2_norm_is_fla_s_and_differentiable():
    x = draw(Case(T=40, K=16, V=16))
    raw = {name: (3 * x[name]).detach().requires_grad_() for name in ("q", "k")}
    normal = {name: r / (r.square().sum(-1, keepdim=True) + 1e-6).sqrt() for name, r in raw.items()}
    inside = op(**{**x, **raw}, use_qk_l2norm_in_kernel=True)[0]
    outside = op(**{**x, **normal})[0]
    torch.testing.assert_close(inside, outside, rtol=1e-5, atol=1e-6)
    weight = torch.randn_like(inside)
    for a, b in zip(
        *(torch.autograd.grad((o * weight).sum(), list(raw.values())) for o in (inside, outside)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_states_carry_over_a_split_at_any_place():
    x = {name: value.detach() for name, value in draw(Case(T=150, K=16, V=24)).items()}
    want = op(**x, output_final_state=True, cg_tolerance=1e-6)
    for split in (1, 37, 64, 149):
        first, second = (
            {n: (v[:, s] if n in INPUTS[:5] else v) for n, v in x.items()} for s in (slice(split), slice(split, None))
        )
        o1, h_kk, h_kv = op(**first, output_final_state=True, cg_tolerance=1e-6)
        o2, h_kk, h_kv = op(
            **{**second, "h_kk_init": h_kk, "h_kv_init": h_kv}, output_final_state=True, cg_tolerance=1e-6
        )
        for got, wanted in zip((torch.cat([o1, o2], 1), h_kk, h_kv), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("steps", "spread"), [(0, 0.0), (0, 1.0), (1, 0.0), (2, 0.0), (5, 0.0)])
def test_its_steps_are_the_paper_s_where_lamb_is_one_number(steps, spread):
    x = {n: v.detach() for n, v in draw(Case(T=70, H=2, K=24, V=16, spread=spread), torch.float64).items()}
    o, *_, stats = op(**x, max_CG_iteration=steps, cg_tolerance=1e-30, return_stats=True)
    h, G, want = x["h_kk_init"], x["h_kv_init"], []
    for t in range(70):
        decay, key = x["g"][:, t, :, None, None].exp(), x["k"][:, t, :, :, None]
        h = decay * h + x["beta"][:, t, :, None, None] * key * key.mT
        G = decay * G + x["beta"][:, t, :, None, None] * key * x["v"][:, t, :, None, :]
        want.append((G.mT @ paper_solve(h, x["lamb"], x["q"][:, t], steps)[..., None])[..., 0])
    assert (stats.iterations == steps).all()
    torch.testing.assert_close(o, torch.stack(want, 1), rtol=1e-9, atol=1e-12)


def test_no_step_has_no_gradients():
    o = op(*draw(Case(T=9, K=8, V=8)).values(), max_CG_iteration=0)[0]
    with pytest.raises(ValueError, match="max_CG_iteration=0 and backend='diagonal' have no gradients"):
        o.sum().backward()


def test_statistics():
    x = draw(Case(B=2, T=100, K=32, V=32))
    zero = torch.zeros_like(x["q"][:, 10:11])
    x["q"] = torch.cat([x["q"][:, :10], zero, x["q"][:, 11:]], 1)
    o, _, _, stats = op(**x, return_stats=True)
    assert stats.iterations.shape == stats.residual.shape == (2, 100, 2)
    assert stats.iterations.dtype == torch.int32 and stats.residual.dtype == torch.float32
    assert (stats.residual <= 1e-4).all()
    assert (stats.iterations[:, 10] == 0).all() and (o[:, 10] == 0).all()
    others = torch.arange(100) != 10
    assert (stats.iterations[:, others] >= 1).all() and (stats.iterations < 64).all()
    loose = op(**x, return_stats=True, cg_tolerance=1e-1)[3].iterations
    assert (loose <= stats.iterations).all() and loose.sum() < stats.iterations.sum()
    assert op(**x, return_stats=True, max_CG_iteration=2)[3].iterations.max() == 2


def test_the_residual_is_that_of_the_solution():
    """Recomputed from the definition, in the norm weighted by 1 / lamb, for a solve that was cut short."""
    case = Case(T=80, H=1, K=16, V=16, spread=1.0)
    x = {n: v.detach() for n, v in draw(case, torch.float64).items()}
    stats = op(**x, max_CG_iteration=3, return_stats=True)[3]
    # With values equal to unit vectors times a large state, o gives x back: G_t'x with v = k is H_t x.
    H, want = x["h_kk_init"][0, 0], []
    o = op(**{**x, "v": x["k"], "h_kv_init": x["h_kk_init"]}, max_CG_iteration=3)[0][0, :, 0]  # H_t x_t
    for t in range(80):
        H = x["g"][0, t, 0].exp() * H + x["beta"][0, t, 0] * torch.outer(x["k"][0, t, 0], x["k"][0, t, 0])
        solution = torch.linalg.solve(H, o[t])
        r = x["q"][0, t, 0] - o[t] - x["lamb"][0] * solution
        weight = x["lamb"][0].rsqrt()
        want.append((r * weight).norm() / (x["q"][0, t, 0] * weight).norm())
    torch.testing.assert_close(stats.residual[0, :, 0], torch.stack(want).float(), rtol=1e-4, atol=1e-6)
    assert stats.residual.max() > 1e-2


def test_repeated_keys_without_forgetting_stay_finite():
    T, K = 20_000, 64
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, K), dim=-1).expand(1, T, 1, K).clone().requires_grad_()
    v = torch.randn(1, T, 1, K, requires_grad=True)
    g, beta = torch.zeros(1, T, 1, requires_grad=True), torch.ones(1, T, 1, requires_grad=True)
    lamb = torch.full((1, K), 0.25, requires_grad=True)
    for query in (k, torch.nn.functional.normalize(torch.randn(1, T, 1, K), dim=-1)):
        o, h_kk, h_kv = chunk_mesa_net(query, k, v, g, beta, lamb, output_final_state=True)
        gradients = torch.autograd.grad(o.square().mean(), (k, v, g, beta, lamb))
        assert all(bool(torch.isfinite(x).all()) for x in (o, h_kk, h_kv, *gradients))
    # Ridge regression on one repeated key: the prediction is the mean of the values seen, shrunk by lamb.
    with torch.no_grad():
        o = chunk_mesa_net(k, k, v, g, beta, lamb)[0]
        t = torch.arange(1, T + 1).view(1, T, 1, 1)
        assert relative_error(o, v.double().cumsum(1) / (t + 0.25)) < 1e-3


def test_no_forgetting_is_the_original_mesa_layer():
    """gamma = beta = 1: the inverse by Sherman and Morrison's formula, as the first Mesa layer computed it (arXiv 2309.05858)."""
    x = draw(Case(T=90, H=1, K=16, V=16, gates=(1.0, 1.0), initial=False), torch.float64)
    beta, k, v, q = torch.ones_like(x["beta"]), x["k"][0, :, 0], x["v"][0, :, 0], x["q"][0, :, 0]
    R, G, want = torch.diag(1 / x["lamb"][0]), torch.zeros(16, 16, dtype=torch.float64), []
    for t in range(90):
        Rk = R @ k[t]
        R = R - torch.outer(Rk, Rk) / (1 + k[t] @ Rk)
        G = G + torch.outer(k[t], v[t])
        want.append(G.mT @ (R @ q[t]))
    got = op(**{**x, "beta": beta}, cg_tolerance=1e-13)[0]
    torch.testing.assert_close(got[0, :, 0], torch.stack(want), rtol=1e-9, atol=1e-9)


def test_a_gate_of_zero_forgets_everything():
    x = draw(Case(T=80, K=16, V=16))
    g = x["g"].detach().clone()
    g[:, 40] = -torch.inf
    o, h_kk, h_kv = op(**{**x, "g": g}, output_final_state=True, cg_tolerance=1e-6)
    tail = {n: v[:, 40:] if n in INPUTS[:5] else None if n.startswith("h_") else v for n, v in ({**x, "g": g}).items()}
    want = op(**{**tail, "g": tail["g"].clamp(min=-1e3)}, output_final_state=True, cg_tolerance=1e-6)
    for a, b in zip((o[:, 40:], h_kk, h_kv), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta"])
@pytest.mark.parametrize("lengths", [None, (30, 100, 20)])
def test_nan_touches_only_what_depends_on_it(name, lengths):
    case, at = Case(T=150, H=2, K=16, V=16, lengths=lengths), 70
    x = {n: v.detach() for n, v in draw(case).items()}
    clean = op(**x, output_final_state=True, cu_seqlens=case.cu_seqlens)
    bad = x[name].clone()
    bad[(0, at, 1) if bad.ndim == 3 else (0, at, 1, 5)] = torch.nan
    o, h_kk, h_kv, stats = op(
        **{**x, name: bad}, output_final_state=True, cu_seqlens=case.cu_seqlens, return_stats=True
    )
    end = 130 if lengths else 150
    touched = torch.zeros_like(o, dtype=torch.bool)
    touched[0, at : at + 1 if name == "q" else end, 1, 5 if name == "v" else slice(None)] = True
    assert torch.equal(o.isnan(), touched)
    torch.testing.assert_close(o[~touched], clean[0][~touched])
    if name in ("k", "g", "beta"):
        assert h_kk[-1 if lengths is None else 1, 1].isnan().all() and not h_kk[:, 0].isnan().any()
        assert stats.residual.isnan().any()
    else:
        torch.testing.assert_close(h_kk, clean[1])
    if name == "q":
        torch.testing.assert_close(h_kv, clean[2])
    if lengths:
        assert not h_kv[0].isnan().any() and not h_kv[2].isnan().any()


def test_nan_reaches_the_gradients():
    x = draw(Case(T=70, K=16, V=16))
    bad = x["k"].detach().clone()
    bad[0, 30, 0, 0] = torch.nan
    op(**{**x, "k": bad})[0].sum().backward()
    assert x["q"].grad[0, 30:, 0].isnan().all() and not x["q"].grad[0, :30, 0].isnan().any()
    assert x["v"].grad[0, :, 0].isnan().any() and not x["v"].grad[0, :, 1].isnan().any()


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    lengths=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    packed=st.booleans(),
    K=st.integers(1, 20),
    V=st.integers(1, 20),
    low=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    mean=st.sampled_from([0.0, 3.0]),
    spread=st.sampled_from([0.0, 1.0]),
    initial=st.booleans(),
    exponent=st.integers(-30, 12),
)
def test_any_input(lengths, packed, K, V, low, mean, spread, initial, exponent):
    shape = {"T": sum(lengths), "lengths": tuple(lengths)} if packed else {"T": lengths[0], "B": len(lengths)}
    case = Case(H=1, K=K, V=V, gates=(low, 1.0), mean=mean, spread=spread, initial=initial, **shape)
    worst = errors(run(op, case, scale=10.0**exponent, cg_tolerance=1e-6), truth(case))
    # With one channel the gradient of some inputs vanishes in exact arithmetic; an absolute bound on what is left serves there.
    size = {name: float(value.norm()) for name, value in truth(case).items()}
    assert all(error * min(1.0, size[name]) < 2e-5 for name, error in worst.items() if size[name] > 0), worst


def test_the_reference_is_the_definition():
    """One position by hand: H = beta k k' + e^g H0, o = G' (H + L)^-1 q."""
    x = {n: v.detach() for n, v in draw(Case(T=1, H=1, K=3, V=2), torch.float64).items()}
    k, v, q = x["k"][0, 0, 0], x["v"][0, 0, 0], x["q"][0, 0, 0]
    decay, beta = x["g"][0, 0, 0].exp(), x["beta"][0, 0, 0]
    H = decay * x["h_kk_init"][0, 0] + beta * torch.outer(k, k)
    G = decay * x["h_kv_init"][0, 0] + beta * torch.outer(k, v)
    o = G.mT @ torch.linalg.inv(H + torch.diag(x["lamb"][0])) @ q
    got = naive_mesa_net_exact(*(x[n] for n in ("q", "k", "v", "g", "lamb", "beta", "h_kk_init", "h_kv_init")))
    for a, b in zip(got, (o[None, None, None], H[None, None], G[None, None]), strict=True):
        torch.testing.assert_close(a, b)
