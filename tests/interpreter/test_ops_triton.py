"""chunk_mesa_net on the Triton kernels, in the interpreter, against the truth in float64: the cases of the PyTorch back end, smaller."""

import dataclasses
import functools

import pytest
import torch

from fla_mesa import interpreter
from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step, triton
from fla_mesa.ops.backends import choose_backend
from fla_mesa.ops.gpu import Gpu
from fla_mesa.ops.triton import kernels_solve, launch
from fla_mesa.ops.triton.plan import make_plan
from fla_mesa.testing.cases import (
    INPUTS,
    OUTPUTS,
    SMALL,
    STATED,
    Case,
    draw,
    errors,
    relative_error,
    run,
    run_truth,
    truth,
    upstream,
)

# The interpreter takes seconds where the PyTorch back end takes milliseconds.
SHORT = {name: dataclasses.replace(case, T=100, H=1) for name, case in STATED.items()}
SMALL_HERE = {name: case if case.lengths else dataclasses.replace(case, H=1) for name, case in SMALL.items()}


op = functools.partial(chunk_mesa_net, backend="triton", max_CG_iteration=64)
by_pytorch = functools.partial(chunk_mesa_net, backend="pytorch", max_CG_iteration=64)


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(("tolerance", "scale", "bound"), [(1e-4, 1e-12, 1e-3), (1e-6, 1.0, 5e-5)])
def test_stated_accuracy(name, tolerance, scale, bound):
    worst = errors(run(op, SHORT[name], scale=scale, cg_tolerance=tolerance), truth(SHORT[name]))
    assert max(worst.values()) <= bound, worst


@pytest.mark.parametrize("name", SMALL_HERE)
def test_shapes(name):
    worst = errors(run(op, SMALL_HERE[name], cg_tolerance=1e-6), truth(SMALL_HERE[name]))
    assert max(worst.values()) <= 5e-6, worst


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_the_upstream_gradient_scales_the_gradients(dtype):
    # By powers of two, so that the scaling itself does not round.
    case = Case(T=70, H=1, K=16, V=16)
    one = run(op, case, dtype)
    for exponent in (-90, 90):
        scaled = run(op, case, dtype, scale=2.0**exponent)
        for name in one:
            assert relative_error(scaled[name], one[name]) < 1e-6, name


@pytest.mark.parametrize(("K", "V"), [(256, 16), (16, 256), (200, 130)])
def test_large_heads(K, V):
    case = Case(T=20, H=1, K=K, V=V)
    worst = errors(run(op, case, cg_tolerance=1e-6), truth(case))
    assert max(worst.values()) <= 5e-6, worst


def at_most_twice(case, dtype, **options):
    """The errors of the PyTorch back end on the same inputs, at the same tolerance."""
    want = truth(case, dtype)
    with interpreter.rounded_dots():
        ours = errors(run(op, case, dtype, **options), want)
    theirs = errors(run(by_pytorch, case, dtype, **options), want)
    for name in want:
        assert ours[name] <= 2 * theirs[name] + 1e-6, (name, ours[name], theirs[name])


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("scale", [1.0, 2.0**-40])
def test_sixteen_bits_cost_at_most_twice_the_error_of_the_pytorch_back_end(name, scale):
    at_most_twice(SHORT[name], torch.bfloat16, cg_tolerance=1e-3, scale=scale)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_float16_inputs_and_small_tolerances_of_16_bits_likewise(tolerance):
    at_most_twice(Case(T=90, H=1, K=32, V=32), torch.float16, cg_tolerance=tolerance)


@pytest.mark.parametrize("name", [name for name in SMALL_HERE if name != "one position"])
def test_shapes_of_sixteen_bits(name):
    at_most_twice(SMALL_HERE[name], torch.bfloat16, cg_tolerance=1e-3)


@pytest.mark.parametrize(("K", "V"), [(128, 128), (128, 200), (16, 128)])
def test_blocks_of_states_of_sixteen_bits(K, V):
    """Several to a state, each over a power of two of its own."""
    at_most_twice(Case(T=70, H=1, K=K, V=V), torch.bfloat16, cg_tolerance=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_l2_norm_is_that_of_the_pytorch_back_end(dtype):
    x = {
        name: None if value is None else value.detach()
        for name, value in draw(Case(T=70, H=1, K=24, V=16), dtype).items()
    }
    results = {}
    for backend in ("triton", "pytorch"):
        raw = {name: (3 * x[name]).requires_grad_() for name in ("q", "k")}
        o = chunk_mesa_net(**{**x, **raw}, use_qk_l2norm_in_kernel=True, cg_tolerance=1e-6, backend=backend)[0]
        (o.float() ** 2).sum().backward()
        results[backend] = [o, *(value.grad for value in raw.values())]
    for ours, theirs in zip(results["triton"], results["pytorch"], strict=True):
        assert ours.dtype == dtype
        assert relative_error(ours, theirs) < (1e-5 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("PRECISION", ["bf16x3", "tf32"])
def test_refinement_mends_products_in_low_precision(PRECISION):
    """Products rounded as tensor cores round them: the residual is reached all the same."""
    case = Case(T=40, H=1, K=64, V=16, mean=1.0, gates=(1.0, 1.0))
    x = {name: value.detach() for name, value in draw(case).items()}
    plan = make_plan(64, torch.float32, 1e-6)._replace(PRECISION=PRECISION)
    with interpreter.rounded_dots():
        out = triton.chunk_forward(
            *x.values(), cu_seqlens=None, cu_seqlens_cpu=None, max_steps=100, tolerance=1e-6, plan=plan
        )
    assert relative_error(out.o, truth(case)["o"]) < 1.5e-6 and out.residual.max() <= 1e-6


OPTIONS = {"cu_seqlens": None, "cu_seqlens_cpu": None, "max_steps": 100, "tolerance": 1e-3}


def drawn(case, dtype=torch.bfloat16):
    return {name: value.detach() for name, value in draw(case, dtype).items()}


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_round_of_float16_is_enough_for_most_tiles(capability, monkeypatch):
    """In as many steps as the float32 iteration but three, of which two are for ending well below the tolerance."""
    case = Case(T=128, H=1, K=64, V=16, mean=0.35)
    x = drawn(case)
    rounds, apply_halves = [], kernels_solve.apply_halves
    monkeypatch.setattr(kernels_solve, "apply_halves", lambda *a: rounds.append(0) or apply_halves(*a))
    half, precise = (make_plan(64, torch.bfloat16, t, kind=Gpu("nvidia", capability)) for t in (1e-3, 1e-6))
    assert half.HALF and not precise.HALF
    with interpreter.rounded_dots():
        want = triton.chunk_forward(*x.values(), plan=precise, **OPTIONS)
        out = triton.chunk_forward(*x.values(), plan=half, **OPTIONS)
    tiles = case.T // half.BR
    assert tiles <= len(rounds) <= 2 * tiles
    assert out.residual.max() <= 1e-3
    assert (out.iterations - want.iterations).max() <= 3
    assert relative_error(out.o, truth(case, torch.bfloat16)["o"]) < 2.2e-3


def test_no_step_is_the_paper_s_start():
    case = Case(T=70, H=1, K=32, V=16, spread=1.0)
    x = drawn(case)
    with interpreter.rounded_dots():
        o, *_, stats = chunk_mesa_net(**x, max_CG_iteration=0, cg_tolerance=1e-3, return_stats=True, backend="triton")
    want = chunk_mesa_net(**x, max_CG_iteration=0, return_stats=True, backend="pytorch")
    assert relative_error(o, want[0]) < 4e-3 and stats.iterations.max() == 0
    torch.testing.assert_close(stats.residual, want[3].residual, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("large", ["state", "keys"])
def test_what_float16_cannot_solve_is_said(large):
    """States indefinite when rounded to 11 bits, keys of hundreds: finite, and no row below the tolerance is wrong."""
    case, at = Case(T=70, H=1, K=32, V=16, gates=(1.0, 1.0)), 20
    x = drawn(case)
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    clean = {name: value.clone() for name, value in x.items()}
    if large == "state":
        at = 0
        x["h_kk_init"] = 4e3 * (x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]).float()
    else:
        x["k"][:, at:40] *= 300
    with interpreter.rounded_dots():
        out = triton.chunk_forward(*x.values(), **OPTIONS)
        untouched = triton.chunk_forward(*clean.values(), **OPTIONS)
    assert torch.isfinite(out.o).all() and torch.isfinite(out.residual).all()
    assert torch.equal(out.o[:, :at], untouched.o[:, :at])
    want = run_truth({name: value.double() for name, value in x.items()}, None)[0]
    error = (out.o.double() - want).norm(dim=-1) / want.norm(dim=-1)
    assert (out.residual > 1e-3).any() and (error[out.residual <= 1e-3] < 2e-2).all()


def test_the_residual_is_the_true_one_where_a_key_repeats():
    """Against H_t in float64, one key for hundreds of positions: what a residual of rounded states would hide."""
    case = Case(T=64, H=1, K=64, V=16, gates=(0.99, 0.99))
    x = drawn(case)
    x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 100 * (x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]).float()
    with interpreter.rounded_dots():
        out = triton.chunk_forward(*x.values(), **OPTIONS)
    q, k, beta, gate = (x[n][:, :, 0].double() for n in ("q", "k", "beta", "g"))
    H, lamb = x["h_kk_init"][0, 0].double(), x["lamb"][0].double()
    solutions = out.x[0, :, 0, : case.K].double() * 2.0 ** out.x[0, :, 0, case.K :][:, :1].double()
    for t in range(case.T):
        H = gate[0, t].exp() * H + beta[0, t] * k[0, t, :, None] * k[0, t]
        y = solutions[t]
        true = (q[0, t] - H @ y - lamb * y).norm() / q[0, t].norm()
        # The solution is rounded to 16 bits after the residual is computed.
        rounding = 2.0**-12 * (H.abs() @ y.abs() + lamb * y.abs()).norm() / q[0, t].norm()
        assert true <= 1.1 * float(out.residual[0, t, 0]) + rounding, t


class Thrice:
    """A kernel as autotuning launches it: again and again on the same memory."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launched(**arguments):
            for _ in range(3):
                self.kernel[grid](**arguments)

        return launched


def test_kernels_that_run_again_give_the_same(monkeypatch):
    """With rows that take several rounds, which read what the rounds before have written."""
    case = Case(T=70, H=2, K=32, V=16, gates=(0.97, 0.97))
    x = drawn(case)
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 3e2 * (x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]).float()
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))
    rounds, apply_halves = [], kernels_solve.apply_halves

    def both_ways():
        out = triton.chunk_forward(*x.values(), **OPTIONS)
        gradients = triton.chunk_backward(*list(x.values())[1:], out.x, do.bfloat16(), dh_kk, dh_kv, **OPTIONS)
        return out._replace(x=out.x[..., : case.K + 1]), gradients

    with interpreter.rounded_dots():
        with monkeypatch.context() as patch:
            patch.setattr(kernels_solve, "apply_halves", lambda *a: rounds.append(0) or apply_halves(*a))
            once = both_ways()
        assert len(rounds) > 2 * 2 * 2  # two chunks of two heads, both ways
        for name in ("solve_output_kernel", "solve_backward_kernel"):
            monkeypatch.setattr(launch, name, Thrice(getattr(kernels_solve, name)))
        again = both_ways()
    for part, want in zip(again, once, strict=True):
        for name, a, b in zip(want._fields, part, want, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_row_depends_on_what_later_ones_need(dtype):
    """Some of a tile solve in more steps and rounds than others: to the bit, their neighbours do not notice."""
    case = Case(T=60, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = drawn(case, dtype)
    out = triton.chunk_forward(*x.values(), **OPTIONS)
    x["k"][:, 45:] *= 30
    x["v"][:, 45:] += 1
    other = triton.chunk_forward(*x.values(), **OPTIONS)
    assert torch.equal(out.o[:, :45], other.o[:, :45]) and torch.equal(out.residual[:, :45], other.residual[:, :45])
    assert not torch.equal(out.o[:, 45:], other.o[:, 45:])


def test_blocks_as_on_a_gpu():
    """The interpreter reads larger blocks than a GPU does; here it reads the same."""
    case = Case(T=100, H=1, K=64, V=32)
    x = {name: value.detach() for name, value in draw(case).items()}
    options = OPTIONS | {"tolerance": 1e-6, "plan": make_plan(64, torch.float32, 1e-6)._replace(BS=16)}
    out = triton.chunk_forward(*x.values(), **options)
    want = truth(case)
    assert relative_error(out.o, want["o"]) < 5e-6
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))
    got = triton.chunk_backward(*list(x.values())[1:], out.x, do, dh_kk, dh_kv, **options)
    for name, gradient in zip(INPUTS, got, strict=True):
        assert relative_error(gradient, want[f"d{name}"]) < 5e-6, name


def test_the_same_bits_twice():
    case = Case(T=70, H=1, K=16, V=16)
    one, two = run(op, case), run(op, case)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_statistics():
    x = {n: v.detach() for n, v in draw(Case(B=2, T=70, H=2, K=16, V=16)).items()}
    x["q"][:, 10] = 0
    o, _, _, stats = op(**x, return_stats=True)
    want = chunk_mesa_net(**x, return_stats=True, backend="pytorch")[3]
    assert stats.iterations.dtype == torch.int32 and stats.residual.dtype == torch.float32
    assert stats.iterations.shape == stats.residual.shape == (2, 70, 2)
    assert (stats.residual <= 1e-4).all()
    assert (stats.iterations[:, 10] == 0).all() and (o[:, 10] == 0).all()
    assert (stats.iterations - want.iterations).abs().max() <= 1
    assert op(**{**x}, max_CG_iteration=2, return_stats=True)[3].iterations.max() == 2


def test_a_gate_of_zero_forgets_everything():
    x = {n: v.detach() for n, v in draw(Case(T=80, H=1, K=16, V=16)).items()}
    x["g"][:, 40] = -torch.inf
    got = op(**x, output_final_state=True, cg_tolerance=1e-6)
    want = chunk_mesa_net(**x, output_final_state=True, cg_tolerance=1e-6, backend="pytorch")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta"])
def test_nan_touches_only_what_depends_on_it(name, dtype):
    case, at = Case(T=100, H=2, K=16, V=16, lengths=(10, 75, 15)), 40
    x = drawn(case, dtype)
    clean = op(**x, output_final_state=True, cu_seqlens=case.cu_seqlens)
    bad = x[name].clone()
    bad[(0, at, 1) if bad.ndim == 3 else (0, at, 1, 5)] = torch.nan
    o, h_kk, h_kv, stats = op(
        **{**x, name: bad}, output_final_state=True, cu_seqlens=case.cu_seqlens, return_stats=True
    )
    touched = torch.zeros_like(o, dtype=torch.bool)
    touched[0, at : at + 1 if name == "q" else 85, 1, 5 if name == "v" else slice(None)] = True
    assert torch.equal(o.isnan(), touched)
    torch.testing.assert_close(o[~touched], clean[0][~touched])
    if name in ("k", "g", "beta"):
        assert h_kk[1, 1].isnan().all() and not h_kk[:, 0].isnan().any()
        assert stats.residual.isnan().any()
    else:
        torch.testing.assert_close(h_kk, clean[1])
    assert not h_kv[0].isnan().any() and not h_kv[2].isnan().any()


def test_repeated_keys_without_forgetting_stay_finite():
    T, K = 300, 16
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, K), dim=-1).expand(1, T, 1, K).clone().requires_grad_()
    v = torch.randn(1, T, 1, K, requires_grad=True)
    g, beta = torch.zeros(1, T, 1, requires_grad=True), torch.ones(1, T, 1, requires_grad=True)
    lamb = torch.full((1, K), 0.25, requires_grad=True)
    o, h_kk, h_kv = op(k, k, v, g, beta, lamb, output_final_state=True)
    gradients = torch.autograd.grad(o.square().mean(), (k, v, g, beta, lamb))
    assert all(bool(torch.isfinite(x).all()) for x in (o, h_kk, h_kv, *gradients))
    # Ridge regression on one repeated key: the prediction is the mean of the values seen, shrunk by lamb.
    t = torch.arange(1, T + 1).view(1, T, 1, 1)
    assert relative_error(o, v.double().cumsum(1) / (t + 0.25)) < 1e-3


@pytest.mark.parametrize(
    ("K", "V", "dtype"), [(16, 16, torch.float32), (24, 40, torch.bfloat16), (200, 16, torch.float32)]
)
def test_step(K, V, dtype):
    case = Case(B=2, T=1, H=2, K=K, V=V, spread=1.0)
    x = {n: v.detach() for n, v in draw(case, dtype).items()}
    step = [x[n][:, 0] if x[n].ndim > 2 and n in INPUTS[:5] else x[n] for n in ("q", "k", "v", "g")]
    before = [x["h_kk_init"].clone(), x["h_kv_init"].clone()]
    o, h_kk, h_kv, stats = mesa_net_decoding_one_step(
        *step, x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"], 64, cg_tolerance=1e-6, return_stats=True,
        backend="triton",
    )  # fmt: skip
    want = truth(case, dtype)
    assert relative_error(o, want["o"][:, 0]) < (1e-5 if dtype == torch.float32 else 4e-3)
    assert relative_error(h_kk, want["h_kk"]) < 1e-6 and relative_error(h_kv, want["h_kv"]) < 1e-6
    assert o.dtype == dtype and h_kk.dtype == torch.float32
    assert stats.residual.max() <= 1e-6 and stats.iterations.min() >= 1
    assert torch.equal(x["h_kk_init"], before[0]) and torch.equal(x["h_kv_init"], before[1])


def test_step_with_nan_and_zero_queries():
    case = Case(B=3, T=1, H=1, K=16, V=16)
    x = {n: v.detach() for n, v in draw(case).items()}
    x["q"][0], x["q"][1, 0, 0, 3] = 0, torch.nan
    o, *_, stats = mesa_net_decoding_one_step(
        *(x[n][:, 0] for n in ("q", "k", "v", "g")), x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"],
        return_stats=True, backend="triton",
    )  # fmt: skip
    assert (o[0] == 0).all() and o[1].isnan().all() and torch.isfinite(o[2]).all()
    assert stats.iterations[0] == 0 and stats.residual[0] == 0 and stats.residual[1].isnan()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "q has dtype torch.float64.*backend='pytorch'"),
        ({"K": 257}, "at most 256; q has head size 257.*backend='pytorch'"),
        ({"V": 300}, "at most 256; v has head size 300.*backend='pytorch'"),
    ],
)
def test_what_the_kernels_do_not_take(change, message):
    sizes = {"T": 2, "H": 1, "K": 16, "V": 16} | {n: s for n, s in change.items() if n != "dtype"}
    x = draw(Case(**sizes), change.get("dtype", torch.float32))
    with pytest.raises(ValueError, match=message):
        op(*x.values())


def test_a_device_without_triton():
    x = {n: v.detach().to("meta") for n, v in draw(Case(T=2, H=1, K=16, V=16)).items()}
    with pytest.raises(ValueError, match=r"device 'meta'.*backend='pytorch'"):
        choose_backend("triton", "chunk", x)


def test_fla_s_own_kernels_agree_at_scale_one():
    """A second oracle: fla's kernels, which compute q, k and q* in float16 and always take all their steps."""
    from fla.ops.mesa_net import chunk_mesa_net as fla_chunk_mesa_net

    interpreter.mend_loops()
    case = Case(T=128, H=1, K=32, V=32, initial=False)

    def by_fla(q, k, v, g, beta, lamb, h_kk_init, h_kv_init, output_final_state, cu_seqlens):
        return fla_chunk_mesa_net(q, k, v, g, beta, lamb, output_final_state=output_final_state)

    theirs, ours = run(by_fla, case), run(op, case)
    for name in (*OUTPUTS, *(f"d{n}" for n in INPUTS[:6])):
        assert relative_error(ours[name], theirs[name]) < 5e-3, name
