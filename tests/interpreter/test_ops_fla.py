"""The back end "fla" in Triton's interpreter, operands rounded as tensor cores round them, against the truth in float64."""

import functools

import pytest
import torch

import fla_mesa
from fla_mesa import interpreter
from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.testing.cases import INPUTS, Case, draw, errors, relative_error, run, run_truth, truth

op = functools.partial(chunk_mesa_net, backend="fla", max_CG_iteration=12)
ROUNDING = torch.finfo(torch.bfloat16).eps  # 8e-3: of one number


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize(
    "case",
    [
        Case(T=100, H=2, K=64, V=64, spread=1.0),
        Case(T=131, H=1, K=24, V=24, lengths=(1, 64, 66), spread=1.0),
        Case(B=2, T=9, H=1, K=16, V=16, initial=False),
    ],
    ids=["states", "packed", "short"],
)
def test_gradients_at_every_scale(case, scale):
    with interpreter.rounded_dots():
        worst = errors(run(op, case, torch.bfloat16, scale=scale), truth(case, torch.bfloat16))
    assert max(worst.values()) < ROUNDING, worst


def test_float16_at_a_scale_that_it_holds():
    case = Case(T=70, H=1, K=32, V=32)
    worst = errors(run(op, case, torch.float16, scale=1e-3), truth(case, torch.float16))
    assert max(worst.values()) < ROUNDING / 2, worst


def rows_of_two_sizes(small: float, name: str) -> dict[str, float]:
    """Errors where half of the rows of q, or of the incoming gradient, are `small` times the others: of dq and o for those alone."""
    case = Case(T=128, H=1, K=64, V=64, initial=False)
    x = {n: value.detach() for n, value in draw(case, torch.bfloat16).items() if value is not None}
    rows = torch.arange(128) % 2 == 1
    size = torch.where(rows, small, 1.0)[None, :, None, None]
    do = torch.randn(1, 128, 1, 64).bfloat16()
    if name == "q":
        x["q"] = (x["q"] * size).bfloat16()
    else:
        do = (do * size).bfloat16()
    exact = {n: value.double().requires_grad_() for n, value in x.items()}
    want = run_truth(exact | {"h_kk_init": None, "h_kv_init": None}, None)[0]
    leaves = {n: value.requires_grad_() for n, value in x.items()}
    with interpreter.rounded_dots():
        got = op(**leaves)[0]
        gradients = torch.autograd.grad(got, list(leaves.values()), do)
    wanted = torch.autograd.grad(want, list(exact.values()), do.double())
    found = {f"d{n}": relative_error(a, b) for n, a, b in zip(x, gradients, wanted, strict=True)}
    return found | {
        "small rows of o": relative_error(got[:, rows], want[:, rows]),
        "small rows of dq": relative_error(gradients[0][:, rows], wanted[0][:, rows]),
    }


@pytest.mark.parametrize(("name", "small"), [("do", 1e-4), ("q", 1e-6)])
def test_small_rows_beside_large_ones(name, small):
    """One power of two for all would leave the small rows of dq wrong by 60 %."""
    worst = rows_of_two_sizes(small, name)
    assert max(worst.values()) < ROUNDING, worst


def test_values_and_gradients_of_states_of_any_size():
    """Values of some thousands, and final states whose gradients are far larger than the output's: float16 must hold their products."""
    case = Case(T=70, H=2, K=16, V=16)
    x = {n: value.detach() for n, value in draw(case, torch.bfloat16).items()}
    x["v"] = 4096 * x["v"]
    leaves = {n: value.clone().requires_grad_() for n, value in x.items()}
    exact = {n: value.double().requires_grad_() for n, value in x.items()}
    with interpreter.rounded_dots():
        got = op(**leaves, output_final_state=True)
        weights = [torch.randn_like(o) * scale for o, scale in zip(got, (1.0, 1e4, 1e4), strict=True)]
        gradients = torch.autograd.grad(got, list(leaves.values()), weights)
    want = torch.autograd.grad(run_truth(exact, None), list(exact.values()), [w.double() for w in weights])
    for name, a, b in zip(leaves, gradients, want, strict=True):
        assert relative_error(a, b) < ROUNDING, name


def test_a_tolerance_is_refused_and_statistics_say_what_is_known():
    x = {n: value.detach() for n, value in draw(Case(T=5, H=1, K=16, V=16), torch.bfloat16).items()}
    x["q"][:, 2] = 0
    o, _, _, stats = op(**x, return_stats=True)
    assert (stats.iterations == 12).all() and stats.residual.isnan().all() and not o[:, 2].any()
    with pytest.raises(
        ValueError, match=r"'fla' always takes max_CG_iteration steps.*cg_tolerance=0.01. Use backend='pytorch'"
    ):
        op(**x, cg_tolerance=1e-2)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_so_many_steps_are_those_of_the_other_back_ends(steps):
    """They start at q / diag(H + lamb) as well. (Where lamb is one number, which PyTorch's preconditioner then is.)"""
    case = Case(T=70, H=1, K=16, V=16)
    x = {n: value.detach() for n, value in draw(case, torch.bfloat16).items()}
    x["lamb"] = torch.full_like(x["lamb"], 0.5)
    x["k"] = 2 * x["k"]  # harder than they are solved in three steps
    step = [x[n][:, 0] for n in ("q", "k", "v", "g")] + [x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"]]

    def both(backend: str, **tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
        o = chunk_mesa_net(**x, backend=backend, max_CG_iteration=steps, **tolerance)[0]
        return o, mesa_net_decoding_one_step(*step, backend=backend, max_CG_iteration=steps, **tolerance)[0]

    exact = chunk_mesa_net(**x, backend="exact")[0]
    with interpreter.rounded_dots():
        got = both("fla")
    for a, b in zip(got, both("pytorch", cg_tolerance=1e-12), strict=True):
        assert relative_error(a, b) < ROUNDING
    assert relative_error(got[0], exact) > 4 * ROUNDING  # so that one step more or less is seen


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_step(scale):
    """Also while fla's own function is replaced by this one."""
    case = Case(B=2, T=1, H=2, K=24, V=24, spread=1.0)
    x = {n: value.detach() for n, value in draw(case, torch.bfloat16).items()}
    step = [x[n][:, 0] for n in ("q", "k", "v", "g")]
    step[0] = step[0] * 2.0 ** round(torch.tensor(scale).log2().item())
    with fla_mesa.replace_fla_op(backend="fla"):
        from fla.ops.mesa_net import mesa_net_decoding_one_step as replaced

        o, h_kk, h_kv = replaced(*step, x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"])
    stats = mesa_net_decoding_one_step(
        *step, x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"], return_stats=True, backend="fla"
    )[3]
    want = truth(case, torch.bfloat16)
    assert relative_error(o / step[0].norm() * x["q"].norm(), want["o"][:, 0]) < 4e-3
    assert relative_error(h_kk, want["h_kk"]) < 1e-6 and relative_error(h_kv, want["h_kv"]) < 1e-6
    assert o.dtype == torch.bfloat16 and (stats.iterations == 30).all() and stats.residual.isnan().all()


def test_the_l2_norm_and_a_gate_of_zero():
    x = {n: value.detach() for n, value in draw(Case(T=80, H=1, K=16, V=16), torch.bfloat16).items()}
    x["g"] = x["g"].clone()
    x["g"][:, 40] = -torch.inf
    raw = x | {"q": 3 * x["q"], "k": 5 * x["k"]}
    got = op(**raw, use_qk_l2norm_in_kernel=True, output_final_state=True)
    want = chunk_mesa_net(**raw, use_qk_l2norm_in_kernel=True, output_final_state=True, backend="pytorch")
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < ROUNDING


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float32}, "takes bfloat16 and float16; q has dtype torch.float32"),
        ({"K": 129, "V": 129}, "takes heads of K = V from 16 to 128; got K = 129 and V = 129"),
        ({"V": 32}, "takes heads of K = V from 16 to 128; got K = 16 and V = 32"),
    ],
)
def test_what_it_does_not_take(change, message):
    sizes = {"T": 2, "H": 1, "K": 16, "V": 16} | {n: s for n, s in change.items() if n != "dtype"}
    x = draw(Case(**sizes), change.get("dtype", torch.bfloat16))
    with pytest.raises(ValueError, match=f"backend='fla' {message}. Use backend='pytorch'"):
        op(*(x[name] for name in INPUTS))
