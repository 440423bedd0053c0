"""The plug-in benchmarks/fla_solver.py: right where the constant is small beside the residuals, wrong as fla is where it is not."""

import functools
from pathlib import Path

import pytest
import torch

from fla_mesa import plugins
from fla_mesa.ops import backends, chunk_mesa_net
from fla_mesa.testing.cases import Case, errors, run, truth

PLUGIN = Path(__file__).parents[2] / "benchmarks" / "fla_solver.py"
CASE = Case(T=128, H=1, K=32, V=32, initial=False)  # of benchmarks/results/fla_gradients_2026-11-27.md


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """For these tests only: others count the back ends."""
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(backends, "BACKENDS", dict(backends.BACKENDS))
    plugins.load([str(PLUGIN)])


@pytest.mark.parametrize(
    ("backend", "scale", "at_least", "at_most"),
    [
        ("pytorch", 1e-8, 0, 1e-3),
        ("fla_solver", 1.0, 0, 1e-3),
        ("fla_solver", 1e-4, 0.2, 0.5),  # fla's kernels: 0.32
        ("fla_solver_32nd", 32e-4, 0.2, 0.5),
        ("fla_solver", 32e-4, 0, 0.02),
    ],
)
def test_its_error_by_the_size_of_the_incoming_gradient(backend, scale, at_least, at_most):
    op = functools.partial(chunk_mesa_net, backend=backend)
    off = errors(run(op, CASE, torch.float32, scale=scale), truth(CASE, torch.float32))["dq"]
    assert at_least <= off < at_most
