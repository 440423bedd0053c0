"""Every command and every piece of Python in the README runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
# What makes a training command short; later flags win.
SHORT = (
    "--max_steps 4 --seq_len 32 --per_device_train_batch_size 2 --eval_tokens 256 --save_steps 2 --eval_strategy no "
    "--config_overrides hidden_size=16,num_hidden_layers=1,num_heads=1,head_dim=16,intermediate_size=16"
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the README's commands leave things for its Python to find; with a small text in place of the standard library."""
    path = tmp_path_factory.mktemp("readme")
    (path / "text.txt").write_text("".join(f"def f{n}(x):\n    return x + {n}\n\n" for n in range(400)))
    return path


def run(words: list[str], folder: Path) -> None:
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_commands_then_python(folder):
    """In the order of the text: the Python loads what the commands trained."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("pip ")]
    assert any(line.startswith("fla-mesa train") for line in commands)
    for line in commands:
        words = [*shlex.split(line), "--data", "text.txt", *shlex.split(SHORT)]
        if words[1] == "compare":
            words += ["--seeds", "1", "--lr", "3e-3"]  # of all those that the README names
        if words[0] == "fla-mesa":
            words = [sys.executable, "-m", "fla_mesa", *words[1:]]
        else:
            assert words[0] == "torchrun", f"a command that this test does not know: {line}"
            words = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
        run(words, folder)
    python = blocks("python")
    assert len(python) >= 4
    run([sys.executable, "-c", "\n".join(python)], folder)


def test_make_targets_exist():
    for target in re.findall(r"make (\w+)", TEXT):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_everything_it_points_to_exists():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(
        r"`((?:fla_mesa|benchmarks|docs|tests)/[\w/.]*)`", TEXT
    ):
        assert (ROOT / path).exists(), path
