"""The settings of the conjugate gradients in a model's Mesa layers."""

from __future__ import annotations

from numbers import Real

import torch.nn as nn

from fla_mesa.errors import UserError, mistakes_of
from fla_mesa.layers import MesaNet
from fla_mesa.ops.backends import check_backend


def mesa_layers(model: nn.Module) -> list[MesaNet]:
    """The Mesa layers of a model, first to last; none if it is of another family."""
    return [module for module in model.modules() if isinstance(module, MesaNet)]


def set_solver(
    model: nn.Module,
    *,
    max_cg_steps: int | None = None,
    cg_tolerance: float | None = None,
    backend: str | None = None,
) -> None:
    """Change how exactly a model's Mesa layers solve, in place; the weights stay as they are.

    Args:
        model: Any module with :class:`~fla_mesa.layers.MesaNet` layers in it.
        max_cg_steps: Most conjugate-gradient steps, over sequences and per decoded token alike; >= 1. None leaves it.
        cg_tolerance: Relative residual at which a position's solve stops; in (0, 1). None leaves it.
        backend: Back end of :func:`fla_mesa.ops.chunk_mesa_net`. None leaves it.

    Raises:
        ValueError: A value is out of range, or the model has no Mesa layer to set.
    """
    if max_cg_steps is not None and (
        isinstance(max_cg_steps, bool) or not isinstance(max_cg_steps, int) or max_cg_steps < 1
    ):
        raise UserError(f"max_cg_steps must be an integer >= 1; got {max_cg_steps!r}")
    if cg_tolerance is not None and (
        isinstance(cg_tolerance, bool) or not isinstance(cg_tolerance, Real) or not 0 < float(cg_tolerance) < 1
    ):
        raise UserError(f"cg_tolerance must be a number in (0, 1); got {cg_tolerance!r}")
    with mistakes_of(ValueError):
        check_backend(backend)
    if max_cg_steps is None and cg_tolerance is None and backend is None:
        return
    layers = mesa_layers(model)
    if not layers:
        model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise UserError(
            "max_cg_steps, cg_tolerance and backend are settings of MesaNet's layers (model_type 'mesanet'); "
            f"got a model of type {model_type!r}"
        )
    for layer in layers:
        if max_cg_steps is not None:
            layer.max_cg_step_training = layer.max_cg_step_decoding = max_cg_steps
        if cg_tolerance is not None:
            layer.cg_tolerance = float(cg_tolerance)
        if backend is not None:
            layer.backend = backend
