"""Classification and question-answering heads: transformers' generic ones on this package's models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn as nn
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForSequenceClassification,
    GenericForTokenClassification,
)

from fla_mesa.models.modeling_matched import MatchedPreTrainedModel
from fla_mesa.models.modeling_mesanet import MesaNetPreTrainedModel


def _on_whole_sequences(forward: Callable[..., Any]) -> Any:
    """A head's forward that refuses context parallelism, because it would use only one shard of a row."""

    @functools.wraps(forward)
    def refusing(self: nn.Module, *args: Any, cp_context: Any = None, **kwargs: Any) -> Any:
        if cp_context is not None:
            raise ValueError(
                f"cp_context: {type(self).__name__} reads whole sequences; only the language model can be split over ranks"
            )
        return forward(self, *args, **kwargs)

    return refusing


class MesaNetForSequenceClassification(GenericForSequenceClassification, MesaNetPreTrainedModel):
    """One label per sequence, read at the last token that is not ``config.pad_token_id``."""

    forward = _on_whole_sequences(GenericForSequenceClassification.forward)
    accepts_loss_kwargs = False  # its loss is a mean over the batch


class MesaNetForTokenClassification(GenericForTokenClassification, MesaNetPreTrainedModel):
    """One label per token."""

    forward = _on_whole_sequences(GenericForTokenClassification.forward)
    accepts_loss_kwargs = False


class MesaNetForQuestionAnswering(GenericForQuestionAnswering, MesaNetPreTrainedModel):
    """Start and end of an answer."""

    forward = _on_whole_sequences(GenericForQuestionAnswering.forward)
    accepts_loss_kwargs = False

    def get_input_embeddings(self) -> nn.Module:
        """As the model's (the generic head asks for another name of it)."""
        return self.model.get_input_embeddings()  # pyright: ignore[reportCallIssue]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)  # pyright: ignore[reportCallIssue]


class MatchedForSequenceClassification(MatchedPreTrainedModel, MesaNetForSequenceClassification):
    """As MesaNet's."""


class MatchedForTokenClassification(MatchedPreTrainedModel, MesaNetForTokenClassification):
    """As MesaNet's."""


class MatchedForQuestionAnswering(MatchedPreTrainedModel, MesaNetForQuestionAnswering):
    """As MesaNet's."""
