"""The back ends beside "pytorch" and "triton", and which of them runs."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from fla_mesa.ops import backends, chunk_mesa_net, gpu, mesa_net_decoding_one_step
from fla_mesa.ops.backends import BACKENDS, Backend, check_backend, choose_backend
from fla_mesa.testing.cases import SMALL, Case, draw, errors, relative_error, run, truth


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


@pytest.fixture
def on(monkeypatch):
    """Devices named "cuda" are GPUs of this kind, and no reason has been warned of."""

    def pretend(*capability: int, vendor: str = "nvidia") -> None:
        kind = gpu.Gpu(vendor, capability)
        monkeypatch.setattr(gpu, "of", lambda device: kind if device.type == "cuda" else None)
        backends._warn_of.cache_clear()

    pretend(9, 0)
    yield pretend
    backends._warn_of.cache_clear()


def arguments(device="cuda", K=64, **changes):
    """Tensors as far as the choice looks at them."""
    shapes = {
        "q": (1, 8, 2, K),
        "k": (1, 8, 2, K),
        "v": (1, 8, 2, K),
        "g": (1, 8, 2),
        "beta": (1, 8, 2),
        "lamb": (2, K),
    }
    made = {n: {"shape": s, "dtype": torch.bfloat16, "device": torch.device(device)} for n, s in shapes.items()}
    made["h_kk_init"] = made["g"] | {"dtype": torch.float32}
    for name, change in changes.items():
        made[name] = made[name] | change
    return {name: SimpleNamespace(**parts) for name, parts in made.items()}


def test_sixteen_bits_on_an_nvidia_gpu_run_on_fla_s_kernels_without_a_word(on):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for capability in ((8, 0), (8, 6), (9, 0), (10, 0), (12, 0)):
            on(*capability)
            for function in ("chunk", "step"):
                assert choose_backend(None, function, arguments()).__name__ == BACKENDS["fla"]


@pytest.mark.parametrize(
    ("kind", "changes", "options", "reason"),
    [
        ((7, 5), {}, {}, "needs an NVIDIA GPU of compute capability 8.0 or more, and this is .* 7.5"),
        ((8, 6), {"K": 128}, {}, "takes heads of at most 64 on a GPU of compute capability 8.6, which has .* memory for more; got K = 128"),
        ((12, 0), {"K": 65}, {}, "takes heads of at most 64 on a GPU of compute capability 12.0"),
        ((9, 0), {"K": 129}, {}, "takes heads of K = V from 16 to 128; got K = 129"),
        ((9, 0), {"v": {"shape": (1, 8, 2, 32)}}, {}, "got K = 64 and V = 32"),
        ((9, 0), {"q": {"dtype": torch.float32}}, {}, "takes bfloat16 and float16; q has dtype torch.float32"),
        *(((9, 0), {n: {"dtype": torch.float64}}, {}, f"{n} has dtype torch.float64") for n in ("g", "beta", "lamb", "h_kk_init")),
        ((9, 0), {"q": {"shape": (70_000, 8, 2, 64)}}, {}, r"takes at most 65535 heads in all; got B \* H = 140000"),
        ((9, 0), {}, {"tolerance": 1e-4}, "cannot stop at a tolerance; got cg_tolerance=0.0001"),
    ],
)  # fmt: skip
def test_what_fla_s_kernels_do_not_take_pytorch_does_with_one_warning(on, kind, changes, options, reason):
    on(*kind)
    with pytest.warns(UserWarning, match=f"the Mesa op runs on backend='pytorch': backend='fla' .*{reason}"):
        assert choose_backend(None, "chunk", arguments(**changes), **options).__name__ == BACKENDS["pytorch"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose_backend(None, "chunk", arguments(**changes), **options)
    with pytest.raises(ValueError, match=f"backend='fla' .*{reason}"):
        choose_backend("fla", "chunk", arguments(**changes), **options)


def test_an_amd_gpu_and_a_cpu_run_on_pytorch(on):
    assert choose_backend(None, "chunk", arguments("cpu")).__name__ == BACKENDS["pytorch"]
    on(9, 4, vendor="amd")
    with pytest.warns(UserWarning, match="backend='fla' needs an NVIDIA GPU"):
        assert choose_backend(None, "chunk", arguments()).__name__ == BACKENDS["pytorch"]
    with pytest.raises(ValueError, match="backend='triton' needs an NVIDIA GPU"):
        choose_backend("triton", "chunk", arguments())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"v": {"shape": (1, 8, 2, 300)}}, "takes heads of at most 256; v has head size 300"),
        ({"K": 257}, "takes heads of at most 256; q has head size 257"),
        ({"lamb": {"dtype": torch.float64}}, "takes float32, .*; lamb has dtype torch.float64"),
        ({"device": "cpu"}, r"takes GPU tensors.*TRITON_INTERPRET=1.*; q is on device 'cpu'"),
    ],
)
def test_a_refusal_says_why_and_what_takes_it(on, changes, reason):
    with pytest.raises(ValueError, match=f"backend='triton' {reason}. Use backend='pytorch'"):
        choose_backend("triton", "chunk", arguments(**changes))


def test_an_unknown_name():
    with pytest.raises(
        ValueError,
        match=r"backend must be None or one of \['diagonal', 'exact', 'fla', 'pytorch', 'triton'\].* mean 'pytorch'",
    ):
        check_backend("torch")


def test_a_missing_package_is_named(on, monkeypatch):
    monkeypatch.setitem(BACKENDS, "fla", "tritonless.kernels")
    with pytest.warns(UserWarning, match="'fla' needs the package tritonless, which is not installed"):
        assert choose_backend(None, "chunk", arguments()).__name__ == BACKENDS["pytorch"]
    with pytest.raises(ValueError, match="backend='fla' needs the package tritonless, which is not installed"):
        choose_backend("fla", "chunk", arguments())


@pytest.mark.parametrize("name", BACKENDS)
def test_every_back_end_has_the_common_interface(on, name):
    backend = choose_backend(name, "chunk", arguments())
    required = {n for n in (*vars(Backend), *Backend.__annotations__) if not n.startswith("_")}
    assert "TOLERANCE" in required
    assert required - set(vars(backend)) <= (
        {"query_forward", "query_backward"} if name in ("fla", "triton") else set()
    )


def test_a_state_is_read_without_a_warning(on):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_backend(None, "query", arguments()).__name__ == BACKENDS["pytorch"]
