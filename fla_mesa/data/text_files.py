"""Text files, one document each, read and checked in full before anything else happens."""

import os
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fla_mesa.data.holdout import ENOUGH, cut_tail, held_out_names
from fla_mesa.data.packing import Corpus
from fla_mesa.errors import UserError

SUFFIXES = frozenset(
    "." + kind
    for kind in (
        *("txt", "text", "md", "rst", "tex", "html", "htm", "xml", "toml", "yaml", "yml"),
        *("py", "pyi", "c", "h", "cc", "cpp", "hpp", "cu", "rs", "go", "js", "ts", "java", "sh"),
    )
)
_NOT_LIBRARY = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "pydoc_data"})


def walk(root: Path, leave_out: frozenset[str] = frozenset()) -> list[Path]:
    """Every file below `root` except hidden ones and those in folders named in `leave_out`."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in leave_out and not name.startswith(".")]
        found += [Path(folder) / name for name in files if not name.startswith(".")]
    return found


def decode(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: The file is missing, unreadable, or not UTF-8 (the message gives the offset of the first bad byte).
    """
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise UserError(f"{path}: not UTF-8 text: byte {bad:#04x} at offset {error.start}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class TextFiles:
    """Text by file name; empty files are skipped."""

    texts: dict[str, str]

    def for_training(self) -> Corpus:
        """All files, with nothing held out."""
        return Corpus(list(self.texts.values()))

    for_validation = for_training

    def split(self) -> tuple[Corpus, Corpus, str]:
        """Training part, validation part, and how they were split."""
        if len(self.texts) >= ENOUGH:
            held_out = held_out_names(list(self.texts))
            train = [text for name, text in self.texts.items() if name not in held_out]
            validation = [text for name, text in self.texts.items() if name in held_out]
            how = f"{len(held_out)} of {len(self.texts)} files, by a hash of their path"
            return Corpus(train), Corpus(validation), how
        parts = [cut_tail(text) for text in self.texts.values()]
        return Corpus([head for head, _ in parts]), Corpus([tail for _, tail in parts]), "the last 5 % of each file"


def _read(root: Path, files: list[Path]) -> TextFiles:
    texts = {file.relative_to(root).as_posix(): decode(file) for file in files}
    texts = {name: text for name, text in texts.items() if text}
    if not texts:
        raise UserError(f"{root}: no text: all {len(files)} text files in it are empty")
    return TextFiles(texts)


def read_file(path: Path) -> TextFiles:
    """One text file.

    Raises:
        UserError: It is missing, empty or not UTF-8.
    """
    text = decode(path)
    if not text:
        raise UserError(f"{path}: the file is empty")
    return TextFiles({path.name: text})


def read_folder(root: Path, files: list[Path]) -> TextFiles:
    """The given files of a folder, sorted by path."""
    return _read(root, sorted(files, key=lambda file: file.relative_to(root).as_posix()))


def standard_library(root: Path | None = None, say: Callable[[str], None] = print) -> TextFiles:
    """The source code of this Python's standard library: text that is available on every machine with Python.

    Its tests are left out (some are no UTF-8 on purpose), and so is pydoc's copy of the language manual, one file of
    prose. What remains differs from one version of Python to the next, so a run prints and stores its size and hash.

    Raises:
        UserError: This Python does not include it.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in walk(root, _NOT_LIBRARY) if file.suffix == ".py"]
    if not files:
        raise UserError(f"{root}: this Python does not include the source of its standard library: pass --data")
    library = read_folder(root, files)
    say(f"standard library of Python {sysconfig.get_python_version()}: {len(library.texts):,} files in {root}")
    return library
