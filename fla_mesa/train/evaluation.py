"""Validation figures from per-row sums, so that batch size, padding and number of processes do not change them."""

import math

import torch
import torch.nn.functional as F
from transformers import EvalPrediction

from fla_mesa.data.packing import IGNORED

_LOGITS_A_STEP = 1 << 26  # float32 copies of logits: 256 MiB at most


def row_sums(logits: torch.Tensor, labels: torch.Tensor, end_of_text: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Contribution of each row to the figures.

    Args:
        logits: `[B, T, V]`; position t predicts label t + 1.
        labels: int64 `[B, T]`, -100 for what is not to be predicted.
        end_of_text: the token that stands for no text, if there is one.

    Returns:
        float32 `[B, 3]`: nats, tokens predicted right, predicted tokens that stand for text; int64 `[B]`: predicted tokens.
    """
    targets = labels[:, 1:]
    rows = max(1, _LOGITS_A_STEP // (logits.shape[1] * logits.shape[2]))
    nats, right = [], []
    for row in range(0, len(logits), rows):
        scores, target = logits[row : row + rows, :-1].float(), targets[row : row + rows]
        nats.append(F.cross_entropy(scores.transpose(1, 2), target, ignore_index=IGNORED, reduction="none").sum(1))
        right.append((scores.argmax(-1) == target).sum(1))
    predicted = targets != IGNORED
    text = predicted & (targets != end_of_text) if end_of_text is not None else predicted
    return torch.stack([torch.cat(nats), torch.cat(right).float(), text.sum(1).float()], dim=1), predicted.sum(1)


def squared_errors(predictions: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for models that predict numbers.

    Args:
        predictions: `[B, T]`.
        labels: `[B, T]`, each the target of its own position.

    Returns:
        float32 `[B, 3]`: squared errors, and zeros; int64 `[B]`: numbers predicted.
    """
    sums = (predictions.float() - labels.float()).square().sum(1)
    zeros = torch.zeros_like(sums)
    return torch.stack([sums, zeros, zeros], dim=1), torch.full_like(sums, labels.shape[1], dtype=torch.long)


class ValidationFigures:
    """The Trainer's `compute_metrics`: loss (nats per token), accuracy, and bits per byte if tokens stand for text.

    Without tokens the loss is the mean squared error, and there is no accuracy.

    Bits per byte counts the bits of every predicted token, end-of-text tokens too, and divides by the UTF-8 bytes that
    the predicted tokens of text stand for: exact for bytes; for other tokenizers by the data's mean bytes a token.
    """

    def __init__(self, bytes_per_token: float | None, of_tokens: bool = True):
        self.bytes_per_token, self.of_tokens = bytes_per_token, of_tokens
        self._totals = torch.zeros(4, dtype=torch.float64)

    def __call__(self, rows: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        sums = torch.as_tensor(rows.predictions, dtype=torch.float64).sum(0)
        predicted = torch.as_tensor(rows.label_ids, dtype=torch.float64).sum()
        self._totals += torch.cat([sums, predicted[None]])
        if not compute_result:  # --batch_eval_metrics: more to come
            return {}
        nats, right, text, tokens = self._totals.tolist()
        self._totals.zero_()
        figures = {"loss": nats / tokens} | ({"accuracy": right / tokens} if self.of_tokens else {})
        if self.bytes_per_token is not None:
            figures["bits_per_byte"] = nats / math.log(2) / (text * self.bytes_per_token)
        return figures
