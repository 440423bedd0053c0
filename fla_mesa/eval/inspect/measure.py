"""What one Mesa layer holds and solves, by head and position, in float64.

Shapes: B sequences, T positions, S of them where the states are looked at, H heads, K key size, V value size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from fla_mesa.layers import MesaNet
from fla_mesa.layers.mesa_net import Regression
from fla_mesa.layers.solver import mesa_layers

SPOTS = 40


@dataclass(frozen=True)
class LayerReport:
    """A layer on some sequences. Means are over sequences; positions count from 0.

    Attributes:
        spots: Positions ``[S]`` at which the states were looked at, evenly spaced in their logarithms.
        gamma, beta: Forget and input gates ``[B, T, H]``.
        lamb: The ridge ``[H, K]``.
        iterations: Steps of the solver with the layer's own settings ``[B, T, H]``.
        unsolved: Share of positions that end above the layer's tolerance ``[H]``; NaN where the back end does not say.
        condition: Condition number of ``H_t + diag(lamb)`` ``[B, S, H]``.
        cosine: Between the plain read ``G'q`` and the solved one ``G'(H + diag(lamb))^-1 q`` ``[B, S, H]``; NaN where one is zero.
    """

    spots: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    lamb: np.ndarray
    iterations: np.ndarray
    unsolved: np.ndarray
    condition: np.ndarray
    cosine: np.ndarray


@torch.no_grad()
def inspect_layers(model: nn.Module, ids: torch.Tensor) -> list[LayerReport]:
    """A report on each Mesa layer of a model, first to last.

    Args:
        model: A language model; in evaluation mode, on any device.
        ids: Tokens ``[B, T]``, each row one sequence.
    """
    layers = mesa_layers(model)
    inputs: dict[MesaNet, torch.Tensor] = {}

    def keep(layer: nn.Module, args: tuple, kwargs: dict) -> None:
        assert isinstance(layer, MesaNet)
        inputs[layer] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    recorded = [layer.record_stats for layer in layers]
    try:
        for layer in layers:
            layer.record_stats = True
        model(input_ids=ids, use_cache=False)
        return [_report(layer, inputs[layer]) for layer in layers]
    finally:
        for hook, layer, record in zip(hooks, layers, recorded, strict=True):
            hook.remove()
            layer.record_stats, layer.last_stats = record, None


def _report(layer: MesaNet, hidden_states: torch.Tensor) -> LayerReport:
    stats = layer.last_stats
    assert stats is not None
    known = ~stats.residual.isnan()
    problem = Regression(*(x.double().cpu() for x in layer.regression(hidden_states)))
    spots = log_spaced(hidden_states.shape[1])
    condition, cosine = zip(*(_look(problem, t, h, g) for t, h, g in states(problem, spots)), strict=True)
    return LayerReport(
        spots=spots,
        gamma=problem.g.exp().numpy(),
        beta=problem.beta.numpy(),
        lamb=problem.lamb.numpy(),
        iterations=stats.iterations.cpu().numpy(),
        unsolved=((stats.residual > layer.tolerance).sum((0, 1)) / known.sum((0, 1))).cpu().numpy(),
        condition=torch.stack(condition, 1).numpy(),
        cosine=torch.stack(cosine, 1).numpy(),
    )


def log_spaced(length: int) -> np.ndarray:
    """Positions from 0 to ``length - 1``, evenly spaced in the logarithm of their number from 1."""
    return np.unique(np.geomspace(1, length, SPOTS).round().astype(int)) - 1


def states(problem: Regression, spots: np.ndarray) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """``(t, H_t [B, H, K, K], G_t [B, H, K, V])`` for each t of `spots`, by the recurrence."""
    q, k, v, g, beta, _ = problem
    B, T, H, K = q.shape
    h, at_kv = q.new_zeros(B, H, K, K), q.new_zeros(B, H, K, v.shape[-1])
    wanted = set(spots.tolist())
    for t in range(T):
        gamma, weighted = (
            g[:, t].exp()[..., None, None],
            (beta[:, t, :, None] * k[:, t])[..., None],
        )  # [B, H, 1, 1], [B, H, K, 1]
        h = gamma * h + weighted * k[:, t, :, None, :]
        at_kv = gamma * at_kv + weighted * v[:, t, :, None, :]
        if t in wanted:
            yield t, h, at_kv


def _look(problem: Regression, t: int, h: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Condition number and cosine ``[B, H]`` at one position."""
    a = h + torch.diag_embed(problem.lamb)  # [B, H, K, K]
    values = torch.linalg.eigvalsh(a)
    q = problem.q[:, t, :, :, None]
    plain, solved = ((g.mT @ x).squeeze(-1) for x in (q, torch.linalg.solve(a, q)))  # [B, H, V]
    cosine = F.cosine_similarity(plain, solved, dim=-1, eps=0.0)
    return values[..., -1] / values[..., 0], cosine
