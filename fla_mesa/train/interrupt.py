"""Ctrl-C and SIGTERM: save, explain how to continue, and exit with the signal's code."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    from transformers import Trainer


STDERR = 2  # its file descriptor


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end. Not an Exception, so that error handlers do not catch it."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        """The signal's name as users know it."""
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """The shell's exit code: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


class SignalStop(TrainerCallback):
    """On the first signal during training, finishes the step, saves a checkpoint and raises `Interrupted`.

    Outside of training, on a second signal, and where several processes train together (they would not stop at the same
    step), it raises at once: the last complete checkpoint is what there is.
    """

    def __init__(self, trainer: "Trainer"):
        self._trainer = trainer
        self._received: int | None = None
        self._can_save = False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Wraps `Trainer.train`."""
        self._can_save = self._trainer.args.world_size == 1
        yield
        self._can_save = False
        self._raise_if_received()

    def receive(self, number: int) -> None:
        """Handles a signal: the first asks training to stop, the second ends it.

        Raises:
            Interrupted: It is the second signal, or nothing is training.
        """
        if self._received is not None or not self._can_save:
            raise Interrupted(number)
        self._received = number
        # Not print: the signal may have come while something is being printed, and Python's buffers take one writer at a time.
        with suppress(OSError):
            os.write(STDERR, b"\nfinishing this step and saving a checkpoint; the same signal again stops at once\n")

    def _raise_if_received(self) -> None:
        if self._received is not None:
            raise Interrupted(self._received)

    def on_step_end(self, args, state, control, **kwargs):
        if self._received is not None:
            control.should_evaluate = False
            control.should_save = True
            control.should_training_stop = True

    def on_prediction_step(self, args, state, control, **kwargs):
        # An evaluation may take long, and comes between two steps: what there is to save is whole.
        if self._received is not None and self._can_save:
            self._can_save = False
            self._trainer._save_checkpoint(self._trainer.model, trial=None)  # pyright: ignore[reportArgumentType]
            self._raise_if_received()


@contextmanager
def signals_to(receive) -> Iterator[None]:
    """Sends SIGINT and SIGTERM to `receive(number)` inside; restores their handlers afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda received, _: receive(received)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
