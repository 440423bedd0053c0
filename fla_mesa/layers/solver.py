"""Temporarily change how Mesa layers solve, and record what their solver spends.

Shapes: L Mesa layers, H heads, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import nn

from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.layers.mesa_net import MesaNet
from fla_mesa.ops.backends import check_backend

NEVER = 1e-30  # a tolerance that no row reaches: a fixed number of steps


def mesa_layers(model: nn.Module) -> list[MesaNet]:
    """The Mesa layers of a model, in order; empty for other families."""
    return [module for module in model.modules() if isinstance(module, MesaNet)]


@dataclass(frozen=True)
class Solver:
    """Solver settings; None keeps the model's own.

    Attributes:
        max_cg_steps: Most conjugate-gradient steps, over sequences and per decoded token alike; >= 0. Steps start from the paper's start,
            q / diag(H + lamb), which is all there is of zero steps.
        cg_tolerance: Relative residual at which a position's solve stops; in (0, 1).
        backend: Back end of :func:`fla_mesa.ops.chunk_mesa_net`.

    Raises:
        ValueError: A value is out of range.
    """

    max_cg_steps: int | None = None
    cg_tolerance: float | None = None
    backend: str | None = None

    def __post_init__(self) -> None:
        steps, tolerance = self.max_cg_steps, self.cg_tolerance
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 0):
            raise UserError(f"max_cg_steps must be an integer >= 0; got {steps!r}")
        if tolerance is not None and (
            isinstance(tolerance, bool) or not isinstance(tolerance, Real) or not 0 < float(tolerance) < 1
        ):
            raise UserError(f"cg_tolerance must be a number in (0, 1); got {tolerance!r}")
        with mistakes_of(ValueError):
            check_backend(self.backend)

    def set(self, layer: MesaNet) -> None:
        """Apply the settings to a layer."""
        if self.max_cg_steps is not None:
            layer.max_cg_step_training = layer.max_cg_step_decoding = self.max_cg_steps
        if self.cg_tolerance is not None:
            layer.cg_tolerance = float(self.cg_tolerance)
        if self.backend is not None:
            layer.backend = self.backend

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Applies the settings to the model's Mesa layers inside."""
        names = ("max_cg_step_training", "max_cg_step_decoding", "cg_tolerance", "backend")
        layers = mesa_layers(model)
        before = [{name: getattr(layer, name) for name in names} for layer in layers]
        try:
            for layer in layers:
                self.set(layer)
            yield
        finally:
            for layer, settings in zip(layers, before, strict=True):
                vars(layer).update(settings)


def set_solver(
    model: nn.Module,
    *,
    max_cg_steps: int | None = None,
    cg_tolerance: float | None = None,
    backend: str | None = None,
) -> None:
    """Change how accurately a model's Mesa layers solve, in place; the weights stay the same.

    Args:
        model: Any module with :class:`~fla_mesa.layers.MesaNet` layers in it.
        max_cg_steps: As :class:`Solver`'s, but >= 1.
        cg_tolerance, backend: As :class:`Solver`'s.

    Raises:
        UserError: A value is out of range, or the model has no Mesa layer.
    """
    solver = Solver(max_cg_steps, cg_tolerance, backend)
    if max_cg_steps == 0:
        raise UserError("max_cg_steps must be an integer >= 1; got 0")
    if solver == Solver():
        return
    layers = mesa_layers(model)
    if not layers:
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            "max_cg_steps, cg_tolerance and backend are settings of MesaNet's layers (model_type 'mesanet'); "
            f"got a model of type {model_type!r}"
        )
    for layer in layers:
        solver.set(layer)


@dataclass
class Spent:
    """Solver statistics of each Mesa layer on sequences of one length.

    Attributes:
        sequences: How many were read.
        sums: Iterations summed over the sequences, float64 ``[H, T]`` for each layer.
        most: The most on any sequence, the same shapes.
    """

    sequences: int = 0
    sums: list[torch.Tensor] = field(default_factory=list)
    most: list[torch.Tensor] = field(default_factory=list)

    def add(self, index: int, layer: MesaNet) -> None:
        """Add the last call of layer number `index`."""
        assert layer.last_stats is not None
        spent = layer.last_stats.iterations.double().cpu()  # [B, T, H]
        total, most = spent.sum(0).T, spent.amax(0).T
        if index == len(self.sums):
            self.sums.append(total)
            self.most.append(most)
        else:
            self.sums[index] += total
            self.most[index] = torch.maximum(self.most[index], most)
        self.sequences += len(spent) if index == 0 else 0

    @property
    def iterations(self) -> torch.Tensor:
        """Mean iterations over the sequences, float64 ``[L, H, T]``."""
        return torch.stack(self.sums) / self.sequences


@contextmanager
def recorded(model: nn.Module) -> Iterator[Spent]:
    """Records solver statistics inside, while the model reads whole sequences of one length; empty for a model without Mesa layers."""
    spent, layers = Spent(), mesa_layers(model)

    def hook(index: int):
        return lambda layer, inputs, output: spent.add(index, layer)

    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        for layer in layers:
            layer.record_stats = True
        yield spent
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            layer.record_stats, layer.last_stats = False, None
