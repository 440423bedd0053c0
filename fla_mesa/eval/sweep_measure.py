"""Measures one model under many settings of its solver: loss, recall, iterations, speed, memory."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from fla_mesa.eval.heldout import buckets
from fla_mesa.eval.solver import mesa_layers
from fla_mesa.eval.sweep_data import IGNORE, Reading
from fla_mesa.layers import MesaNet

# No row reaches it: a fixed number of steps.
NEVER = 1e-30
_DECODED = 16


@dataclass(frozen=True)
class Setting:
    """How the systems are solved: 'steps' (exactly `value` of them), 'tolerance' (until `value`, `cap` steps at most) or 'exact'.

    Steps start from the paper's start, q / diag(H + lamb), which is all there is of zero steps.
    """

    kind: str
    value: float = 0.0
    cap: int = 30

    @property
    def name(self) -> str:
        return {"steps": f"{self.value:.0f} steps", "tolerance": f"tolerance {self.value:.0e}", "exact": "exact"}[
            self.kind
        ]

    @contextmanager
    def on(self, model: PreTrainedModel) -> Iterator[None]:
        """The model's Mesa layers solve so inside."""
        layers = mesa_layers(model)
        before = [{name: getattr(layer, name) for name in self._changes} for layer in layers]
        try:
            for layer in layers:
                _set(layer, self._changes)
            yield
        finally:
            for layer, settings in zip(layers, before, strict=True):
                _set(layer, settings)

    @property
    def _changes(self) -> dict[str, Any]:
        """Attributes of a Mesa layer."""
        if self.kind == "exact":
            return {"backend": "exact"}
        steps = self.cap if self.kind == "tolerance" else int(self.value)
        tolerance = self.value if self.kind == "tolerance" else NEVER
        return {"max_cg_step_training": steps, "max_cg_step_decoding": steps, "cg_tolerance": tolerance}


def _set(layer: MesaNet, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        setattr(layer, name, value)


@dataclass
class Measured:
    """What one setting gives at one context length. Times are medians; None where it was not measured.

    Attributes:
        loss: Nats per scored token.
        loss_by_position: The same for ranges of positions, keyed 'first-last'.
        recall: Share of the recall task's scored tokens whose greedy prediction is right.
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
    def iterations(self) -> float:
        """Mean over layers, heads and positions: the compute that the setting spends."""
        values = [value for heads in self.mean_iterations for value in heads]
        return sum(values) / len(values)


@torch.no_grad()
def measure_quality(model: PreTrainedModel, setting: Setting, reading: Reading, batch_size: int) -> Measured:
    """Loss, recall and iterations of a setting at one context length."""
    measured = Measured(setting, reading.length)
    spans = buckets(reading.length)
    nats, scored = (torch.zeros(reading.length, dtype=torch.float64) for _ in range(2))
    layers = mesa_layers(model)
    mean, most = (torch.zeros(len(layers), layers[0].num_heads, reading.length, dtype=torch.float64) for _ in range(2))
    with setting.on(model), _recording(layers):
        for ids, labels in _batches(reading.ids, reading.labels, batch_size):
            logits = _logits(model, ids)
            losses, counted = _losses(logits, labels.to(logits.device))
            nats[1:] += losses.sum(0).cpu()
            scored[1:] += counted.sum(0).cpu()
            for i, layer in enumerate(layers):
                assert layer.last_stats is not None
                spent = layer.last_stats.iterations.double().cpu()  # [B, T, H]
                mean[i] += spent.sum(0).T
                most[i] = torch.maximum(most[i], spent.amax(0).T)
        measured.recall = _recall(model, reading, batch_size)
    mean /= len(reading.ids)
    measured.loss = (nats.sum() / scored.sum()).item()
    measured.loss_by_position = {
        f"{a}-{b - 1}": (nats[a:b].sum() / scored[a:b].sum()).item() for a, b in spans if scored[a:b].sum() > 0
    }
    measured.mean_iterations = mean.mean(-1).tolist()
    measured.max_iterations = most.amax(-1).int().tolist()
    measured.iterations_by_position = torch.stack([mean[..., a:b].mean(-1) for a, b in spans], dim=-1).tolist()
    return measured


def measure_speed(model: PreTrainedModel, results: list[Measured], reading: Reading, repeats: int) -> None:
    """Fill in times and memory of these settings at one context length, one sequence at a time.

    The settings take turns in each repeat, so that whatever else the machine does strikes all of them; one turn before warms up.
    The exact solve is left out: it is written to be right, not fast.
    """
    timed = [m for m in results if m.setting.kind != "exact"]
    times: dict[int, tuple[list[float], list[float]]] = {i: ([], []) for i in range(len(timed))}
    ids = reading.ids[:1]
    for turn in range(repeats + 1):
        for i, measured in enumerate(timed):
            with measured.setting.on(model):
                prefill, decode, memory = _time_once(model, ids)
            if turn:
                times[i][0].append(prefill)
                times[i][1].append(decode)
                measured.memory_mib = max(measured.memory_mib or 0.0, memory)
    for i, measured in enumerate(timed):
        measured.prefill_ms, measured.decode_ms = (statistics.median(values) for values in times[i])


@torch.no_grad()
def _time_once(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, float, float]:
    """Milliseconds a token of prefill and of decode, and MiB of the prefill's peak."""
    device = model.device
    ids = ids.to(device)
    with _peak_memory(device) as peak:
        prefill, out = _timed(device, lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1))
    cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)

    def decode() -> None:
        nonlocal cache, token
        for _ in range(_DECODED):
            step = model(input_ids=token, past_key_values=cache, use_cache=True)
            cache, token = step.past_key_values, step.logits[:, -1:].argmax(-1)

    decoding, _ = _timed(device, decode)
    return 1e3 * prefill / ids.shape[1], 1e3 * decoding / _DECODED, peak[0]


def _timed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    _synchronize(device)
    before = time.perf_counter()
    result = run()
    _synchronize(device)
    return time.perf_counter() - before, result


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[float]]:
    """A list whose one entry is, afterwards, the peak in MiB."""
    peak = [0.0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device) / 2**20
        return
    process, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss / 2**20)
            done.wait(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@contextmanager
def _recording(layers: list) -> Iterator[None]:
    for layer in layers:
        layer.record_stats = True
    try:
        yield
    finally:
        for layer in layers:
            layer.record_stats, layer.last_stats = False, None


def _logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids.to(model.device), use_cache=False).logits


def _batches(ids: torch.Tensor, labels: torch.Tensor, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for begin in range(0, len(ids), batch_size):
        yield ids[begin : begin + batch_size], labels[begin : begin + batch_size]


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats ``[B, T - 1]`` in float64, 0 where nothing is scored, and where something is."""
    targets = labels[:, 1:]
    nats = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")
    return nats.double(), (targets != IGNORE).double()


def _recall(model: PreTrainedModel, reading: Reading, batch_size: int) -> float | None:
    if reading.recall_ids is None or reading.recall_labels is None:
        return None
    right = scored = 0
    for ids, labels in _batches(reading.recall_ids, reading.recall_labels, batch_size):
        predicted, targets = _logits(model, ids)[:, :-1].argmax(-1).cpu(), labels[:, 1:]
        right += int(((predicted == targets) & (targets != IGNORE)).sum())
        scored += int((targets != IGNORE).sum())
    return right / scored
