"""`fla-mesa train`."""

import sys

from fla_mesa import plugins
from fla_mesa.commands import command
from fla_mesa.errors import DISK_FULL, is_disk_full
from fla_mesa.train import recipe, run_folder
from fla_mesa.train.interrupt import Interrupted
from fla_mesa.train.settings import RecipeArguments, RecipeSettings, parse
from fla_mesa.train.trainer import Diverged


@command("train")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0, 1 (diverged), 2 (wrong settings or data), 3 (disk full), 130 or 143 (stopped)."""
    return train(*parse(argv), line=["fla-mesa", "train", *plugins.flags(), *argv])


def train(settings: RecipeSettings, arguments: RecipeArguments, *, line: list[str]) -> int:
    """Trains with these settings; returns the command's exit code. `line` is the command that the run records.

    Raises UserError for wrong settings or data.
    """
    run = recipe.prepare(settings, arguments, command=line)
    try:
        metrics = recipe.train(run)
    except Interrupted as stop:
        checkpoint = run_folder.latest_checkpoint(run.folder)
        flag = "--resume in place of --overwrite" if run.settings.overwrite else "--resume"
        after = (
            f"to continue from {checkpoint}, run the same command with {flag}"
            if checkpoint
            else "no checkpoint was saved yet"
        )
        run.say(f"stopped by {stop.name}: {after}")
        return stop.exit_code
    except Diverged as error:
        print(f"fla-mesa train: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_disk_full(error):
            raise
        print(f"fla-mesa train: {error}; free some space and continue with --resume", file=sys.stderr)
        return DISK_FULL
    run.say(summary(metrics))
    run.say(f"wrote the model, tokenizer, model card, metrics.json and loss.png to {run.folder}")
    return 0


def summary(metrics: dict) -> str:
    """A run's figures in one line, and the baselines to compare them with in another."""
    bits, speed = metrics["bits_per_byte"], metrics["tokens_per_second"]
    parts = [f"validation loss {metrics['loss']:.4f}"]
    if bits is not None:
        parts.append(f"{bits:.4f} bits per byte")
    elif metrics["accuracy"] is not None:
        parts.append(f"accuracy {metrics['accuracy']:.4f}")
    parts.append(f"{metrics['steps']} steps")
    if speed is not None:
        parts.append(f"{speed:,.0f} tokens/s")
    line = ", ".join(parts)
    if metrics["yardsticks"]:
        line += f"\nfor comparison, in bits per byte: {scale(metrics['yardsticks'])}"
    return line


def scale(yardsticks: dict[str, float]) -> str:
    """Baselines in a few words."""
    return ", ".join(f"{name} {bits:.3f}" for name, bits in yardsticks.items())
