"""chunk_mesa_net on the Triton kernels, in the interpreter, against the truth in float64: the cases of the PyTorch back end, smaller."""

import dataclasses
import functools

import pytest
import torch

from fla_mesa import interpreter
from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step, triton
from fla_mesa.ops.backends import choose_backend
from fla_mesa.ops.gpu import Gpu
from fla_mesa.ops.triton import kernels_rounds, kernels_solve, launch
from fla_mesa.ops.triton.plan import make_plan, make_stages
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


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(("tolerance", "scale", "bound"), [(1e-4, 1e-12, 1e-3), (1e-6, 1.0, 5e-5)])
def test_stated_accuracy(name, tolerance, scale, bound):
    worst = errors(run(op, SHORT[name], scale=scale, cg_tolerance=tolerance), truth(SHORT[name]))
    assert max(worst.values()) <= bound, worst


@pytest.mark.parametrize("name", SMALL_HERE)
def test_shapes(name):
    worst = errors(run(op, SMALL_HERE[name], cg_tolerance=1e-6), truth(SMALL_HERE[name]))
    assert max(worst.values()) <= 5e-6, worst


def test_scaling_the_upstream_gradient_scales_the_gradients():
    # By powers of two, so that the scaling itself does not round.
    case = Case(T=70, H=1, K=16, V=16)
    one = run(op, case)
    for exponent in (-90, 90):
        scaled = run(op, case, scale=2.0**exponent)
        for name in one:
            assert relative_error(scaled[name], one[name]) < 1e-6, name


@pytest.mark.parametrize(("K", "V"), [(256, 16), (16, 256), (200, 130)])
def test_large_heads(K, V):
    case = Case(T=20, H=1, K=K, V=V)
    worst = errors(run(op, case, cg_tolerance=1e-6), truth(case))
    assert max(worst.values()) <= 5e-6, worst


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.bfloat16, 1e-4), (torch.bfloat16, 1e-8), (torch.float16, 1.0)]
)
@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_sixteen_bits_cost_at_most_twice_the_error_of_the_pytorch_back_end(dtype, scale, mean):
    """At the tolerance that is their default here, on the same rounded inputs, products rounded as tensor cores round them."""
    case = Case(T=90, H=1, K=32, V=32, mean=mean, spread=1.0)
    want = truth(case, dtype)
    with interpreter.rounded_dots():
        ours = errors(run(op, case, dtype, scale=scale), want)
    pytorch = functools.partial(
        chunk_mesa_net, backend="pytorch", max_CG_iteration=64, cg_tolerance=triton.TOLERANCE_16
    )
    theirs = errors(run(pytorch, case, dtype, scale=scale), want)
    for name in want:
        assert ours[name] <= 2 * theirs[name] + 1e-6, (name, ours[name], theirs[name])


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
    """Products rounded as tensor cores round them: the residual is reached all the same, and not without refinement."""
    case = Case(T=40, H=1, K=64, V=16, mean=1.0, gates=(1.0, 1.0))
    x = {name: value.detach() for name, value in draw(case).items()}
    want = truth(case)["o"]
    worst = {}
    with interpreter.rounded_dots():
        for REFINE in (True, False):
            out = triton.chunk_forward(
                *x.values(), cu_seqlens=None, cu_seqlens_cpu=None, max_steps=100, tolerance=1e-6,
                stages=(make_plan(64, PRECISION=PRECISION, REFINE=REFINE),),
            )  # fmt: skip
            worst[REFINE] = relative_error(out.o, want)
            assert (out.residual.max() <= 1e-6) == REFINE
    assert worst[True] < min(1.5e-6, worst[False])


OPTIONS = {"cu_seqlens": None, "cu_seqlens_cpu": None, "max_steps": 100, "tolerance": 1e-4}


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_rounds_of_float16_leave_nothing_to_the_float32_iteration(capability, tolerance, monkeypatch):
    """In as many steps but two, in one round for each factor of 256 and one more, after the start; errors are what the residuals say."""
    case = Case(T=64, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = {name: value.detach() for name, value in draw(case).items()}
    rounds, apply_halves = [], kernels_rounds.apply_halves
    monkeypatch.setattr(kernels_rounds, "apply_halves", lambda *a: rounds.append(0) or apply_halves(*a))
    options = OPTIONS | {"tolerance": tolerance}
    first, precise = make_stages(64, kind=Gpu("nvidia", capability))
    with interpreter.rounded_dots():
        want = triton.chunk_forward(*x.values(), stages=(precise,), **options)
        out = triton.chunk_forward(*x.values(), stages=(first,), **options)
    assert len(rounds) <= (64 // first.BR) * (1 + (2 if tolerance == 1e-4 else 3))
    assert out.residual.max() <= tolerance
    assert (out.iterations - want.iterations).max() <= 2
    error, usual = (relative_error(y.o, truth(case)["o"]) / y.residual.square().mean().sqrt() for y in (out, want))
    assert error <= 1.2 * usual


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_a_coarse_tolerance_takes_one_round(capability, monkeypatch):
    """After the start: a second one would cost more than the steps that it saves."""
    case = Case(T=64, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = {name: value.detach() for name, value in draw(case, torch.bfloat16).items()}
    rounds, apply_halves = [], kernels_rounds.apply_halves
    monkeypatch.setattr(kernels_rounds, "apply_halves", lambda *a: rounds.append(0) or apply_halves(*a))
    first, precise = make_stages(64, triton.TOLERANCE_16, kind=Gpu("nvidia", capability))
    options = OPTIONS | {"tolerance": triton.TOLERANCE_16}
    with interpreter.rounded_dots():
        want = triton.chunk_forward(*x.values(), stages=(precise,), **options)
        out = triton.chunk_forward(*x.values(), stages=(first,), **options)
    assert len(rounds) == 2 * (64 // first.BR) and out.residual.max() <= triton.TOLERANCE_16
    assert (out.iterations - want.iterations).max() <= 1


@pytest.mark.parametrize("large", ["state", "keys", "beta"])
def test_what_float16_cannot_solve_the_float32_iteration_does(large):
    """States indefinite when rounded to 11 bits, weights beyond 65,504: to the bit as without rounds, and only there."""
    case, at = Case(T=70, H=1, K=32, V=16, gates=(1.0, 1.0)), 20
    x = {name: value.detach() for name, value in draw(case).items()}
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    if large == "state":
        at = 0
        x["h_kk_init"] = 4e3 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    elif large == "keys":
        x["k"][:, at:40] *= 300
    else:
        x["beta"][:, at:40] = 1e5
    first, precise = make_stages(case.K)
    with interpreter.rounded_dots():
        rounds = triton.chunk_forward(*x.values(), stages=(first,), **OPTIONS)
        iteration = triton.chunk_forward(*x.values(), stages=(precise,), **OPTIONS)
        both = triton.chunk_forward(*x.values(), **OPTIONS)
    left = ~(rounds.residual <= 1e-4)
    assert left[:, at:].any() and not left[:, :at].any()
    for name in ("o", "x", "iterations", "residual"):
        a, b, c = (getattr(out, name) for out in (both, rounds, iteration))
        assert torch.equal(a[left], c[left]) and torch.equal(a[~left], b[~left]), name


def test_the_residual_is_the_true_one_where_a_key_repeats():
    """Against H_t in float64, one key for hundreds of positions: what a residual of rounded states would hide."""
    case = Case(T=64, H=1, K=64, V=16, gates=(0.99, 0.99))
    x = {name: value.detach() for name, value in draw(case).items()}
    x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 100 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    with interpreter.rounded_dots():
        out = triton.chunk_forward(*x.values(), stages=make_stages(case.K)[:1], **OPTIONS)
    q, k, beta, gate = (x[n][:, :, 0].double() for n in ("q", "k", "beta", "g"))
    H, lamb = x["h_kk_init"][0, 0].double(), x["lamb"][0].double()
    for t in range(case.T):
        H = gate[0, t].exp() * H + beta[0, t] * k[0, t, :, None] * k[0, t]
        y = out.x[0, t, 0].double()
        true = (q[0, t] - H @ y - lamb * y).norm() / q[0, t].norm()
        assert true <= 1.1 * max(float(out.residual[0, t, 0]), 1e-4), t


def test_gradients_of_rows_that_float16_cannot_solve():
    """Both stages have rows in the same chunks, and their parts of the gradient of lamb add up."""
    case = Case(T=70, H=1, K=32, V=16, gates=(0.97, 0.97))
    x = {name: value.detach() for name, value in draw(case).items()}
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 1e3 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    with interpreter.rounded_dots():
        rounds = triton.chunk_forward(*x.values(), stages=make_stages(case.K)[:1], **OPTIONS)
        left = ~(rounds.residual <= 1e-4)
        assert left[:, :64].any() and not left[:, :64].all()
        leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
        exact = {name: value.double().requires_grad_() for name, value in x.items()}
        *got, stats = op(**leaves, output_final_state=True, return_stats=True)
        want = run_truth(exact, None)
        weights = [torch.randn_like(w) for w in want]
        gradients = torch.autograd.grad(got, list(leaves.values()), [w.float() for w in weights])
    assert stats.residual.max() <= 1e-4
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-3
    for name, a, b in zip(leaves, gradients, torch.autograd.grad(want, list(exact.values()), weights), strict=True):
        assert relative_error(a, b) < 1e-3, name


class Thrice:
    """A kernel as autotuning launches it: again and again on the same memory, but for what it sets to zero."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(**arguments):
            for _ in range(3):
                arguments["left"].zero_()
                self.kernel[grid](**arguments)

        return launch


def test_kernels_that_run_again_give_the_same(monkeypatch):
    """With rows that the second stage solves, and some that it leaves as well."""
    case = Case(T=70, H=2, K=32, V=16, gates=(0.97, 0.97))
    x = {name: value.detach() for name, value in draw(case).items()}
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 2e3 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))

    def both_ways():
        out = triton.chunk_forward(*x.values(), **OPTIONS)
        return out, triton.chunk_backward(*list(x.values())[1:], out.x, do, dh_kk, dh_kv, **OPTIONS)

    with interpreter.rounded_dots():
        once = both_ways()
        assert (once[0].residual > 1e-4).any()
        monkeypatch.setattr(launch, "solve_output_kernel", Thrice(kernels_solve.solve_output_kernel))
        monkeypatch.setattr(launch, "solve_backward_kernel", Thrice(kernels_solve.solve_backward_kernel))
        again = both_ways()
    for part, want in zip(again, once, strict=True):
        for name, a, b in zip(want._fields, part, want, strict=True):
            assert torch.equal(a, b), name


def test_no_row_depends_on_what_later_ones_need():
    """Some of a tile solve in more steps and in higher precision than others: to the bit, their neighbours do not notice."""
    case = Case(T=60, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = {name: value.detach() for name, value in draw(case).items()}
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
    stages = tuple(plan._replace(BS=16, BD=16) for plan in make_stages(64))
    options = OPTIONS | {"tolerance": 1e-6, "stages": stages}
    out = triton.chunk_forward(*x.values(), **options)
    want = truth(case)
    assert relative_error(out.o, want["o"]) < 5e-6
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))
    got = triton.chunk_backward(*list(x.values())[1:], out.x, do, dh_kk, dh_kv, **options)
    for name, gradient in zip(INPUTS, got, strict=True):
        assert relative_error(gradient, want[f"d{name}"]) < 5e-6, name


def merged(kernel):
    """The autotuner under a kernel's decorators, choosing among merged tiles alone."""
    while not hasattr(kernel, "configs"):
        kernel = kernel.fn
    return kernel, [config for config in kernel.configs if config.kwargs["MERGE"] == 2]


def test_merged_tiles_and_what_autotuning_left(monkeypatch):
    """At K = 128 autotuning may solve two tiles as one: the same results, whatever it wrote where it tried them apart."""
    case = Case(T=100, H=1, K=128, V=16)
    x = {name: value.detach() for name, value in draw(case).items()}
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))
    apart = triton.chunk_forward(*x.values(), **OPTIONS)
    apart_gradients = triton.chunk_backward(*list(x.values())[1:], apart.x, do, dh_kk, dh_kv, **OPTIONS)
    for kernel in (kernels_solve.solve_output_kernel, kernels_solve.solve_backward_kernel):
        tuner, configs = merged(kernel)
        prune = tuner.early_config_prune
        monkeypatch.setattr(
            tuner,
            "early_config_prune",
            lambda c, n, prune=prune, configs=configs, **a: prune(c, n, **a) if (n | a)["AGAIN"] else configs[:1],
        )
        tuner.cache.clear()
    new_zeros = torch.Tensor.new_zeros
    monkeypatch.setattr(torch.Tensor, "new_zeros", lambda *a, **o: new_zeros(*a, **o) + 7)
    one_stage = OPTIONS | {"stages": make_stages(128)[:1]}
    together = triton.chunk_forward(*x.values(), **one_stage)
    gradients = triton.chunk_backward(*list(x.values())[1:], together.x, do, dh_kk, dh_kv, **one_stage)
    assert relative_error(together.o, apart.o) < 1e-4
    for name, a, b in zip(INPUTS, gradients, apart_gradients, strict=True):
        assert relative_error(a, b) < 2e-4, name


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
    # Starting anew costs up to two steps; without it rounding moves a row by one at most.
    more = stats.iterations - want.iterations
    assert more.min() >= -1 and more.max() <= 2
    precise = triton.chunk_forward(*x.values(), stages=(make_plan(16),), **OPTIONS)
    assert (precise.iterations - want.iterations).abs().max() <= 1
    assert op(**{**x}, max_CG_iteration=2, return_stats=True)[3].iterations.max() == 2


def test_a_gate_of_zero_forgets_everything():
    x = {n: v.detach() for n, v in draw(Case(T=80, H=1, K=16, V=16)).items()}
    x["g"][:, 40] = -torch.inf
    got = op(**x, output_final_state=True, cg_tolerance=1e-6)
    want = chunk_mesa_net(**x, output_final_state=True, cg_tolerance=1e-6, backend="pytorch")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["q", "k", "v", "g", "beta"])
def test_nan_touches_only_what_depends_on_it(name):
    case, at = Case(T=100, H=2, K=16, V=16, lengths=(10, 75, 15)), 40
    x = {n: v.detach() for n, v in draw(case).items()}
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
