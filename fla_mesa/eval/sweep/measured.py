"""One model under many settings of its solver: loss, recall, iterations, speed, memory."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import PreTrainedModel

from fla_mesa.eval.measure.quality import greedy, loss_by_position, position_ranges, range_name
from fla_mesa.eval.measure.speed import peak_memory, prefill, timed
from fla_mesa.eval.sweep.reading import Reading
from fla_mesa.layers.solver import NEVER, Solver, recorded

_DECODED = 16


@dataclass(frozen=True)
class Setting:
    """How the systems are solved: 'steps' (exactly `value` of them), 'tolerance' (until `value`, `cap` steps at most) or 'exact'."""

    kind: str
    value: float = 0.0
    cap: int = 30

    @property
    def name(self) -> str:
        names = {"steps": f"{self.value:.0f} steps", "tolerance": f"tolerance {self.value:.0e}", "exact": "exact"}
        return names[self.kind]

    @property
    def solver(self) -> Solver:
        """The same for a model's layers."""
        if self.kind == "exact":
            return Solver(backend="exact")
        if self.kind == "steps":
            return Solver(int(self.value), NEVER)
        return Solver(self.cap, self.value)


@dataclass
class Measured:
    """What one setting gives at one context length. Times are medians; None where it was not measured.

    Attributes:
        loss: Nats per scored token.
        loss_by_position: The same for ranges of positions, keyed 'first-last'.
        recall: The score on the recall task by its own rule.
        mean_iterations, max_iterations: Per layer, per head, over all positions of the sequences that the loss was taken on.
        iterations_by_position: Mean over the sequences, ``[layers][heads][ranges]`` for the ranges of `loss_by_position`.
        prefill_ms, decode_ms: Milliseconds a token.
        memory_mib: Peak while prefilling: memory of the device on a GPU, resident memory of the process on a CPU.
    """

    setting: Setting
    length: int
    loss: float = float("nan")
    loss_by_position: dict[str, float] = field(default_factory=dict)
    recall: float | None = None
    mean_iterations: list[list[float]] = field(default_factory=list)
    max_iterations: list[list[int]] = field(default_factory=list)
    iterations_by_position: list[list[list[float]]] = field(default_factory=list)
    prefill_ms: float | None = None
    decode_ms: float | None = None
    memory_mib: float | None = None

    @property
    def is_exact(self) -> bool:
        return self.setting.kind == "exact"

    @property
    def iterations(self) -> float:
        """Mean over layers and heads."""
        return statistics.fmean(value for heads in self.mean_iterations for value in heads)


def measure_quality(model: PreTrainedModel, setting: Setting, reading: Reading, batch_size: int) -> Measured:
    """Loss, recall and iterations of a setting at one context length."""
    ranges = position_ranges(reading.length)
    with setting.solver.on(model):
        with recorded(model) as spent:
            losses = loss_by_position(model, reading.ids, reading.labels, batch_size)
        recall = None
        if reading.recall is not None:
            recall = reading.recall.score(greedy(model, reading.recall.ids, batch_size))
    by_range = {range_name(positions): losses.between(*positions) for positions in ranges}
    return Measured(
        setting,
        reading.length,
        loss=losses.mean,
        loss_by_position={name: loss for name, loss in by_range.items() if loss is not None},
        recall=recall,
        mean_iterations=spent.iterations.mean(-1).tolist(),
        max_iterations=[most.amax(-1).int().tolist() for most in spent.most],
        iterations_by_position=torch.stack([spent.iterations[..., a:b].mean(-1) for a, b in ranges], dim=-1).tolist(),
    )


def measure_speed(model: PreTrainedModel, results: list[Measured], reading: Reading, repeats: int) -> None:
    """Fill in times and memory of these settings at one context length, one sequence at a time.

    The settings take turns in each repeat, so that whatever else the machine does strikes all of them; one turn before warms up.
    The exact solve is left out: it is written to be right, not fast.
    """
    results = [measured for measured in results if not measured.is_exact]
    times: list[list[tuple[float, float]]] = [[] for _ in results]
    prompt = reading.ids[:1].to(model.device)
    for turn in range(repeats + 1):
        for measured, of_turns in zip(results, times, strict=True):
            with measured.setting.solver.on(model):
                with peak_memory() as peak:
                    reads, continued = timed(lambda: prefill(model, prompt))
                writes, _ = timed(partial(continued.decode, _DECODED))
            if turn:
                of_turns.append((1e3 * reads / prompt.shape[1], 1e3 * writes / _DECODED))
                measured.memory_mib = max(measured.memory_mib or 0.0, peak.most / 2**20)
    for measured, of_turns in zip(results, times, strict=True):
        measured.prefill_ms, measured.decode_ms = map(statistics.median, zip(*of_turns, strict=True))
