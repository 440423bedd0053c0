"""The MesaNet family on fla's base classes: pre-norm blocks of a token mixer and a gated MLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
from fla.models.configuration_utils import get_attention_spec
from fla.models.generation_utils import FLAUnsupportedCacheGenerationMixin
from fla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from fla.models.utils import Cache
from fla.modules import GatedMLP, RMSNorm
from transformers.modeling_layers import GradientCheckpointingLayer

from fla_mesa.layers import Attention, MesaNet
from fla_mesa.layers.initialization import fan_in
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.losses import capped, make_criterion, soft_cap

# Marks the linear maps whose output is added to the residual stream.
TO_RESIDUAL = "projects_to_residual"


def _norm(config: MesaNetConfig) -> nn.Module:
    return (RMSNorm if config.fuse_norm else nn.RMSNorm)(config.hidden_size, eps=config.norm_eps)


def mixer(config: MesaNetConfig, layer_idx: int) -> nn.Module:
    """A Mesa layer, or softmax attention where ``config.attn`` says so."""
    spec = get_attention_spec(config.attn, layer_idx=layer_idx)
    if spec is not None:
        return Attention(
            hidden_size=config.hidden_size,
            num_heads=spec["num_heads"],
            num_kv_heads=spec.get("num_kv_heads"),
            qkv_bias=spec.get("qkv_bias", False),
            window_size=spec.get("window_size"),
            rope_theta=spec.get("rope_theta", 10000.0),
            max_position_embeddings=config.max_position_embeddings,
            layer_idx=layer_idx,
        )
    return MesaNet.from_config(config, layer_idx)


class MesaNetBlock(GradientCheckpointingLayer):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    mixer = staticmethod(mixer)

    def __init__(self, config: MesaNetConfig, layer_idx: int):
        super().__init__()
        self.attn_norm = _norm(config)
        self.attn = self.mixer(config, layer_idx)
        self.mlp_norm = _norm(config)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            hidden_ratio=config.hidden_ratio,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            fuse_swiglu=config.fuse_swiglu,
        )
        for projection in (self.attn.o_proj, self.mlp.down_proj):
            setattr(projection, TO_RESIDUAL, True)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        attnres_states: None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, Cache | None, None]:
        """``[B, T, D] -> [B, T, D]``; the other elements of the tuple are what fla's model loop expects of a block."""
        mixed, attentions, past_key_values = self.attn(
            self.attn_norm(hidden_states),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            **kwargs,
        )
        hidden_states = hidden_states + mixed
        hidden_states = hidden_states + self.mlp(self.mlp_norm(hidden_states), **kwargs)
        return hidden_states, attentions, past_key_values, attnres_states


class MesaNetPreTrainedModel(FLAPreTrainedModel):
    """What the models of the family share."""

    config_class = MesaNetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MesaNetBlock"]  # noqa: RUF012 (transformers' own form)
    _supports_cache_class = True

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            ValueError: ``use_v_conv`` is set for a checkpoint whose values are not convolved, which would then be, at random.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = sorted(name for name in info["missing_keys"] if "v_conv1d" in name)
        if missing:
            raise ValueError(
                f"use_v_conv must be False for this checkpoint, which has no convolution of values (it lacks {missing[0]}); got True"
            )
        for module in model.modules():  # loading made its parameters anew
            if isinstance(module, MesaNet):
                module.lambda_params.requires_grad_(module.train_lambda)
        return (model, info) if output_loading_info else model

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of variance 1 / fan-in, or 2 / N of that where they project back to the residual stream of N blocks."""
        config = self.config
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=config.initializer_range or config.hidden_size**-0.5)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            std = config.initializer_range or fan_in(module) ** -0.5
            if config.rescale_residual and getattr(module, TO_RESIDUAL, False):
                std *= (2 / config.num_hidden_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]


class ScaledEmbedding(nn.Embedding):
    """An embedding whose output is multiplied by a number, ``scale``; its weight may be shared with the output projection, which is not."""

    def __init__(self, rows: int, width: int, padding_idx: int | None, *, scale: float, decays: bool):
        super().__init__(rows, width, padding_idx)
        self.scale = scale
        self.no_weight_decay = () if decays else ("weight",)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[...]`` token ids to ``[..., D]``."""
        return super().forward(input) * self.scale


class MesaNetModel(MesaNetPreTrainedModel, FLAModel):
    """Embedding, blocks and final norm. ``forward`` is fla's: input_ids ``[B, T]`` to hidden states ``[B, T, D]`` and a cache."""

    block = MesaNetBlock
    use_attnres = False  # read by fla's forward

    def __init__(self, config: MesaNetConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embeddings = ScaledEmbedding(
            config.vocab_size,
            config.hidden_size,
            self.padding_idx,
            scale=config.hidden_size**0.5 if config.scale_embeddings else 1.0,
            decays=config.decay_embeddings,
        )
        self.layers = nn.ModuleList([self.block(config, layer_idx) for layer_idx in range(config.num_hidden_layers)])
        self.norm = _norm(config)
        self.gradient_checkpointing = False
        self.post_init()


class MesaNetForCausalLM(MesaNetPreTrainedModel, FLAForCausalLM, FLAUnsupportedCacheGenerationMixin):
    """MesaNet as a language model. ``forward`` is fla's: input_ids and labels ``[B, T]`` to logits ``[B, T, vocabulary]`` and a loss.

    The loss is the mean over targets that are not -100, or, as transformers' Trainer asks, their sum over ``num_items_in_batch``.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012 (transformers' own form)
    decoder = MesaNetModel

    def __init__(self, config: MesaNetConfig):
        super().__init__(config)
        self.model = self.decoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.criterion = make_criterion(config)
        self.post_init()

    def _compute_logits_and_loss(self, *args, **kwargs):
        criterion = capped(self.criterion, self.config)
        if criterion is not self.criterion:
            self.criterion = criterion
        # It caps the raw logits itself, where fla's kernels fuse that; who reads the logits wants them capped too.
        loss, logits = super()._compute_logits_and_loss(*args, **kwargs)
        return loss, None if logits is None else soft_cap(logits, self.config.logit_soft_cap)
