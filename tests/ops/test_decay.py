"""What gates leave: exponentials, without those whose products would be denormal numbers."""

import math

import pytest
import torch

from fla_mesa.ops.pytorch.decay import decay
from fla_mesa.ops.pytorch.problem import Problem
from fla_mesa.ops.pytorch.segments import Segment


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_exponential_down_to_the_root_of_the_smallest_normal_number(dtype):
    least = math.sqrt(torch.finfo(dtype).tiny)
    log = torch.linspace(0, 2 * math.log(least), 1001, dtype=torch.float64)
    found, exact = decay(log, dtype), log.exp()
    kept = exact > 1.001 * least
    torch.testing.assert_close(
        found[kept], exact[kept].to(dtype), rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=0
    )
    assert not found[exact < 0.999 * least].any()


def test_no_product_of_two_is_denormal():
    left = decay(torch.linspace(-200, 0, 4001, dtype=torch.float64), torch.float32)
    products = left[:, None] * left
    assert not ((products > 0) & (products < torch.finfo(torch.float32).tiny)).any()


def test_infinity_nan_and_gradients():
    log = torch.tensor([0.0, -1.0, -300.0, -math.inf], requires_grad=True)
    left = decay(log, torch.float32)
    left.sum().backward()
    torch.testing.assert_close(left, torch.tensor([1, math.exp(-1), 0, 0]))
    torch.testing.assert_close(log.grad, torch.tensor([1, math.exp(-1), 0, 0]))
    assert decay(torch.tensor([math.nan]), torch.float32).isnan().all()


def test_a_tile_with_gates_near_zero_holds_no_denormal_product():
    """exp(-3 * 63) is 1e-82: on the way there decays pass through the denormal numbers."""
    k, v = torch.randn(2, 1, 64, 1, 8)
    g, beta, lamb = torch.full((1, 64, 1), -3.0), torch.ones(1, 64, 1), torch.ones(1, 8)
    problem = Problem(Segment(slice(None), slice(None), slice(None)), k, v, g, beta, lamb, None)
    for left in (problem.entry_decay, problem.exit_decay, problem.inner_decay()):
        assert left.max() > 0.04 and not ((left > 0) & (left < 1e-19)).any()
