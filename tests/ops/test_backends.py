"""The back ends beside "pytorch" and "triton", and which of them runs."""

from types import SimpleNamespace

import pytest
import torch

from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.ops.backends import BACKENDS, Backend, check_backend, choose_backend
from tests.ops.cases import SMALL, Case, draw, errors, relative_error, run, truth


@pytest.mark.parametrize("name", ["packed", "odd sizes", "no initial states"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 1e-6)])
def test_exact_is_the_truth_with_gradients(name, dtype, bound):
    def op(*args, **options):
        return chunk_mesa_net(*args, backend="exact", **options)

    worst = errors(run(op, SMALL[name], dtype), truth(SMALL[name], dtype))
    assert max(worst.values()) < bound, worst


def test_exact_takes_no_steps_and_any_scale():
    x = {n: v.detach() for n, v in draw(Case(T=20, K=16, V=16)).items()}
    x["q"][0, 3] = 0
    o, _, _, stats = chunk_mesa_net(**x, backend="exact", return_stats=True)
    assert o.dtype == torch.float32 and not stats.iterations.any() and float(stats.residual.max()) < 1e-12
    assert not o[0, 3].any() and o[0, 4].all()
    for scale in (2.0**-90, 2.0**90):
        torch.testing.assert_close(chunk_mesa_net(**{**x, "q": x["q"] * scale}, backend="exact")[0] / scale, o)
    x["q"][0, 5, 1, 2] = torch.nan
    bad = chunk_mesa_net(**x, backend="exact")[0].isnan()
    assert bad[0, 5, 1].all() and bad.sum() == 16


@pytest.mark.parametrize("backend", ["exact", "diagonal"])
def test_decoding_is_the_last_of_the_sequence(backend):
    case = Case(B=2, T=9, K=16, V=8)
    x = {n: v.detach() for n, v in draw(case).items()}
    want = chunk_mesa_net(**x, output_final_state=True, backend=backend)
    h_kk, h_kv = x["h_kk_init"], x["h_kv_init"]
    for t in range(case.T):
        o, h_kk, h_kv, stats = mesa_net_decoding_one_step(
            *(x[n][:, t] for n in ("q", "k", "v", "g")), x["lamb"], x["beta"][:, t], h_kk, h_kv, return_stats=True, backend=backend
        )  # fmt: skip
    for got, wanted in zip((o, h_kk, h_kv), (want[0][:, -1], *want[1:]), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    assert not stats.iterations.any()
    if backend == "exact":
        assert relative_error(o, truth(case)["o"][:, -1]) < 1e-6


def test_diagonal_is_the_start_of_the_others():
    x = draw(Case(T=70, K=16, V=16))
    o = chunk_mesa_net(*x.values(), backend="diagonal")[0]
    torch.testing.assert_close(o, chunk_mesa_net(*x.values(), backend="pytorch", max_CG_iteration=0)[0])
    with pytest.raises(ValueError, match="backend='diagonal' have no gradients"):
        o.sum().backward()


def arguments(device="cuda", **changes):
    """Tensors as far as the choice looks at them."""
    shapes = {
        "q": (1, 8, 2, 64),
        "k": (1, 8, 2, 64),
        "v": (1, 8, 2, 64),
        "g": (1, 8, 2),
        "beta": (1, 8, 2),
        "lamb": (2, 64),
    }
    made = {n: {"shape": s, "dtype": torch.bfloat16, "device": torch.device(device)} for n, s in shapes.items()}
    made["h_kk_init"] = made["g"] | {"dtype": torch.float32}
    for name, change in changes.items():
        made[name] = made[name] | change
    return {name: SimpleNamespace(**parts) for name, parts in made.items()}


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, "triton"),
        ({"v": {"shape": (1, 8, 2, 300)}}, "pytorch"),
        ({"q": {"shape": (1, 8, 2, 257)}}, "pytorch"),
        *(({name: {"dtype": torch.float64}}, "pytorch") for name in ("g", "beta", "lamb", "h_kk_init")),
        ({"device": "cpu"}, "pytorch"),
    ],
)
def test_the_first_that_takes_the_arguments_runs(changes, want):
    assert choose_backend(None, "chunk", arguments(**changes)).__name__ == BACKENDS[want]


def test_a_refusal_says_why_and_what_takes_it():
    with pytest.raises(
        ValueError, match=r"backend='triton' takes float32, .*; lamb has dtype torch.float64. Use backend='pytorch'"
    ):
        choose_backend("triton", "chunk", arguments(lamb={"dtype": torch.float64}))
    with pytest.raises(
        ValueError, match=r"backend='triton' takes GPU tensors.*TRITON_INTERPRET=1.*; q is on device 'cpu'"
    ):
        choose_backend("triton", "chunk", arguments("cpu"))
    with pytest.raises(
        ValueError,
        match=r"backend must be None or one of \['diagonal', 'exact', 'pytorch', 'triton'\].* mean 'pytorch'",
    ):
        check_backend("torch")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(BACKENDS, "triton", "tritonless.kernels")
    assert choose_backend(None, "chunk", arguments()).__name__ == BACKENDS["pytorch"]
    with pytest.raises(ValueError, match="backend='triton' needs the package tritonless, which is not installed"):
        choose_backend("triton", "chunk", arguments())


@pytest.mark.parametrize("name", BACKENDS)
def test_every_back_end_has_the_common_interface(name):
    backend = choose_backend(name, "chunk", arguments())
    assert {n for n in vars(Backend) if not n.startswith("_")} - set(vars(backend)) <= (
        {"query_forward", "query_backward"} if name == "triton" else set()
    )
