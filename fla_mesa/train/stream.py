"""Training on a stream of data: checks of the settings, position in checkpoints, and the end of the data.

accelerate reads a stream in the first process alone, which hands each of the others its rows of every step: all together see the
blocks that one process would have seen, in its order. The place in the stream is therefore that of the first process:
`stream.json` in a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback, TrainerState

from fla_mesa.data import BlockStream, Splits, Streaming
from fla_mesa.errors import UserError
from fla_mesa.json_files import read_json, write_json
from fla_mesa.train.settings import RecipeArguments

STREAM_FILE = "stream.json"


def requested(settings: Mapping[str, Any]) -> Streaming | None:
    """The streaming settings of a run; None if it does not stream."""
    if not settings.get("streaming"):
        return None
    given = {name: settings[name] for name in ("shuffle_buffer", "held_out_tokens") if settings[name] is not None}
    return Streaming(**given)


def check(arguments: RecipeArguments) -> None:
    """Checks that the settings go with a stream.

    Raises:
        UserError: One does not.
    """
    passes = arguments.num_train_epochs
    if arguments.max_steps <= 0:
        raise UserError("streaming: needs --max_steps, because the length of the data is unknown")
    if passes != int(passes):
        raise UserError(f"num_train_epochs: of a stream, allowed are whole numbers of passes over it, got {passes}")
    if arguments.dataloader_num_workers:
        raise UserError(
            f"dataloader_num_workers: with --streaming, allowed is 0, as the place in a stream is known where it is read; "
            f"got {arguments.dataloader_num_workers}"
        )
    if arguments.auto_find_batch_size:
        raise UserError("streaming, auto_find_batch_size: allowed is one of the two, got both")
    if arguments.train_sampling_strategy != "random":
        raise UserError(
            f"train_sampling_strategy: a stream is shuffled only by --shuffle_buffer; got {arguments.train_sampling_strategy}"
        )


def arrange(splits: Splits, arguments: RecipeArguments) -> Splits:
    """Gives the stream this run's order, length and steps; leaves other data as it is."""
    if not isinstance(splits.train, BlockStream):
        return splits
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    rows = arguments.sequences_per_step
    train = splits.train.arranged(seed=seed, passes=int(arguments.num_train_epochs), rows=rows)
    return replace(splits, train=train)


def save(trainer: Trainer, checkpoint: Path) -> None:
    """Writes the stream's position after the steps done so far, if there is a stream."""
    stream = trainer.train_dataset
    if isinstance(stream, BlockStream) and trainer.args.process_index == 0:
        write_json(checkpoint / STREAM_FILE, stream.state_after(trainer.state.global_step * stream.rows))


def go_on(splits: Splits, checkpoint: Path) -> None:
    """Sets the data, if it is a stream, to the position in a checkpoint."""
    if isinstance(splits.train, BlockStream):
        steps = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
        splits.train.go_on_after(steps * splits.train.rows, read_json(checkpoint / STREAM_FILE))


class StopAtItsEnd(TrainerCallback):
    """Ends the run with a checkpoint when the stream ends; the Trainer would start it again."""

    def __init__(self) -> None:
        self.ended = False

    def on_epoch_end(self, args, state, control, train_dataloader=None, **kwargs):
        of_stream = isinstance(getattr(train_dataloader, "dataset", None), BlockStream)
        if of_stream and not control.should_training_stop:
            self.ended = control.should_training_stop = True
            control.should_save = state.global_step > 0


def raise_if_ended(trainer: Trainer, end: StopAtItsEnd, name: str) -> None:
    """Reports a stream that ended before the last step. All processes call it after training.

    Raises:
        UserError: The stream ended early; the message says how much data there was.
    """
    stream, state = trainer.train_dataset, trainer.state
    if not end.ended or not isinstance(stream, BlockStream):
        return
    read = [stream.read]
    broadcast_object_list(read)  # the first process's
    passes = f" in {stream.passes} passes" if stream.passes > 1 else ""
    raise UserError(
        f"data: the stream {name} ended after {read[0].tokens:,} tokens of {read[0].documents:,} documents{passes}, enough for "
        f"{state.global_step:,} of {state.max_steps:,} steps (max_steps) of {stream.rows} x {stream.seq_len} tokens; "
        "to continue, pass a larger --num_train_epochs, to fla-mesa train with --resume"
    )
