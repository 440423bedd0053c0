"""Commands and Python of README and of the pages in docs/, run as they stand but for flags that make them short.

```sh     each line is a command; one that a page repeats, or another page has, runs once in a folder
```python the blocks of a page run together, in its order; one whose first line is a file's name is that file
"""

import functools
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fla_mesa import cli
from fla_mesa.train.worker import Worker
from tests.project import ROOT

# What makes a command short; later flags win.
_STEPS = "--max_steps 4 --per_device_train_batch_size 2 --save_steps 2 --eval_strategy no"
_TEXT = (
    f"{_STEPS} --data text.txt --seq_len 32 --eval_tokens 256 "
    "--config_overrides hidden_size=16,num_hidden_layers=1,num_heads=1,intermediate_size=16"
)
_SUITE = f"{_STEPS} --suite mqar:vocab_size=64,length=32,num_pairs=2,train=32,validation=8,test=8 --size 2x64"
_SWEEP = "--context_lengths 32,64 --sequences 1 --repeats 1 --steps 1 --tolerances 1e-2"
SHORT = {
    "train": f"{_TEXT} --bf16 false",
    # What a plug-in brings is small already, but for a rule, on text.
    "train --plugin": f"{_STEPS} --size 1x32",
    "train --plugin my_rule.py": _TEXT,
    "train --streaming": f"{_STEPS} --size 1x32 --seq_len 32 --held_out_tokens 256",
    "compare": f"{_TEXT} --seeds 1 --lr 3e-3",
    "compare --suite": f"{_SUITE} --models mesanet",
    "eval": "--limit 1 --batch_size 1 --metadata length=300 samples=2 text=text.txt --device cpu",
    "sweep": f"{_SWEEP} --text text.txt --needles 1",
    "sweep --suite": _SWEEP,
    "inspect": "--text text.txt --length 32 --sequences 1",
    "export": "",
    "page": "",
    "doctor": "--backends pytorch --heads 1 --sizes 16 --dtypes float32 --tokens 64 --length 32 --repeats 1 --minutes 1",
}


@dataclass(frozen=True)
class Page:
    """A Markdown file."""

    path: Path

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```", self.path.read_text(), re.DOTALL | re.MULTILINE)

    @property
    def commands(self) -> list[str]:
        """All but those that install."""
        lines = [line.strip() for block in self.blocks("sh") for line in block.splitlines()]
        return [line for line in lines if line and not line.startswith("pip ")]

    @property
    def files(self) -> dict[str, str]:
        """Python that is to be saved: by the name in its first line."""
        named = [(re.match(r'(?:# |"""torchrun .* )(\w+\.py)', block), block) for block in self.blocks("python")]
        return {match[1]: block for match, block in named if match}

    @property
    def python(self) -> str:
        """The other Python, but what needs a package that is not here."""
        blocks = [block for block in self.blocks("python") if block not in self.files.values()]
        return "\n".join(block for block in blocks if not missing(block))


def missing(block: str) -> list[str]:
    """Packages that a block says it needs, in a first line `# needs: trl peft`, and that are not installed."""
    needed = re.match(r"# needs: (.*)\n", block)
    return [name for name in needed[1].split() if importlib.util.find_spec(name) is None] if needed else []


def kind(line: str) -> str:
    """Which of SHORT a command takes."""
    words = shlex.split(line)
    name = next(word for word in words if word in cli.COMMANDS)
    plugin = words[words.index("--plugin") + 1] if "--plugin" in words else ""
    if name in ("compare", "sweep") and "mqar" in line:
        return f"{name} --suite"
    if "--streaming" in words:
        return f"{name} --streaming"
    return next((key for key in (f"{name} --plugin {plugin}", f"{name} --plugin") if plugin and key in SHORT), name)


def shortened(line: str) -> list[str]:
    """The words of a command, with flags that make it short: two processes, four steps."""
    line = re.sub(r"(--nproc_per_node) \d+", r"\1 2", re.sub(r"checkpoint-\d+", "checkpoint-4", line))
    words = shlex.split(line)
    return words if words[-1].endswith(".py") else [*words, *shlex.split(SHORT[kind(line)])]


def output(line: str) -> str | None:
    """The folder that a command leaves."""
    found = re.search(r"--output_dir (\S+)", line)
    return found[1] if found else None


class Runner:
    """Runs commands and Python in a folder, in processes forked from one that has imported the package.

    Args:
        folder: Where; a small text is put there.
        pages: Where to look for a command whose results another one reads.
    """

    def __init__(self, folder: Path, pages: Iterable[Page]):
        self.folder, self._worker = folder, Worker()
        lines = [line for page in pages for line in page.commands]
        self._makes = {output(line): line for line in reversed(lines)}  # the first of those that leave a folder
        self._said: dict[str, str | None] = {}
        functions = [f"def f{n}(x):\n    return x + {n}\n\n" for n in range(400)]
        for name in ("text.txt", "my_text.txt"):
            (folder / name).write_text("".join(functions))
        (folder / "benchmarks").symlink_to(ROOT / "benchmarks")  # stored results
        (folder / "books").mkdir()
        lines = "".join(json.dumps({"text": text}) + "\n" for text in functions)
        (folder / "books" / "part-0.jsonl").write_text(lines)

    def page(self, page: Page) -> dict[str, str]:
        """What failed of a page, and what it said; one that fails does not hide the others."""
        for name, text in page.files.items():
            (self.folder / name).write_text(text)
        said = {line: self.command(line) for line in page.commands}
        if page.python:
            said["python"] = self._forked(functools.partial(_python, self.folder, page.python))
        return {what: words for what, words in said.items() if words is not None}

    def command(self, line: str) -> str | None:
        """What a command said that failed, after those whose results it reads."""
        if line not in self._said:
            for word in re.findall(r"(?<!--output_dir )\bruns/\S+", line):
                maker = next(
                    (self._makes[made] for made in self._makes if made and f"{word}/".startswith(f"{made}/")), None
                )
                if maker not in (None, line) and not (self.folder / word).exists():
                    self.command(maker)
            self._said[line] = self._run(line)
        return self._said[line]

    def _run(self, line: str) -> str | None:
        program, *words = shortened(line)
        if program == "torchrun":
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "torch.distributed.run", *words]
            done = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=600
            )
            return f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}" if done.returncode else None
        assert program == "fla-mesa", f"a command that this test does not know: {line}"
        return self._forked(functools.partial(_command, self.folder, words))

    def _forked(self, job: functools.partial) -> str | None:
        log = self.folder / "log"
        code, _ = self._worker.run(job, log)
        return log.read_text()[-6000:] if code else None


def _command(folder: Path, words: list[str]) -> int:
    """`fla-mesa` in a folder; what a child process runs."""
    os.chdir(folder)
    return cli.main(words)


def _python(folder: Path, code: str) -> int:
    os.chdir(folder)
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    return 0
