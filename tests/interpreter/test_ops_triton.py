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
from fla_mesa.ops.triton.plan import make_plan, plan_iteration, plan_rounds
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
from fla_mesa.testing.compiled import autotuner_of

# The interpreter takes seconds where the PyTorch back end takes milliseconds.
SHORT = {name: dataclasses.replace(case, T=100, H=1) for name, case in STATED.items()}
SMALL_HERE = {name: case if case.lengths else dataclasses.replace(case, H=1) for name, case in SMALL.items()}


op = functools.partial(chunk_mesa_net, backend="triton", max_CG_iteration=64)
# The two solvers, for float32 inputs: what they are capable of, 16 bits would hide.
SOLVERS = {"rounds": plan_rounds, "iteration": lambda K, tolerance: plan_iteration(K)}


@pytest.fixture(params=SOLVERS)
def solver(request, monkeypatch):
    """Both solvers in turn, where by default rounds of float16 are for inputs of 16 bits, the float32 iteration for others."""
    monkeypatch.setattr(launch, "make_plan", lambda K, dtype, tolerance, kind: SOLVERS[request.param](K, tolerance))
    return request.param


@pytest.fixture
def rows_of_a_tile(monkeypatch):
    """Makes the solves take tiles of so many rows: those of other GPUs than the interpreter's, or what autotuning may choose."""

    def choose(rows: int) -> None:
        for kernel in (kernels_solve.solve_output_kernel, kernels_solve.solve_backward_kernel):
            tuner = autotuner_of(kernel)
            only = [config for config in tuner.configs if config.kwargs["BR"] == rows][:1]
            monkeypatch.setattr(tuner, "early_config_prune", lambda *_, only=only, **__: only)
            monkeypatch.setattr(tuner, "cache", {})

    return choose


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(("tolerance", "scale", "bound"), [(1e-4, 1e-12, 1e-3), (1e-6, 1.0, 5e-5)])
def test_stated_accuracy(name, tolerance, scale, bound):
    worst = errors(run(op, SHORT[name], scale=scale, cg_tolerance=tolerance), truth(SHORT[name]))
    assert max(worst.values()) <= bound, worst


@pytest.mark.usefixtures("solver")
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


@pytest.mark.parametrize(
    ("K", "dtype", "rounds"),
    [(16, torch.float32, False), (128, torch.bfloat16, True), (128, torch.float16, True), (129, torch.bfloat16, False)],
)
def test_16_bit_inputs_that_fit_shared_memory_are_solved_in_rounds(K, dtype, rounds):
    assert make_plan(K, dtype, 1e-3).rounds == rounds
    assert not make_plan(128, dtype, 1e-3, kind=Gpu("nvidia", (8, 6))).rounds  # 99 KiB


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
                plan=plan_iteration(64, PRECISION=PRECISION, REFINE=REFINE),
            )  # fmt: skip
            worst[REFINE] = relative_error(out.o, want)
            assert (out.residual.max() <= 1e-6) == REFINE
    assert worst[True] < min(1.5e-6, worst[False])


OPTIONS = {"cu_seqlens": None, "cu_seqlens_cpu": None, "max_steps": 100, "tolerance": 1e-4}


@pytest.fixture
def new_residuals(monkeypatch):
    """A list that grows with every residual that rounds of float16 compute anew."""
    found, apply_halves = [], kernels_solve.apply_halves
    monkeypatch.setattr(kernels_solve, "apply_halves", lambda *a: found.append(0) or apply_halves(*a))
    return found


@pytest.fixture
def rows_of_the_rest(monkeypatch):
    """A list that grows with every tile of rows that rounds of float16 leave to the float32 iteration."""
    found, solve_precise = [], kernels_solve.solve_precise
    monkeypatch.setattr(kernels_solve, "solve_precise", lambda *a: found.append(0) or solve_precise(*a))
    return found


@pytest.mark.parametrize("rows", [32, 64])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6])
def test_rounds_of_float16_leave_nothing_to_the_float32_iteration(
    rows, tolerance, rows_of_a_tile, new_residuals, rows_of_the_rest
):
    """In as many steps but two, in one round for each factor of 256 and one more, after the start; errors are what the residuals say."""
    case = Case(T=64, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = {name: value.detach() for name, value in draw(case).items()}
    options = OPTIONS | {"tolerance": tolerance}
    with interpreter.rounded_dots():
        want = triton.chunk_forward(*x.values(), plan=plan_iteration(64), **options)
        rows_of_the_rest.clear()
        rows_of_a_tile(rows)
        out = triton.chunk_forward(*x.values(), plan=plan_rounds(64, tolerance), **options)
    assert not rows_of_the_rest
    assert len(new_residuals) <= (64 // rows) * (1 + (2 if tolerance == 1e-4 else 3))
    assert out.residual.max() <= tolerance
    assert (out.iterations - want.iterations).max() <= 2
    error, usual = (relative_error(y.o, truth(case)["o"]) / y.residual.square().mean().sqrt() for y in (out, want))
    assert error <= 1.2 * usual


@pytest.mark.parametrize("rows", [32, 64])
def test_a_coarse_tolerance_takes_one_round(rows, rows_of_a_tile, new_residuals):
    """After the start: a second one would cost more than the steps that it saves."""
    case = Case(T=64, H=1, K=64, V=16, mean=0.35, spread=1.0)
    x = {name: value.detach() for name, value in draw(case, torch.bfloat16).items()}
    options = OPTIONS | {"tolerance": triton.TOLERANCE_16}
    with interpreter.rounded_dots():
        want = triton.chunk_forward(*x.values(), plan=plan_iteration(64), **options)
        rows_of_a_tile(rows)
        out = triton.chunk_forward(*x.values(), **options)
    assert len(new_residuals) == 2 * (64 // rows) and out.residual.max() <= triton.TOLERANCE_16
    assert (out.iterations - want.iterations).max() <= 1


@pytest.mark.parametrize("large", ["state", "keys", "beta"])
def test_what_float16_cannot_solve_the_float32_iteration_does(large, rows_of_a_tile, rows_of_the_rest):
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
    with interpreter.rounded_dots():
        rows_of_a_tile(16)
        iteration = triton.chunk_forward(*x.values(), plan=plan_iteration(case.K)._replace(RESIDENT=False), **OPTIONS)
        rows_of_the_rest.clear()
        rows_of_a_tile(64)
        out = triton.chunk_forward(*x.values(), plan=plan_rounds(case.K, 1e-4), **OPTIONS)
    assert rows_of_the_rest
    same = (out.x == iteration.x).all(-1)
    assert same[:, at:].any() and not same[:, :at].any()
    assert torch.equal(out.iterations[same], iteration.iterations[same])
    assert torch.equal(out.residual[same], iteration.residual[same])
    assert relative_error(out.o[same], iteration.o[same]) < 1e-6
    assert (out.residual[~same] <= 1e-4).all()


def test_the_residual_is_the_true_one_where_a_key_repeats():
    """Against H_t in float64, one key for hundreds of positions: what a residual of rounded states would hide."""
    case = Case(T=64, H=1, K=64, V=16, gates=(0.99, 0.99))
    x = {name: value.detach() for name, value in draw(case).items()}
    x["k"] = x["k"][:, :1].expand_as(x["k"]).contiguous()
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 100 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    with interpreter.rounded_dots():
        out = triton.chunk_forward(*x.values(), plan=plan_rounds(case.K, 1e-4), **OPTIONS)
    q, k, beta, gate = (x[n][:, :, 0].double() for n in ("q", "k", "beta", "g"))
    H, lamb = x["h_kk_init"][0, 0].double(), x["lamb"][0].double()
    for t in range(case.T):
        H = gate[0, t].exp() * H + beta[0, t] * k[0, t, :, None] * k[0, t]
        y = out.x[0, t, 0].double()
        true = (q[0, t] - H @ y - lamb * y).norm() / q[0, t].norm()
        assert true <= 1.1 * max(float(out.residual[0, t, 0]), 1e-4), t


def test_gradients_of_rows_that_float16_cannot_solve(rows_of_the_rest, monkeypatch):
    """Both solvers have rows in the same chunks, at a tolerance that 16-bit inputs do not have by default."""
    case = Case(T=70, H=1, K=32, V=16, gates=(0.97, 0.97))
    x = {name: value.detach() for name, value in draw(case).items()}
    x["lamb"] = torch.full_like(x["lamb"], 0.25)
    x["h_kk_init"] = 1e3 * x["k"][:, 0, :, :, None] * x["k"][:, 0, :, None, :]
    monkeypatch.setattr(launch, "make_plan", lambda K, dtype, tolerance, kind: plan_rounds(K, tolerance))
    with interpreter.rounded_dots():
        leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
        exact = {name: value.double().requires_grad_() for name, value in x.items()}
        *got, stats = op(**leaves, output_final_state=True, return_stats=True)
        assert rows_of_the_rest
        rows_of_the_rest.clear()
        want = run_truth(exact, None)
        weights = [torch.randn_like(w) for w in want]
        gradients = torch.autograd.grad(got, list(leaves.values()), [w.float() for w in weights])
        assert rows_of_the_rest
    assert stats.residual.max() <= 1e-4
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-3
    for name, a, b in zip(leaves, gradients, torch.autograd.grad(want, list(exact.values()), weights), strict=True):
        assert relative_error(a, b) < 1e-3, name


class Thrice:
    """A kernel as autotuning launches it: again and again on the same memory."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        def launch(**arguments):
            for _ in range(3):
                self.kernel[grid](**arguments)

        return launch


@pytest.mark.usefixtures("solver")
def test_kernels_that_run_again_give_the_same(monkeypatch):
    """With rows that rounds of float16 leave, and some that stay above the tolerance."""
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


@pytest.mark.usefixtures("solver")
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


@pytest.mark.parametrize("name", SOLVERS)
def test_blocks_as_on_a_gpu(name):
    """The interpreter reads larger blocks than a GPU does; here it reads the same."""
    case = Case(T=100, H=1, K=64, V=32)
    x = {name: value.detach() for name, value in draw(case).items()}
    options = OPTIONS | {"tolerance": 1e-6, "plan": SOLVERS[name](64, 1e-6)._replace(BS=16, BD=16)}
    out = triton.chunk_forward(*x.values(), **options)
    want = truth(case)
    assert relative_error(out.o, want["o"]) < 5e-6
    do, dh_kk, dh_kv = (w.float() for w in upstream(case))
    got = triton.chunk_backward(*list(x.values())[1:], out.x, do, dh_kk, dh_kv, **options)
    for name, gradient in zip(INPUTS, got, strict=True):
        assert relative_error(gradient, want[f"d{name}"]) < 5e-6, name


def test_tiles_of_any_size_agree(rows_of_a_tile):
    """At K = 128 autotuning chooses between tiles of 32 and of 64 rows."""
    case = Case(T=100, H=1, K=128, V=16)
    x = {name: value.detach() for name, value in draw(case).items()}
    weights = [w.float() for w in upstream(case)]
    options = OPTIONS | {"plan": plan_rounds(128, 1e-4)}
    found = {}
    for rows in (32, 64):
        rows_of_a_tile(rows)
        out = triton.chunk_forward(*x.values(), **options)
        found[rows] = [out.o, *triton.chunk_backward(*list(x.values())[1:], out.x, *weights, **options)]
    for name, a, b in zip(("o", *INPUTS), found[64], found[32], strict=True):
        assert relative_error(a, b) < 2e-4, name


def test_the_same_bits_twice():
    case = Case(T=70, H=1, K=16, V=16)
    one, two = run(op, case), run(op, case)
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_statistics(solver):
    x = {n: v.detach() for n, v in draw(Case(B=2, T=70, H=2, K=16, V=16)).items()}
    x["q"][:, 10] = 0
    o, _, _, stats = op(**x, return_stats=True)
    want = chunk_mesa_net(**x, return_stats=True, backend="pytorch")[3]
    assert stats.iterations.dtype == torch.int32 and stats.residual.dtype == torch.float32
    assert stats.iterations.shape == stats.residual.shape == (2, 70, 2)
    assert (stats.residual <= 1e-4).all()
    assert (stats.iterations[:, 10] == 0).all() and (o[:, 10] == 0).all()
    # Starting anew costs rounds up to two steps; without it rounding moves a row by one at most.
    more = stats.iterations - want.iterations
    assert more.min() >= -1 and more.max() <= (2 if solver == "rounds" else 1)
    assert op(**{**x}, max_CG_iteration=2, return_stats=True)[3].iterations.max() == 2


def test_a_gate_of_zero_forgets_everything():
    x = {n: v.detach() for n, v in draw(Case(T=80, H=1, K=16, V=16)).items()}
    x["g"][:, 40] = -torch.inf
    got = op(**x, output_final_state=True, cg_tolerance=1e-6)
    want = chunk_mesa_net(**x, output_final_state=True, cg_tolerance=1e-6, backend="pytorch")
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("solver")
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


@pytest.mark.usefixtures("solver")
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
