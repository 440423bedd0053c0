"""Text in a table column, from parquet and JSON files and hub datasets, read with `datasets`."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from fla_mesa.data.holdout import ENOUGH, FRACTION, cut_tail
from fla_mesa.data.packing import Corpus
from fla_mesa.errors import HubUnreachable, UserError, to_reach_hub

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDatasetDict

Rows = TypeVar("Rows")

_BUILDERS = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".json.gz": "json",
    ".jsonl.gz": "json",
    ".json.zst": "json",
    ".jsonl.zst": "json",
}
SUFFIXES = frozenset(_BUILDERS)
_VALIDATION = ("validation", "valid", "val", "dev")
_ROWS_A_READ = 256


def suffix_of(path: Path) -> str:
    """The known suffix of a file name (`.jsonl.gz` is one), or its last suffix."""
    double = "".join(path.suffixes[-2:]).lower()
    return double if double in SUFFIXES else path.suffix.lower()


@dataclass(frozen=True)
class _Column:
    """The texts of one column, read from disk on demand."""

    rows: "Dataset"
    name: str

    def __iter__(self) -> Iterator[str]:
        for batch in self.rows.select_columns([self.name]).iter(batch_size=_ROWS_A_READ):
            yield from batch[self.name]  # pyright: ignore[reportArgumentType, reportCallIssue]

    def __len__(self) -> int:
        return len(self.rows)

    def corpus(self) -> Corpus:
        return Corpus(self, fingerprint=f"{self.rows._fingerprint} {self.name}")


@dataclass(frozen=True)
class Table:
    """A text column, and the same column of the validation split if there is one."""

    train: _Column
    validation: _Column | None

    def for_training(self) -> Corpus:
        """The training split, with nothing held out."""
        return self.train.corpus()

    def for_validation(self) -> Corpus:
        """The validation split, or everything."""
        return (self.validation or self.train).corpus()

    def split(self) -> tuple[Corpus, Corpus, str]:
        """Training part, validation part, and how they were split."""
        if self.validation is not None:
            return self.train.corpus(), self.validation.corpus(), "the data's own validation split"
        rows, name, count = self.train.rows, self.train.name, len(self.train)
        if count >= ENOUGH:
            cut = count - max(1, round(count * FRACTION))
            train, tail = _Column(rows.select(range(cut)), name), _Column(rows.select(range(cut, count)), name)
            return train.corpus(), tail.corpus(), f"the last {count - cut} of {count} rows"
        parts = [cut_tail(text) for text in self.train if text]
        return Corpus([head for head, _ in parts]), Corpus([tail for _, tail in parts]), "the last 5 % of each row"


def columns_of_text(features: Mapping[str, object]) -> list[str]:
    """The columns of strings."""
    return [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]


def text_column(strings: Sequence[str], wanted: str | None, where: str) -> str:
    """Name of the text column to read: `wanted`, else `text`, else the only one.

    Raises:
        UserError: There is no such column, or several could be meant.
    """
    if wanted is not None:
        if wanted not in strings:
            has = ", ".join(strings) or "none"
            raise UserError(f"text_column: {where} has no text column {wanted!r}; it has {has}")
        return wanted
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        found = f"{len(strings)} ({', '.join(strings)})" if strings else "none"
        raise UserError(f"text_column: {where} has no column `text`, and {found} to use instead: pass --text_column")
    return strings[0]


def training_and_validation(splits: Mapping[str, Rows], where: str) -> tuple[Rows, Rows | None]:
    """The training split and, if there is one, the validation split.

    Raises:
        UserError: There is no training split.
    """
    train = splits["train"] if "train" in splits else next(iter(splits.values())) if len(splits) == 1 else None
    if train is None:
        raise UserError(f"data: {where} has no split `train`; it has {', '.join(map(str, splits))}")
    return train, next((splits[name] for name in _VALIDATION if name in splits), None)


def _table(splits: "DatasetDict", column: str | None, where: str) -> Table:
    train, validation = training_and_validation(cast("dict[str, Dataset]", splits), where)
    if not len(train):
        raise UserError(f"data: {where} is empty")
    name = text_column(columns_of_text(train.features), column, where)
    return Table(_Column(train, name), _Column(validation, name) if validation else None)


def load(builder: str, where: str, **options) -> "DatasetDict | IterableDatasetDict":
    """`datasets.load_dataset` with errors of one line.

    Raises:
        UserError: The data cannot be read; the message names it.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(builder, **options)  # pyright: ignore[reportReturnType] (no split: all of them)
    except (ValueError, OSError, DatasetsError) as error:
        reason = error.__cause__ or error
        line = str(reason).strip().split("\n")[0]
        raise UserError(f"{where}: cannot be read: {type(reason).__name__}: {line[:300]}") from error


def _check(path: Path, whole: bool) -> None:
    """Checks that a file exists, is not empty, is complete and, if `whole`, is UTF-8. Raises UserError."""
    try:
        if not path.stat().st_size:
            raise UserError(f"{path}: the file is empty")
        if suffix_of(path) == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                rows = pyarrow.parquet.ParquetFile(path).metadata.num_rows
            except pyarrow.ArrowException as error:
                raise UserError(f"{path}: not a complete parquet file: {error}") from None
            if not rows:
                raise UserError(f"{path}: the file has no rows")
        elif whole and suffix_of(path) in (".json", ".jsonl"):
            _check_utf8(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _check_utf8(path: Path) -> None:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                bad = line[error.start]
                raise UserError(f"{path}: not UTF-8 text: byte {bad:#04x} at offset {offset + error.start}") from None
            offset += len(line)


def _split_of(name: str) -> str:
    """The split in a file's path, as on the hub: `data/validation-00000-of-00002.parquet`; `train` if there is none."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    if words.intersection(_VALIDATION):
        return "validation"
    return "test" if words.intersection(("test", "testing")) else "train"


def sort_files(root: Path, files: list[Path], *, whole: bool = True) -> tuple[str, dict[str, list[str]]]:
    """The `datasets` builder for the parquet or JSON files below `root`, and the files by split.

    Files whose names say `validation` or `test` are those splits.

    Args:
        root: A folder.
        files: In or below it, of kinds in SUFFIXES.
        whole: Whether JSON files are read from start to end to find bytes that are no UTF-8.

    Raises:
        UserError: Kinds are mixed, or a file is at fault, which is named.
    """
    kinds = {_BUILDERS[suffix_of(file)] for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"data: {root} holds both parquet and JSON files: name files of one kind, or a folder that has only one"
        )
    by_split: dict[str, list[str]] = {}
    for file in sorted(files):
        _check(file, whole)
        split = _split_of(file.relative_to(root).as_posix()) if len(files) > 1 else "train"
        by_split.setdefault(split, []).append(str(file))
    if len(by_split) > 1:
        by_split.pop("test", None)  # kept for the end, as on the hub
    return kinds.pop(), by_split


def read_files(root: Path, files: list[Path], column: str | None) -> Table:
    """Parquet or JSON files below `root`.

    Raises:
        UserError: A file is wrong; the message names it.
    """
    builder, by_split = sort_files(root, files)
    where = str(files[0] if len(files) == 1 else root)
    return _table(cast("DatasetDict", load(builder, where, data_files=by_split)), column, where)


def read_hub(name: str, config: str | None, column: str | None) -> Table:
    """A hub dataset by name.

    Raises:
        UserError: It is unavailable, for example offline.
    """
    return _table(cast("DatasetDict", load_hub(name, config)), column, name)


def load_hub(name: str, config: str | None, **options) -> "DatasetDict | IterableDatasetDict":
    """The splits of a hub dataset.

    Raises:
        HubUnreachable: There is no network; the message says what to do.
        UserError: It cannot be loaded for another reason.
    """
    try:
        return load(name, name, name=config, **options)
    except UserError as error:
        what = f"data: {name!r} is no source of this package and no file or folder here, and the Hugging Face hub could not give it"
        if not isinstance(error.__cause__, ConnectionError):
            raise UserError(f"{what} as a data set of that name: {error}") from error
        raise HubUnreachable(
            f"{what}, because it could not be reached ({error.__cause__}): {to_reach_hub()}"
            + ("" if options.get("streaming") else ", once, after which HF_HOME keeps the data")
            + "; or copy its parquet or JSON files here and name their folder in --data"
        ) from error
