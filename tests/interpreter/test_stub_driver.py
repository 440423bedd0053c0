"""The interpreter's mends, each against plain numpy, and one of fla's autotuned kernels end to end."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fla_mesa import interpreter


@triton.jit
def dot_kernel(a, b, c, N: tl.constexpr, PRECISION: tl.constexpr):
    o_n = tl.arange(0, N)
    at = o_n[:, None] * N + o_n[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision=PRECISION))


def dot(a: torch.Tensor, b: torch.Tensor, precision: str = "ieee") -> torch.Tensor:
    c = torch.full(a.shape, torch.nan)
    dot_kernel[(1,)](a, b, c, N=a.shape[0], PRECISION=precision)
    return c


@pytest.fixture
def operands() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(32, 32, generator=generator), torch.randn(32, 32, generator=generator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dot_decodes_every_dtype(operands, dtype):
    a, b = (x.to(dtype) for x in operands)
    torch.testing.assert_close(dot(a, b), a.float() @ b.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "least", "most"),
    [("ieee", 0, 3e-7), ("tf32", 1e-4, 1e-3), ("tf32x3", 0, 1e-6), ("bf16x3", 1e-6, 5e-5), ("bf16x6", 0, 5e-6)],
)
def test_rounded_dots_have_the_error_of_their_precision(operands, precision, least, most):
    a, b = operands
    exact = a.double() @ b.double()
    with interpreter.rounded_dots():
        error = (dot(a, b, precision).double() - exact).norm() / exact.norm()
    assert least <= error <= most
    assert (dot(a, b, precision).double() - exact).norm() / exact.norm() <= 3e-7, "outside the block dots are float32"


def test_round_mantissa_agrees_with_bfloat16():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    expected = torch.from_numpy(x).bfloat16().float().numpy()
    np.testing.assert_array_equal(interpreter.round_mantissa(x, 7), expected)


@triton.jit
def cast_kernel(a, b, N: tl.constexpr):
    o_n = tl.arange(0, N)
    tl.store(b + o_n, tl.load(a + o_n).to(tl.bfloat16))


def test_a_cast_to_bfloat16_rounds_to_the_nearest():
    a = torch.cat([torch.randn(62), torch.tensor([torch.inf, torch.nan])])
    b = torch.empty(64, dtype=torch.bfloat16)
    cast_kernel[(1,)](a, b, N=64)
    torch.testing.assert_close(b, a.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_fla_autotuned_kernel_runs():
    from fla.ops.utils import chunk_local_cumsum

    interpreter.mend_loops()
    g = torch.randn(1, 100, 2)
    expected = torch.cat([g[:, i : i + 64].cumsum(1) for i in range(0, 100, 64)], 1)
    torch.testing.assert_close(chunk_local_cumsum(g, chunk_size=64), expected)
