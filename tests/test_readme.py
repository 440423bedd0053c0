"""Every command and every piece of Python in the README runs."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fla_mesa import cli
from fla_mesa.train.worker import Worker

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
# What makes a command short; later flags win.
_STEPS = "--max_steps 4 --per_device_train_batch_size 2 --save_steps 2 --eval_strategy no"
_TEXT = (
    f"{_STEPS} --data text.txt --seq_len 32 --eval_tokens 256 "
    "--config_overrides hidden_size=16,num_hidden_layers=1,num_heads=1,intermediate_size=16"
)
_SUITE = f"{_STEPS} --suite mqar:vocab_size=64,length=32,num_pairs=2,train=32,validation=8,test=8 --size 2x64"
_SWEEP = "--context_lengths 32,64 --sequences 1 --repeats 1 --steps 1 --tolerances 1e-2"
SHORT = {
    "train": _TEXT,
    "compare": f"{_TEXT} --seeds 1 --lr 3e-3",
    "compare --suite": f"{_SUITE} --models mesanet",
    "eval": "--limit 1 --batch_size 1 --metadata length=300 samples=2 text=text.txt --device cpu",
    "sweep": f"{_SWEEP} --text text.txt --needles 1",
    "sweep --suite": _SWEEP,
    "inspect": "--text text.txt --length 32 --sequences 1",
}


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


def run(words: list[str], folder: Path) -> str | None:
    """What a program said that failed."""
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    return f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}" if done.returncode else None


def in_folder(argv: list[str]) -> int:
    """`fla-mesa` with argv[1:] in the folder argv[0]; what a child process runs."""
    os.chdir(argv[0])
    return cli.main(argv[1:])


def shortened(line: str) -> list[str]:
    """The words of a `fla-mesa` or `torchrun` command, with flags that make it short."""
    words = shlex.split(line)
    name = next(word for word in words if word in cli.COMMANDS)
    of_a_suite = name in ("compare", "sweep") and "mqar" in line
    return [*words, *shlex.split(SHORT[f"{name} --suite" if of_a_suite else name])]


def test_commands_then_python(folder, monkeypatch):
    """In the order of the text: the Python loads what the commands trained. One that fails does not hide the others."""
    commands = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("pip ")]
    assert any(line.startswith("fla-mesa train") for line in commands)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for block in blocks("python"):  # those that are files
        if name := re.match(r"# (\w+\.py)\n", block):
            (folder / name[1]).write_text(block)
    worker, failures = Worker(), {}
    for number, line in enumerate(commands):
        program, *words = shortened(line)
        if program == "torchrun":
            failures[line] = run([sys.executable, "-m", "torch.distributed.run", *words], folder)
        elif number == 0:
            failures[line] = run([sys.executable, "-m", "fla_mesa", *words], folder)
        else:  # forked from a process that has imported the package, which takes as long as some of the commands
            assert program == "fla-mesa", f"a command that this test does not know: {line}"
            code, _ = worker.run(functools.partial(in_folder, [str(folder), *words]), folder / "log")
            failures[line] = (folder / "log").read_text()[-6000:] if code else None
    python = blocks("python")
    assert len(python) >= 4
    failures["python"] = run([sys.executable, "-c", "\n".join(python)], folder)
    assert not any(failures.values()), "\n\n".join(f"{line}\n{said}" for line, said in failures.items() if said)


def test_make_targets_exist():
    for target in re.findall(r"make (\w+)", TEXT):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_everything_it_points_to_exists():
    for path in re.findall(r"\]\((?!http)([^)]+)\)", TEXT) + re.findall(
        r"`((?:fla_mesa|benchmarks|docs|tests)/[\w/.]*)`", TEXT
    ):
        assert (ROOT / path).exists(), path
