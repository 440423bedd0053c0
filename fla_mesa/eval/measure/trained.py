"""A finished run: what it recorded, and its model and data as they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fla_mesa.data import DataRequest, load_data, regression, synthetic
from fla_mesa.eval.measure.quality import Rows
from fla_mesa.json_files import Unreadable, read_json
from fla_mesa.models import zoo  # noqa: F401 (registers every family of the zoo with transformers)
from fla_mesa.train.progress import no_bars
from fla_mesa.train.recipe import evenly
from fla_mesa.train.run_folder import METRICS_FILE
from fla_mesa.train.stream import requested

Record = dict[str, Any]  # of metrics.json
Value = float | dict[str, float] | list[float] | None  # of a figure; None where it does not apply


@dataclass(frozen=True)
class Metrics:
    """What `fla-mesa train` left in metrics.json, as far as it is used here: see :func:`fla_mesa.train.metrics.collect`."""

    loss: float
    accuracy: float | None
    bits_per_byte: float | None
    tokens_per_second: float | None
    parameters: int
    parameters_without_embeddings: int
    seq_len: int
    steps: int
    history: dict[str, list[list[float]]] = field(repr=False)
    data: Record = field(repr=False)
    settings: Record = field(repr=False)
    everything: Record = field(repr=False)

    @property
    def solver(self) -> Record:
        """What the solves of Mesa layers spent; runs of version 0.1 did not say."""
        return self.everything.get("solver") or {}

    @classmethod
    def read(cls, folder: Path) -> Metrics:
        """Those of a run.

        Raises:
            FileNotFoundError: It is not finished.
            Unreadable: The file is not whole, or is not of this program.
        """
        found = read_json(folder / METRICS_FILE)
        names = set(cls.__dataclass_fields__) - {"everything"}
        if missing := names - found.keys():
            raise Unreadable(f"{folder / METRICS_FILE} is not complete: it lacks {', '.join(sorted(missing))}")
        return cls(**{name: found[name] for name in names}, everything=found)


def device() -> torch.device:
    """The device on which models are measured."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


@dataclass
class Trained:
    """A run that `fla-mesa train` has finished.

    Attributes:
        folder: It.
        metrics: What it recorded.
        tokens: Validation tokens to take the loss by position on.
        extrapolation: Up to how many times the training length it is measured.
        measured: What has been measured of it, by the name of the figure.
    """

    folder: Path
    metrics: Metrics
    tokens: int
    extrapolation: int = 4
    measured: dict[str, Value] = field(default_factory=dict)
    _blocks: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    def load(self) -> PreTrainedModel:
        """Loads the model, ready to be evaluated."""
        with no_bars():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.folder)
        model.to(device())  # pyright: ignore[reportArgumentType] (transformers' own typing)
        return model.eval()

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, loaded once."""
        return self.load()

    def precision(self) -> AbstractContextManager:
        """A context with the precision of the training."""
        bf16 = self.metrics.settings["bf16"]
        return torch.autocast(device().type, dtype=torch.bfloat16) if bf16 else nullcontext()

    @property
    def train_batch(self) -> int:
        return self.metrics.settings["per_device_train_batch_size"]

    @property
    def eval_batch(self) -> int:
        return self.metrics.settings["per_device_eval_batch_size"]

    @property
    def is_text(self) -> bool:
        """Whether it learnt text, of which longer blocks can be cut."""
        return self.metrics.bits_per_byte is not None

    @cached_property
    def regression(self) -> regression.Regression | None:
        """The task of vectors that it learnt; None if it reads tokens."""
        spec = self.metrics.data.get(regression.NAME)
        return None if spec is None else regression.Regression.parse(spec)

    def validation(self, times: int = 1, tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Blocks of the validation data, evenly spread over it: ids and labels, int64 ``[N, times * T]``.

        Args:
            times: Length of a block, in those of the training; 1 for what is no text.
            tokens: At most so many; by default ``self.tokens``.
        """
        key = (times, self.tokens if tokens is None else tokens)
        if key not in self._blocks:
            self._blocks[key] = self._read(*key)
        return self._blocks[key]

    def _read(self, times: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        of, length = self.metrics.settings, times * self.metrics.seq_len
        request = DataRequest(
            spec=of["data"],
            validation=of["validation"],
            config=of["data_config"],
            text_column=of["text_column"],
            tokenizer=of["tokenizer"],
            seq_len=length if self.is_text else of["seq_len"],
            predict_end_of_text=of.get("predict_end_of_text", False),
            streaming=requested(of),
            say=lambda _: None,
        )
        blocks = evenly(load_data(request).validation, max(1, tokens // length))
        rows = [blocks[i] for i in range(len(blocks))]  # pyright: ignore[reportArgumentType] (of known length)
        ids, labels = (torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in ("input_ids", "labels"))
        return ids, labels

    def test(self) -> Sequence[tuple[synthetic.Task, Rows]] | None:
        """The test split of the synthetic suite that it learnt; None if it learnt something else."""
        spec = self.metrics.data.get("suite")
        return None if spec is None else synthetic.get(spec).generate("test")
