"""A suite says which tasks, and how many sequences of each, make its splits; built from a spec such as mqar:length=64,num_pairs=4."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fla_mesa.data.synthetic.checks import check_choice, check_int
from fla_mesa.data.synthetic.registry import REGISTRY, Segments
from fla_mesa.data.synthetic.task import IGNORE, SPLITS, Rows, Task
from fla_mesa.errors import UserError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Suite:
    """Named splits, each a list of (task, number of sequences); most suites have one task, MQAR's default has several.

    `spec` is the text that makes this suite again: get(suite.spec) == suite.
    """

    name: str
    spec: str
    seed: int
    train: Segments
    validation: Segments
    test: Segments

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task of every split."""
        return tuple(task for split in SPLITS for task, _ in self.segments(split))

    @property
    def vocab_size(self) -> int:
        """Number of token ids a model needs."""
        return max(task.symbols for task in self.tasks)

    @property
    def max_length(self) -> int:
        """Width of the widest sequence."""
        return max(task.columns for task in self.tasks)

    @property
    def is_text(self) -> bool:
        """Whether the ids are bytes of text, so that a checkpoint needs the byte tokenizer instead of `number_tokenizer`."""
        return any(task.is_text for task in self.tasks)

    def segments(self, split: str) -> Segments:
        """The (task, number of sequences) of a split."""
        check_choice(self.name, "split", split, SPLITS)
        return getattr(self, split)

    def generate(self, split: str) -> list[tuple[Task, Rows]]:
        """The arrays of a split, task by task, in the order of `dataset`."""
        return [(task, task.generate(split, n, self.seed)) for task, n in self.segments(split)]

    def dataset(self, split: str, width: int | None = None) -> datasets.Dataset:
        """The split as a datasets.Dataset with columns input_ids and labels, ready for transformers' Trainer.

        Args:
            split: 'train', 'validation' or 'test'.
            width: Pad every row on the right to this length, with id 0 and label -100. By default rows have their own lengths, which
                differ where the suite mixes lengths.
        """
        import datasets
        import pyarrow as pa

        tables = []
        for _, rows in self.generate(split):
            columns = {}
            for key, filler in (("input_ids", 0), ("labels", IGNORE)):
                array = rows[key] if width is None else _pad(rows[key], width, filler)
                n, length = array.shape
                offsets = pa.array(np.arange(n + 1, dtype=np.int64) * length)
                columns[key] = pa.LargeListArray.from_arrays(offsets, pa.array(array.reshape(-1)))
            tables.append(pa.table(columns))
        return datasets.Dataset(pa.concat_tables(tables))

    def metric(
        self, split: str, predictions: np.ndarray, data: list[tuple[Task, Rows]] | None = None
    ) -> dict[str, float]:
        """Score predictions for a whole split.

        Args:
            split: 'train', 'validation' or 'test'.
            predictions: integer [n, >= L], rows in the order of `dataset(split)`; predictions[:, t] is the greedy next
                token after reading position t. Columns beyond a row's length are ignored.
            data: what generate(split) returned, to spare a second generation.

        Returns:
            {"accuracy", "accuracy_stderr"} over all sequences, and "accuracy/<setting>" for each task where the split
            has several.

        Raises:
            ValueError: `predictions` has the wrong shape.
        """
        data = self.generate(split) if data is None else data
        predictions = np.asarray(predictions)
        expected = sum(len(rows["labels"]) for _, rows in data)
        if predictions.ndim != 2 or len(predictions) != expected:
            raise ValueError(
                f"{self.name}: predictions must be [{expected}, L] for split {split!r}, got shape {predictions.shape}"
            )
        scores, result, start = [], {}, 0
        for task, rows in data:
            n, width = rows["labels"].shape
            scores.append(task.scores(predictions[start : start + n, :width], rows))
            start += n
            if len(data) > 1:
                result[f"accuracy/{task.setting}"] = float(scores[-1].mean())
        pooled = np.concatenate(scores)
        error = float(pooled.std(ddof=1) / np.sqrt(len(pooled))) if len(pooled) > 1 else float("nan")
        return {"accuracy": float(pooled.mean()), "accuracy_stderr": error, **result}


def _pad(array: np.ndarray, width: int, filler: int) -> np.ndarray:
    if width < array.shape[1]:
        raise ValueError(f"width must be at least the length of the sequences, {array.shape[1]}; got {width}")
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=filler)


def suites() -> list[str]:
    """Names that `get` accepts."""
    return list(REGISTRY)


def get(spec: str) -> Suite:
    """A suite by name, with the paper's values or changed ones: 'mqar', or 'mqar:vocab_size=256,length=64,train=20000'.

    Args:
        spec: NAME or NAME:key=value,key=value. Keys are the fields of the task, the sizes `train`, `validation`,
            `test`, and `seed`. Without task fields 'mqar' is the paper's mixture of lengths; with any, a single setting.

    Raises:
        UserError: Unknown suite or key, or a value that the task does not allow.
    """
    name, _, settings = spec.partition(":")
    name = name.replace("_", "-")
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"unknown synthetic suite {name!r}.{hint} Available: {', '.join(REGISTRY)}")
    entry = REGISTRY[name]
    fields = {field.name for field in dataclasses.fields(entry.task)} - set(entry.fixed)
    sizes, parameters, seed = dict(zip(SPLITS, entry.sizes, strict=True)), {}, 0
    given = parse_settings(name, settings)
    for key, value in given.items():
        if key in sizes:
            check_int(name, key, value, 1)
            sizes[key] = value
        elif key == "seed":
            check_int(name, key, value, 0)
            seed = value
        elif key in fields:
            parameters[key] = value
        else:
            allowed = ", ".join([*sorted(fields), *SPLITS, "seed"])
            raise UserError(f"{name}: unknown setting {key!r}; allowed: {allowed}")
    canonical = ",".join(f"{key}={_text(value)}" for key, value in given.items())
    canonical = f"{name}:{canonical}" if canonical else name
    if entry.mixture is not None and not parameters:
        if any(key in given for key in SPLITS):
            raise UserError(
                f"{name}: the sizes {', '.join(SPLITS)} need a single setting; give its fields as well, "
                f"such as {name}:length=64,num_pairs=4,train=20000"
            )
        return Suite(name, canonical, seed, *entry.mixture())
    task = entry.task(**entry.fixed, **parameters)
    return Suite(name, canonical, seed, *(((task, sizes[split]),) for split in SPLITS))


def merge_specs(base: str, over: str) -> str | None:
    """The settings of `over` on top of those of `base`, without base's sizes; None for different suites."""
    base_name, over_name = (spec.partition(":")[0].replace("_", "-") for spec in (base, over))
    if base_name != over_name:
        return None
    kept = {key: value for key, value in parse_settings(base_name, base.partition(":")[2]).items() if key not in SPLITS}
    merged = kept | parse_settings(over_name, over.partition(":")[2])
    settings = ",".join(f"{key}={_text(value)}" for key, value in merged.items())
    return get(f"{over_name}:{settings}").spec


def parse_settings(name: str, settings: str) -> dict[str, Any]:
    """Parses 'a=1,b=2.5,c=(4, 12),d=all' into a dictionary; a comma inside parentheses does not separate settings.

    Raises:
        UserError: A part is not key=value, or a key is repeated.
    """
    parts, depth, current = [], 0, ""
    for character in settings:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    parsed: dict[str, Any] = {}
    for part in [*parts, current] if settings else []:
        key, equals, value = part.strip().partition("=")
        if not equals or not key or not value or key in parsed:
            raise UserError(f"{name}: settings must be key=value, each key once, got {part.strip()!r}")
        try:
            parsed[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            parsed[key] = value
    return parsed


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")
