"""Tokens per second of the training loop, without the time for evaluations and checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import TrainerCallback


def _now() -> float:
    """Seconds, once all work handed to the accelerator is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


class Throughput(TrainerCallback):
    """Measures from the end of the first step (which compiles and allocates) to the end of the last.

    A run of a single step is measured from its beginning.
    """

    def __init__(self) -> None:
        self._tokens = 0  # of this process
        self._paused = 0.0
        self._steps = 0
        # Seconds with pauses taken out, and tokens:
        self._begin = self._first_step = self._last_step = (0.0, 0)

    def add(self, tokens: int) -> None:
        """Adds the tokens of a forward and backward pass."""
        self._tokens += tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time spent inside."""
        begin = _now()
        try:
            yield
        finally:
            self._paused += _now() - begin

    def _mark(self, seconds: float) -> tuple[float, int]:
        return seconds - self._paused, self._tokens

    def on_train_begin(self, args, state, control, **kwargs):
        self._steps = 0
        self._begin = self._last_step = self._mark(_now())

    def on_step_end(self, args, state, control, **kwargs):
        self._steps += 1
        exactly = self._steps == 1 or state.global_step >= state.max_steps
        self._last_step = self._mark(_now() if exactly else time.perf_counter())
        if self._steps == 1:
            self._first_step = self._last_step

    def tokens_per_second(self, processes: int = 1) -> float | None:
        """Tokens per second over all processes; None before the first step."""
        start = self._first_step if self._steps > 1 else self._begin
        seconds, tokens = self._last_step[0] - start[0], self._last_step[1] - start[1]
        return processes * tokens / seconds if seconds > 0 and tokens > 0 else None
