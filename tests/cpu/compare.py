"""How the tests of the stand-ins compare: in float32 against a reference, relative to the largest entry, gradients included."""

import torch
from torch.autograd import gradcheck

f64 = torch.float64


def close(actual, expected, tol=1e-5):
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1
    error = (actual.to(f64) - expected.to(f64)).abs().max() / scale if expected.numel() else torch.tensor(0.0)
    assert error <= tol, f"relative error {error:.1e}"


def outputs(y):
    return [y] if isinstance(y, torch.Tensor) else [x for x in y if x is not None]


def compare(function, reference, inputs, tol=1e-5, dtype=f64):
    """Outputs and all gradients of `function` in float32 against `reference` in `dtype`."""
    x32 = [x.detach().float().requires_grad_() for x in inputs]
    x64 = [x.detach().to(dtype).requires_grad_() for x in inputs]
    y32, y64 = outputs(function(*x32)), outputs(reference(*x64))
    seeds = [torch.randn_like(y) for y in y64]
    for a, b in zip(y32, y64, strict=True):
        close(a, b, tol)
    g32 = torch.autograd.grad(y32, x32, [s.float() for s in seeds])
    for a, b in zip(g32, torch.autograd.grad(y64, x64, seeds), strict=True):
        close(a, b, tol)


def check_gradients(function, inputs):
    assert gradcheck(function, [x.to(f64).requires_grad_() for x in inputs], fast_mode=True)
