"""The decoding step against the op over sequences, and against the truth."""

import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.testing.cases import SMALL, STATED, Case, draw, paper_solve, relative_error, truth


def decode(case: Case, dtype: torch.dtype = torch.float32, **options):
    """All positions of a case, one by one."""
    x = {n: v.detach() for n, v in draw(case, dtype).items()}
    h_kk, h_kv, outputs = x["h_kk_init"], x["h_kv_init"], []
    for t in range(case.T):
        q, k, v, g, beta = (x[n][:, t] for n in ("q", "k", "v", "g", "beta"))
        o, h_kk, h_kv = mesa_net_decoding_one_step(q, k, v, g, x["lamb"], beta, h_kk, h_kv, **options)
        outputs.append(o)
    return torch.stack(outputs, 1), h_kk, h_kv


CASES = {**{n: c for n, c in SMALL.items() if c.lengths is None and c.initial}, **STATED}


@pytest.mark.parametrize("name", CASES)
def test_step_by_step_is_the_truth(name):
    for tolerance, bound in ((1e-4, 1e-3), (1e-6, 5e-5)):
        got = decode(CASES[name], max_CG_iteration=64, cg_tolerance=tolerance)
        for name_, value in zip(("o", "h_kk", "h_kv"), got, strict=True):
            assert relative_error(value, truth(CASES[name])[name_]) <= bound


def test_step_by_step_is_the_chunk_op():
    case = STATED["gates 0.9 to 1, common mean"]
    x = {n: v.detach() for n, v in draw(case).items()}
    want = chunk_mesa_net(**x, output_final_state=True)
    for a, b in zip(decode(case), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_float64_and_bfloat16():
    case = Case(T=20, K=16, V=24)
    assert relative_error(decode(case, torch.float64, cg_tolerance=1e-13)[0], truth(case, torch.float64)["o"]) < 1e-11
    o, h_kk, _ = decode(case, torch.bfloat16)
    assert o.dtype == torch.bfloat16 and h_kk.dtype == torch.float32
    assert relative_error(o, truth(case, torch.bfloat16)["o"]) < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_its_steps_are_the_paper_s(steps):
    """And those of fla, whose test of this function compares one step of float16 to 5e-3."""
    from fla.ops.mesa_net import naive_mesa_net_decoding_one_step

    x = {n: v.detach() for n, v in draw(Case(B=3, T=1, K=24, V=16, spread=1.0), torch.float64).items()}
    q, k, v, g, beta = (x[n][:, 0] for n in ("q", "k", "v", "g", "beta"))
    args = (q, k, v, g, x["lamb"], beta, x["h_kk_init"], x["h_kv_init"], steps)
    o, h_kk, h_kv, stats = mesa_net_decoding_one_step(*args, cg_tolerance=1e-30, return_stats=True)
    want = (h_kv.mT @ paper_solve(h_kk, x["lamb"], q, steps)[..., None])[..., 0]
    torch.testing.assert_close(o, want, rtol=1e-9, atol=1e-12)
    assert (stats.iterations == steps).all()
    half = [
        a.half() if torch.is_tensor(a) and n < 6 else a.float() if torch.is_tensor(a) else a for n, a in enumerate(args)
    ]
    assert relative_error(mesa_net_decoding_one_step(*half)[0], naive_mesa_net_decoding_one_step(*half)[0]) < 1e-3


def test_statistics_and_untouched_states():
    x = {n: v.detach() for n, v in draw(Case(B=3, T=1, K=16, V=16)).items()}
    args = (
        x["q"][:, 0],
        x["k"][:, 0],
        x["v"][:, 0],
        x["g"][:, 0],
        x["lamb"],
        x["beta"][:, 0],
        x["h_kk_init"],
        x["h_kv_init"],
    )
    before = x["h_kk_init"].clone()
    *_, stats = mesa_net_decoding_one_step(*args, return_stats=True)
    assert stats.iterations.shape == stats.residual.shape == (3, 2)
    assert (stats.residual <= 1e-4).all() and (stats.iterations >= 1).all()
    assert torch.equal(before, x["h_kk_init"])
    assert mesa_net_decoding_one_step(*args, max_CG_iteration=1, return_stats=True)[3].iterations.max() == 1


def test_nan_stays_in_its_row():
    x = {n: v.detach() for n, v in draw(Case(B=2, T=1, K=16, V=16)).items()}
    k = x["k"][:, 0].clone()
    k[0, 1, 3] = torch.nan
    o, h_kk, _ = mesa_net_decoding_one_step(
        x["q"][:, 0], k, x["v"][:, 0], x["g"][:, 0], x["lamb"], x["beta"][:, 0], x["h_kk_init"], x["h_kv_init"]
    )
    assert o[0, 1].isnan().all() and not o[0, 0].isnan().any() and not o[1].isnan().any()
    assert h_kk[0, 1].isnan().any() and not h_kk[1].isnan().any()
