"""What a model of in-context regression gets wrong, beside the least that can be expected.

With y* the expectation of y given all that the model may know, the error of any prediction f parts in two,

    E (f - y)² = E (y* - y)² + E (f - y*)²,

the optimum's own and an excess, which is 0 for no other f. Both are measured on the same sequences; the term between them, whose
expectation is 0, is left out, so that what is said of a model does not hang on the noise in y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from transformers import PreTrainedModel

from fla_mesa.data.regression import Regression, Sequences, features


@dataclass(frozen=True)
class Errors:
    """Means over the test sequences, float64 ``[T]``: the optimum's squared error, and the model's from the optimum."""

    optimal: np.ndarray
    excess: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """The model's squared error."""
        return self.optimal + self.excess


@cache
def _test(task: Regression) -> Sequences:
    return task.split("test")


def optimal(task: Regression) -> np.ndarray:
    """The optimum's squared error by position, float64 ``[T]``."""
    test = _test(task).arrays
    return ((test["optimum"] - test["y"]) ** 2).mean(0)


@torch.no_grad()
def measure(model: PreTrainedModel, task: Regression, batch_size: int) -> Errors:
    """The errors of a model, ready to be evaluated, on the task's test split."""
    test = _test(task).arrays
    read = torch.from_numpy(features(test["x"], test["y"])).float()
    parts = [model(features=part.to(model.device)).logits.double().cpu() for part in read.split(batch_size)]
    return Errors(optimal(task), ((torch.cat(parts).numpy() - test["optimum"]) ** 2).mean(0))
