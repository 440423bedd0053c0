"""How fast a model reads and writes, and how much memory it takes."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from fla.models.utils import Cache as FlaCache
from transformers import Cache, PreTrainedModel

Result = TypeVar("Result")

REPEATS = 5


def synchronize() -> None:
    """Wait for all work handed to the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that one call takes, and what it returns."""
    synchronize()
    begin = time.perf_counter()
    result = work()
    synchronize()
    return time.perf_counter() - begin, result


def median_seconds(work: Callable[[], object], repeats: int | None = None) -> float:
    """Median over `repeats` calls (``REPEATS``), after one that warms up."""
    return statistics.median([timed(work)[0] for _ in range((repeats or REPEATS) + 1)][1:])


# Reading and writing


@dataclass
class Continued:
    """A model that has read something, and can go on.

    Attributes:
        model: It.
        cache: By the name under which it takes its cache back.
        token: int64 ``[B, 1]``, the most likely next tokens.
    """

    model: PreTrainedModel
    cache: dict[str, object]
    token: torch.Tensor

    @torch.no_grad()
    def decode(self, tokens: int) -> None:
        """Writes this many tokens, greedily."""
        for _ in range(tokens):
            out = self.model(self.token, use_cache=True, **self.cache)
            self.cache = {name: getattr(out, name) for name in self.cache}
            self.token = out.logits[:, -1:].argmax(-1)

    def state_bytes(self) -> int | None:
        """Size of what it keeps of the past; None for a cache of a kind that is not known here."""
        tensors = _tensors(next(iter(self.cache.values())))
        if tensors is None:
            return None
        return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in tensors}.values())


@torch.no_grad()
def prefill(model: PreTrainedModel, prompt: torch.Tensor) -> Continued:
    """Read `prompt`, int64 ``[B, T]``; logits are made of the last position only."""
    out = model.base_model(prompt, use_cache=True)
    head = model.get_output_embeddings()
    assert head is not None
    name = "past_key_values" if getattr(out, "past_key_values", None) is not None else "cache_params"
    return Continued(model, {name: getattr(out, name)}, head(out.last_hidden_state[:, -1:]).argmax(-1))


def _tensors(cache: object) -> list[torch.Tensor] | None:
    """The tensors that a cache keeps, as its kind names them."""
    if isinstance(cache, FlaCache):
        return _leaves([cache[i] for i in range(len(cache))])
    if isinstance(cache, Cache):  # transformers', for softmax attention
        kept = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
        return None if any(k is None or v is None for k, v in kept) else _leaves(kept)
    if (states := getattr(cache, "rnn_state", None)) is not None:  # transformers' xLSTM
        return _leaves(states)
    return None


def _leaves(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return _leaves(list(value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [leaf for item in value for leaf in _leaves(item)]
    return []


# Memory


@dataclass
class Peak:
    """Bytes that the accelerator, or this process on a CPU, held before some work, and at most during it."""

    before: int = 0
    most: int = 0

    @property
    def grown(self) -> int:
        return self.most - self.before


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Records the peak memory of what runs inside."""
    peak = Peak()
    if torch.accelerator.is_available():
        peak.before = torch.accelerator.memory_allocated()
        torch.accelerator.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: count the largest anew
        peak.before = psutil.Process().memory_info().rss
    yield peak
    synchronize()
    peak.most = torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else _largest()


def _largest() -> int:
    """Most bytes that this process has held. getrusage would count what the process held that started this one."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def training_step(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Two steps with AdamW at a learning rate of zero: the second has weights, gradients, moments and activations at once."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for _ in range(2):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
