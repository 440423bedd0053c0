"""Models of vectors: any architecture of the zoo between two linear maps, from the features and to the prediction.

features [B, T, F]  ->  read-in  ->  the model's blocks [B, T, D]  ->  read-out  ->  prediction [B, T]
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class RegressionConfig(PreTrainedConfig):
    """The configuration of a model of the zoo, and the size of its input.

    Args:
        features: F.
        model: The model's own configuration, as a dictionary with its ``model_type``, or as an object.
    """

    model_type = "fla_mesa_regression"

    def __init__(self, features: int = 1, model: dict[str, Any] | PreTrainedConfig | None = None, **kwargs: Any):
        self.features = features
        self.model = model.to_dict() if isinstance(model, PreTrainedConfig) else model or {}
        super().__init__(**kwargs)

    def inner(self) -> PreTrainedConfig:
        """The model's own."""
        settings = dict(self.model)
        return AutoConfig.for_model(settings.pop("model_type"), **settings)


class RegressionModel(PreTrainedModel):
    """Predicts a number at each position from the features up to it. AutoModelForCausalLM finds it, because it reads only the past."""

    config_class = RegressionConfig
    base_model_prefix = "model"
    main_input_name = "features"
    accepts_loss_kwargs = False  # its loss is a mean over the batch

    def __init__(self, config: RegressionConfig):
        super().__init__(config)
        self.model = AutoModelForCausalLM.from_config(
            config.inner()
        ).base_model  # not every family is known to AutoModel
        width = self.model.get_input_embeddings().weight.shape[1]
        self.model.set_input_embeddings(nn.Linear(config.features, width))  # in place of the table of tokens
        self.read_out = nn.Linear(width, 1)
        self._no_split_modules = self.model._no_split_modules
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Of the read-out; the rest is the model's own."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    def forward(self, features: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        """Predictions ``[B, T]`` as ``logits`` from features ``[B, T, F]``; with labels ``[B, T]``, also their mean squared error."""
        read = self.model.get_input_embeddings()(features)
        hidden = self.model(inputs_embeds=read, use_cache=False, return_dict=True, **kwargs).last_hidden_state
        predicted = self.read_out(hidden)[..., 0]
        loss = None if labels is None else F.mse_loss(predicted.float(), labels.float())
        return CausalLMOutput(loss=loss, logits=predicted)  # pyright: ignore[reportArgumentType] (a FloatTensor to transformers)


AutoConfig.register(RegressionConfig.model_type, RegressionConfig, exist_ok=True)
AutoModelForCausalLM.register(RegressionConfig, RegressionModel, exist_ok=True)
