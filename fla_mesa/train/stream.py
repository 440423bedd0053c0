"""Training on a stream of data: what it needs of the settings, where a checkpoint goes on in it, and what happens where it ends.

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
    """How the settings of a run say that data is to be streamed; None if they do not."""
    if not settings.get("streaming"):
        return None
    given = {name: settings[name] for name in ("shuffle_buffer", "held_out_tokens") if settings[name] is not None}
    return Streaming(**given)


def check(arguments: RecipeArguments) -> None:
    """Raises UserError for what a stream does not go with."""
    passes = arguments.num_train_epochs
    if arguments.max_steps <= 0:
        raise UserError("streaming: needs --max_steps, as nobody knows how long the data is")
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
            f"train_sampling_strategy: a stream is shuffled by --shuffle_buffer alone; got {arguments.train_sampling_strategy}"
        )


def arrange(splits: Splits, arguments: RecipeArguments) -> Splits:
    """Gives the stream the order, the length and the steps of this run; other data is left as it is."""
    if not isinstance(splits.train, BlockStream):
        return splits
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    rows = arguments.sequences_per_step
    train = splits.train.arranged(seed=seed, passes=int(arguments.num_train_epochs), rows=rows)
    return replace(splits, train=train)


def save(trainer: Trainer, checkpoint: Path) -> None:
    """Writes the place after the steps that have been done, if there is a stream."""
    stream = trainer.train_dataset
    if isinstance(stream, BlockStream) and trainer.args.process_index == 0:
        write_json(checkpoint / STREAM_FILE, stream.state_after(trainer.state.global_step * stream.rows))


def go_on(splits: Splits, checkpoint: Path) -> None:
    """Sets the stream, if the data is one, to the place of a checkpoint."""
    if isinstance(splits.train, BlockStream):
        steps = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
        splits.train.go_on_after(steps * splits.train.rows, read_json(checkpoint / STREAM_FILE))


class StopAtItsEnd(TrainerCallback):
    """The Trainer would begin the stream again; this ends the run, with a checkpoint."""

    def __init__(self) -> None:
        self.ended = False

    def on_epoch_end(self, args, state, control, train_dataloader=None, **kwargs):
        of_stream = isinstance(getattr(train_dataloader, "dataset", None), BlockStream)
        if of_stream and not control.should_training_stop:
            self.ended = control.should_training_stop = True
            control.should_save = state.global_step > 0


def raise_if_ended(trainer: Trainer, end: StopAtItsEnd, name: str) -> None:
    """Called by all processes after training. Raises UserError, saying how much there was, if the stream ended before the last step."""
    stream, state = trainer.train_dataset, trainer.state
    if not end.ended or not isinstance(stream, BlockStream):
        return
    read = [stream.read]
    broadcast_object_list(read)  # the first process's
    passes = f" in {stream.passes} passes" if stream.passes > 1 else ""
    raise UserError(
        f"data: the stream {name} ended after {read[0].tokens:,} tokens of {read[0].documents:,} documents{passes}, enough for "
        f"{state.global_step:,} of {state.max_steps:,} steps (max_steps) of {stream.rows} x {stream.seq_len} tokens; "
        "a larger --num_train_epochs goes over it again, from here with --resume"
    )
