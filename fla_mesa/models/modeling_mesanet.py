"""The MesaNet family on fla's base classes: pre-norm blocks of a token mixer and a gated MLP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from fla.models.configuration_utils import get_attention_spec
from fla.models.generation_utils import FLAUnsupportedCacheGenerationMixin
from fla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from fla.models.utils import Cache
from fla.modules import RMSNorm
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from typing_extensions import Unpack

from fla_mesa.layers import Attention, MesaNet
from fla_mesa.layers.initialization import fan_in, reset_bias
from fla_mesa.layers.layout import Layout, SequenceKeywords, describes_sequences, find_layout
from fla_mesa.layers.mlp import GatedMLP
from fla_mesa.layers.recurrent import refuse_attentions
from fla_mesa.layers.shards import refuse_shard
from fla_mesa.models.card import write_card
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.losses import capped, check_loss_of_shards, loss_of_shards, make_criterion, soft_cap

# Marks the linear maps whose output is added to the residual stream.
TO_RESIDUAL = "projects_to_residual"


def _norm(config: MesaNetConfig) -> nn.Module:
    return (RMSNorm if config.fuse_norm else nn.RMSNorm)(config.hidden_size, eps=config.norm_eps)


def mixer(config: MesaNetConfig, layer_idx: int) -> nn.Module:
    """A Mesa layer, or softmax attention in the layers listed in ``config.attn``."""
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
        layout: Layout,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> torch.Tensor:
        """``[B, T, D] -> [B, T, D]``; the cache, if there is one, is updated in place if `use_cache`."""
        mixed, _, _ = self.attn(
            self.attn_norm(hidden_states), layout=layout, past_key_values=past_key_values, use_cache=use_cache
        )
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class MesaNetPreTrainedModel(FLAPreTrainedModel):
    """Base class of the family's models."""

    config_class = MesaNetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MesaNetBlock"]  # noqa: RUF012 (transformers' own form)
    _supports_cache_class = True

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            ValueError: Tensor parallelism is asked for; or ``use_v_conv`` is set for a checkpoint whose values are not convolved, which
                would then be, at random.
        """
        refuse_tensor_parallelism(kwargs)
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

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; also writes a model card if the folder has none."""
        saved = super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            write_card(save_directory, self)
        return saved

    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights of variance 1 / fan-in.

        2 / N of that where they project back to the residual stream of N blocks, and ``conv_init_scale`` of it in convolutions.
        """
        config = self.config
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=config.initializer_range or config.hidden_size**-0.5)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            scale = config.conv_init_scale if isinstance(module, nn.Conv1d) else 1.0
            std = config.initializer_range or (scale / fan_in(module)) ** 0.5
            if config.rescale_residual and getattr(module, TO_RESIDUAL, False):
                std *= (2 / config.num_hidden_layers) ** 0.5
            nn.init.normal_(module.weight, std=std)
            reset_bias(module)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()  # pyright: ignore[reportCallIssue]


class ScaledEmbedding(nn.Embedding):
    """An embedding whose output is multiplied by ``scale``; the weight, which the output projection may share, is not."""

    def __init__(self, rows: int, width: int, padding_idx: int | None, *, scale: float, decays: bool):
        super().__init__(rows, width, padding_idx)
        self.scale = scale
        self.no_weight_decay = () if decays else ("weight",)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``[...]`` token ids to ``[..., D]``."""
        return super().forward(input) * self.scale


class MesaNetModel(MesaNetPreTrainedModel, FLAModel):
    """Embedding, blocks and final norm."""

    block = MesaNetBlock

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

    @describes_sequences()
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | Sequence[dict[str, Any]] | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **sequences: Unpack[SequenceKeywords],
    ) -> tuple | BaseModelOutputWithPast:
        """Hidden states of a batch.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, >= T]``, 1 for tokens and 0 for padding on any side; its last T columns are those of the input.
            inputs_embeds: ``[B, T, D]``, in place of `input_ids`.
            past_key_values: fla's cache. A call of any length goes on from what it holds.
            use_cache: Whether to fill it. None for the configuration's, but not in training, nor for packed sequences.
            output_attentions: Only False: there are none to give.
            output_hidden_states: Whether to return the input of each block, and the output.
            return_dict: Whether to return an object, or a tuple.
            sequences: What else says which tokens are one sequence: :class:`~fla_mesa.layers.layout.SequenceKeywords`.

        Returns:
            ``last_hidden_state [B, T, D]`` (of no meaning at padding), the cache, and ``hidden_states`` if asked for.

        Raises:
            ValueError: An argument has a wrong shape or value, or contradicts another.
            TypeError: An argument has a wrong type, or its name is unknown.
            NotImplementedError: Called by torch.export.
        """
        if torch.compiler.is_exporting():
            raise NotImplementedError(
                "torch.export does not support this family: its number of solver steps and its sequence "
                "boundaries depend on the data; use torch.compile"
            )
        refuse_attentions(output_attentions or self.config.output_attentions)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "pass either input_ids or inputs_embeds; got " + ("neither" if input_ids is None else "both")
            )
        given = input_ids if inputs_embeds is None else inputs_embeds
        assert given is not None
        if given.ndim != (2 if inputs_embeds is None else 3):
            name, shape = ("input_ids", "[B, T]") if inputs_embeds is None else ("inputs_embeds", "[B, T, D]")
            raise ValueError(f"{name} must have shape {shape}; got {list(given.shape)}")
        layout = find_layout(given.shape[0], given.shape[1], attention_mask, **sequences)
        if layout.cp_context is not None:
            for layer_idx, layer in enumerate(self.layers):  # all of them, before the first one communicates
                refuse_shard(layer.attn, layer_idx, past_key_values, use_cache)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training and not layout.packed
        use_cache = bool(use_cache)
        cache = _cache(past_key_values, use_cache)
        with_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states

        x = self.embeddings(given) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        states = []
        for layer in self.layers:
            if with_states:  # otherwise each may go as soon as the next is there
                states.append(x)
            x = layer(x, layout=layout, past_key_values=cache, use_cache=use_cache)
        x = self.norm(x)
        output = BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=cache,  # pyright: ignore[reportCallIssue] (transformers 5.24 calls it cache, and takes both names)
            hidden_states=(*states, x) if with_states else None,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()


def _cache(given: Cache | Sequence[dict[str, Any]] | None, use_cache: bool) -> Cache | None:
    """The cache for the layers. Raises TypeError for another library's cache."""
    if isinstance(given, Cache) or (given is None and not use_cache):
        return given
    from_states: Any = Cache.from_legacy_cache  # pyright: ignore[reportAttributeAccessIssue] (fla's decorator hides it)
    return from_states(given)


class MesaNetForCausalLM(MesaNetPreTrainedModel, FLAForCausalLM, FLAUnsupportedCacheGenerationMixin):
    """MesaNet as a language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}  # noqa: RUF012 (transformers' own form)
    decoder = MesaNetModel
    accepts_loss_kwargs = True  # the Trainer passes num_items_in_batch

    def __init__(self, config: MesaNetConfig):
        super().__init__(config)
        self.model = self.decoder(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.criterion = make_criterion(config)
        self.post_init()

    @describes_sequences(unlisted=("shift_labels",))  # what has "label" in its name, the Trainer awaits in every batch
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Cache | Sequence[dict[str, Any]] | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor | None = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        **sequences: Unpack[SequenceKeywords],
    ) -> tuple | CausalLMOutputWithPast:
        """Logits, and a loss if there are labels. Beyond :meth:`MesaNetModel.forward`:

        Args:
            labels: ``[B, T]``; the target of a position is the label of the next. -100 is none.
            logits_to_keep: How many of the last positions' logits are wanted, or which; 0 or None for all. The loss takes all.
            num_items_in_batch: What the summed loss is divided by, as the Trainer asks; None for the number of targets. With
                `cp_context` the sum and the number are those of the whole row, so that the loss is the same on every rank; gradients
                of parameters then add up over ranks.
            shift_labels: ``[B, T]``, the target of each position itself; takes the place of `labels`, as in transformers.

        Returns:
            ``loss``, ``logits [B, T, vocabulary]`` (None with a loss that is fused with the projection), the cache and hidden states.

        Raises:
            ValueError: An argument has a wrong shape or value, or contradicts another.
            TypeError: An argument has a wrong type, or its name is unknown.
        """
        cp_context = sequences.get("cp_context")
        if cp_context is not None:
            check_loss_of_shards(labels, self.config.use_l2warp)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **sequences,
        )
        hidden_states = outputs.last_hidden_state
        for name, targets in (("labels", labels), ("shift_labels", shift_labels)):
            if targets is not None and targets.shape != hidden_states.shape[:2]:
                raise ValueError(
                    f"{name} must have the shape of the input, {list(hidden_states.shape[:2])}; got {list(targets.shape)}"
                )
        loss, logits = self._compute_logits_and_loss(
            hidden_states,
            labels=labels,
            shift_labels=shift_labels,
            logits_to_keep=logits_to_keep,
            num_items_in_batch=num_items_in_batch if cp_context is None else 1,  # a shard's loss is a sum
        )
        if loss is not None and cp_context is not None:
            assert shift_labels is not None
            loss = loss_of_shards(loss, shift_labels, num_items_in_batch, cp_context)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,  # pyright: ignore[reportCallIssue]
            hidden_states=outputs.hidden_states,
        )
        return output if (self.config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _compute_logits_and_loss(self, *args, **kwargs):
        criterion = capped(self.criterion, self.config)  # pyright: ignore[reportArgumentType] (transformers' base class)
        if criterion is not self.criterion:
            self.criterion = criterion
        if self.config.fuse_linear_cross_entropy and not isinstance(self.lm_head, nn.Linear):
            raise ValueError(
                "fuse_linear_cross_entropy must be False: it reads only the weight of lm_head and would bypass the module in its place, "
                f"{type(self.lm_head).__name__}; got True"
            )
        # It caps the raw logits itself, where fla's kernels fuse that; who reads the logits wants them capped too.
        loss, logits = super()._compute_logits_and_loss(*args, **kwargs)
        return loss, None if logits is None else soft_cap(logits, self.config.logit_soft_cap)


def refuse_tensor_parallelism(arguments: dict[str, Any]) -> None:
    """Refuses tensor parallelism in the arguments of ``from_pretrained``.

    Raises:
        ValueError: They ask for it.
    """
    config = arguments.get("distributed_config")
    settings = config if isinstance(config, dict) else vars(config) if config is not None else {}
    for name in ("tp_plan", "tp_size"):
        for given in (arguments.get(name), settings.get(name)):
            if given is not None and given != 1:
                raise ValueError(
                    f"{name} must be None: this family has no tensor parallelism, because a head's convolutions, gates and states "
                    f"cannot be split over ranks; use FSDP2 (docs/flame.md); got {given!r}"
                )
