"""What ranks of a gloo group do with the recipe; run by `fla_mesa.testing.ranks`."""

import os
import shutil
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from fla_mesa.train.command import main
from fla_mesa.train.recipe import prepare, train
from fla_mesa.train.settings import parse
from tests.train.conftest import make_flags

# Four steps on two rows a rank, in place of one process's four.
FOUR_STEPS = (
    "--max_steps",
    4,
    "--save_steps",
    2,
    "--eval_steps",
    2,
    "--logging_steps",
    1,
    "--per_device_train_batch_size",
    2,
)

# A stream that is shuffled within a few blocks at a time.
STREAM = ("--streaming", "--shuffle_buffer", 8, "--held_out_tokens", 200)

# Beside what `fla_mesa.testing.ranks` sets, all that torchrun would, and accelerate asks for.
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", LOCAL_WORLD_SIZE="2")


def train_resume_refuse(text: Path, folder: Path) -> None:
    """Trains sharded in `whole`; goes on from the middle of it in `resumed`; mixes sharded and not, which is refused."""
    first = dist.get_rank() == 0
    assert main(make_flags(text, folder / "whole", *FOUR_STEPS, "--shard")) == 0
    if first:
        shutil.copytree(folder / "whole", folder / "resumed")
        shutil.rmtree(folder / "resumed" / "checkpoint-4")
    dist.barrier()
    assert main(make_flags(text, folder / "resumed", *FOUR_STEPS, "--shard", "--resume")) == 0
    assert main(make_flags(text, folder / "whole", *FOUR_STEPS, "--resume")) == 2
    assert (
        main(make_flags(text, folder / "bfloat16", *FOUR_STEPS, "--shard", "--bf16", "--load_best_model_at_end")) == 0
    )


class Die(TrainerCallback):
    """Kills one rank after three steps, one after a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def lose_a_rank(text: Path, folder: Path) -> None:
    run = prepare(*parse(make_flags(text, folder, *FOUR_STEPS, "--shard")), say=lambda _: None)
    run.trainer.add_callback(Die())
    train(run)


def go_on(text: Path, folder: Path) -> None:
    assert main(make_flags(text, folder, *FOUR_STEPS, "--shard", "--resume")) == 0


def sharded_groups(text: Path, folder: Path) -> list[tuple[str, float, bool]]:
    """Name, decay and whether it is spread over the ranks, of each parameter of a sharded run."""
    trainer = prepare(*parse(make_flags(text, folder, "--shard", "--weight_decay", 0.3)), say=lambda _: None).trainer
    decays = {
        id(p): group["weight_decay"] for group in trainer.create_optimizer().param_groups for p in group["params"]
    }
    return [
        (name, decays[id(parameter)], isinstance(parameter, torch.distributed.tensor.DTensor))
        for name, parameter in trainer.model.named_parameters()
    ]


def stream_and_go_on(folder: Path, output: Path) -> list[list[int]]:
    """Four steps of a stream, then again from the middle; returns the rows of input that this rank saw in the first run."""
    seen = []
    command = (folder, output / "whole", *FOUR_STEPS, *STREAM)
    run = prepare(*parse(make_flags(*command)), say=lambda _: None)
    forward = run.trainer.training_step

    def noted(model, inputs, *args):
        seen.extend(inputs["input_ids"].tolist())
        return forward(model, inputs, *args)

    run.trainer.training_step = noted
    train(run)
    if dist.get_rank() == 0:
        shutil.copytree(output / "whole", output / "resumed")
        shutil.rmtree(output / "resumed" / "checkpoint-4")
    dist.barrier()
    assert main(make_flags(folder, output / "resumed", *FOUR_STEPS, *STREAM, "--resume")) == 0
    assert main(make_flags(folder, output / "long", *FOUR_STEPS, *STREAM, "--max_steps", 1000)) == 2
    return seen
