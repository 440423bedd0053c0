"""A model and a text so small that a whole run takes a second or two."""

import random
from pathlib import Path

import pytest

from fla_mesa.train.command import main

TINY = "num_hidden_layers=1,hidden_size=32,num_heads=2,head_dim=16,intermediate_size=64"


def make_flags(text: Path | str, output_dir: Path, *more: object) -> list[str]:
    settings = {
        "data": text,
        "output_dir": output_dir,
        "config_overrides": TINY,
        "seq_len": 32,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "eval_steps": 6,
        "save_steps": 4,
        "logging_steps": 2,
    }
    given = [str(word) for word in more]
    kept = {name: value for name, value in settings.items() if f"--{name}" not in given}
    return [str(word) for name, value in kept.items() for word in (f"--{name}", value)] + given


@pytest.fixture(scope="session")
def flags():
    """A function of data, output_dir and more flags: a command line of `fla-mesa train`, 12 steps with a checkpoint every 4."""
    return make_flags


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """20 files of words; an epoch is 9 steps of 4 blocks of 32 bytes, so runs of 12 steps cross into the second."""
    folder = tmp_path_factory.mktemp("text")
    random_words = random.Random(0)
    words = ["mesa", "plateau", "canyon", "river", "of", "the", "a", "and"]
    for index in range(20):
        line = " ".join(random_words.choice(words) for _ in range(11))
        (folder / f"{index:02}.txt").write_text(f"{line}\n")
    return folder


@pytest.fixture(scope="session")
def undisturbed(text, tmp_path_factory) -> Path:
    """The folder of a run that nothing has disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main(make_flags(text, folder)) == 0
    return folder
