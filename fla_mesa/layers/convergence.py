"""Solver statistics of a model's Mesa layers: counted during solves, read on demand.

    with counting(model) as solves:
        model(input_ids)
    print(solves.read())        # Convergence(iterations=9.2, unsolved=0.003)

Counting costs a few sums a layer and no synchronisation with the device: that happens in `read`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn as nn

from fla_mesa.ops import SolverStats

Reduce = Callable[[torch.Tensor], torch.Tensor]


class Convergence(NamedTuple):
    """The statistics since the last reading.

    Attributes:
        iterations: Mean steps of a solve.
        unsolved: Share of the solves that ended above their layer's tolerance; None where the back end does not say ("fla").
    """

    iterations: float
    unsolved: float | None


class Solves:
    """Sums over all solves of the layers that share it. Gradient checkpointing counts a solve twice, which changes no mean."""

    def __init__(self) -> None:
        # On each device int64 [4]: solves, those whose residual is known, those of them above the tolerance, iterations.
        self._sums: dict[torch.device, torch.Tensor] = {}

    @torch.no_grad()
    def add(self, stats: SolverStats, tolerance: float) -> None:
        """Adds the solves of one call of a layer, with the relative residual they should reach."""
        iterations, residual = stats.iterations, stats.residual
        known = residual.numel() - residual.isnan().sum()
        missed, steps = (residual > tolerance).sum(), iterations.sum()
        sums = torch.stack([torch.full_like(known, residual.numel()), known, missed, steps])
        before = self._sums.get(residual.device)
        self._sums[residual.device] = sums if before is None else before + sums

    def read(self, reduce: Reduce | None = None) -> Convergence | None:
        """Returns the figures since the last reading and resets them; None if nothing was solved.

        Args:
            reduce: Sums an int64 ``[4]`` over processes; called in each of them, whether it has solved anything or not.
        """
        sums = sum((sums.cpu() for sums in self._sums.values()), torch.zeros(4, dtype=torch.int64))
        self._sums.clear()
        solves, known, missed, steps = (sums if reduce is None else reduce(sums)).tolist()
        return Convergence(steps / solves, missed / known if known else None) if solves else None


def has_solver(model: nn.Module) -> bool:
    """Whether the model has a Mesa layer, whose solves can be counted."""
    return any("solves" in vars(module) for module in model.modules())


@contextmanager
def counting(model: nn.Module) -> Iterator[Solves]:
    """Counts the solves of a model's Mesa layers inside; an outer count pauses meanwhile.

    The model may be wrapped (DDP, FSDP2, PEFT), and may have no Mesa layer: then nothing is counted.
    """
    solves = Solves()
    layers: list[Any] = [module for module in model.modules() if "solves" in vars(module)]
    before = [layer.solves for layer in layers]
    for layer in layers:
        layer.solves = solves
    try:
        yield solves
    finally:
        for layer, held in zip(layers, before, strict=True):
            layer.solves = held
