"""Progress of a run: a bar in a terminal, otherwise a line per log entry."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from fla_mesa.ops.pytorch import TOLERANCE
from fla_mesa.train.throughput import Throughput


@contextmanager
def no_bars() -> Iterator[None]:
    """Hides transformers' progress bars for saved files and loaded weights."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def clock(seconds: float) -> str:
    """A duration as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# A larger share of solves that end above their tolerance is worth a word.
UNSOLVED_LIMIT = 0.05


def solver_figures(logs: dict[str, float]) -> str:
    """Iterations in words, "9.2 iterations", and the share of unsolved systems if there are any and the back end reports it."""
    share = logs.get("cg_unsolved") or 0.0
    return f"{logs['cg_iterations']:.1f} iterations" + (f" ({share:.1%} unsolved)" if share >= 5e-4 else "")


class Progress(TrainerCallback):
    """Steps, loss, tokens per second and remaining time on standard error; validation figures on a line of their own."""

    def __init__(self, throughput: Throughput, *, lines: bool):
        self._throughput = throughput
        self._lines = lines
        self._bar: tqdm | None = None
        self._validation_bar: tqdm | None = None
        self._begin = (0.0, 0)
        self._warned = False

    def _write(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self._begin = (time.perf_counter(), state.global_step)
        if not self._lines:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="training", unit="step", dynamic_ncols=True
            )

    def on_step_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        where = f"step {state.global_step:>{len(str(state.max_steps))}}/{state.max_steps}"
        if "loss" in logs:
            speed = self._throughput.tokens_per_second(args.world_size)
            shown = {"loss": f"{logs['loss']:.4f}", "tokens/s": f"{speed:,.0f}" if speed else "-"}
            self._warn_of_solver(logs, where, kwargs.get("model"))
            if self._bar is not None:
                self._bar.set_postfix(shown)
                return
            begin, first = self._begin
            left = (state.max_steps - state.global_step) * (time.perf_counter() - begin) / (state.global_step - first)
            rate = f"learning rate {logs['learning_rate']:.2e}"
            solver = f"  {solver_figures(logs)}" if "cg_iterations" in logs else ""
            self._write(
                f"{where}  loss {shown['loss']}  {rate}{solver}  {shown['tokens/s']} tokens/s  {clock(left)} left"
            )
        elif "eval_loss" in logs:
            bits = logs.get("eval_bits_per_byte")
            more = f"  accuracy {logs['eval_accuracy']:.4f}" if "eval_accuracy" in logs else ""
            more = more if bits is None else f"  {bits:.4f} bits per byte"
            self._write(f"{where}  validation loss {logs['eval_loss']:.4f}{more}")

    def _warn_of_solver(self, logs, where: str, model) -> None:
        """Warns once if too many solves end above their tolerance, naming the settings that change it."""
        share, config = logs.get("cg_unsolved"), getattr(model, "config", None)
        if share is None or share <= UNSOLVED_LIMIT or self._warned:
            return
        self._warned = True
        steps, tolerance = (getattr(config, name, None) for name in ("max_cg_step_training", "cg_tolerance"))
        self._write(
            f"{where}  {share:.1%} of the Mesa layers' solves ended above their tolerance after {steps} steps (warning once, above "
            f"{UNSOLVED_LIMIT:.0%}; the log reports this as cg_unsolved): raise max_cg_step_training or, if that is accurate enough, "
            f"cg_tolerance ({TOLERANCE if tolerance is None else tolerance:g}), in --config_overrides"
        )

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self._lines or not state.is_world_process_zero or eval_dataloader is None:
            return
        if self._validation_bar is None:
            total = len(eval_dataloader)
            self._validation_bar = tqdm(total=total, desc="validation", unit="batch", leave=False, dynamic_ncols=True)
        self._validation_bar.update()

    def on_evaluate(self, args, state, control, **kwargs):
        if self._validation_bar is not None:
            self._validation_bar.close()
            self._validation_bar = None

    def on_train_end(self, args, state, control, **kwargs):
        if self._bar is not None:
            self._bar.close()
            self._bar = None
