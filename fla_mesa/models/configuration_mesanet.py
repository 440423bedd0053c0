"""Configuration of the MesaNet family."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from fla.models.configuration_utils import AttentionConfig, AttentionConfigBase
from fla.models.mesa_net.configuration_mesa_net import MesaNetConfig as FlaMesaNetConfig
from transformers.configuration_utils import PreTrainedConfig

# What transformers itself writes to a config.json or passes on, beyond the fields of its base class.
_FROM_TRANSFORMERS = {f.name for f in dataclasses.fields(PreTrainedConfig)} | {
    "_attn_implementation",
    "_commit_hash",
    "_name_or_path",
    "_experts_implementation",
    "_output_attentions",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} must be {allowed}; got {value!r}")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class MesaNetConfig(AttentionConfigBase, PreTrainedConfig):
    """Configuration of :class:`MesaNetModel` and :class:`MesaNetForCausalLM`.

    The defaults are the 440M model of von Oswald et al., arXiv 2506.05233, appendix E and G. A directory saved by fla's ``mesa_net``
    is read with fla's defaults instead: no gamma cap, no soft cap, its MLP rule, untied embeddings (and a tolerance of 1e-6, as fla
    takes all of its steps).

    Args:
        attn_mode: Only ``"chunk"``.
        hidden_size: Width D of the residual stream.
        num_hidden_layers: Blocks.
        num_heads: Heads of the token mixer.
        head_dim: Size of keys and values of a head.
        use_output_gate: Whether the mixer's output is gated.
        use_short_conv: Whether q and k pass a causal convolution.
        conv_size: Its width.
        conv_bias: Whether it has a bias.
        lambda_lower_bound: Lower bound of lamb, in (0, 1).
        gamma_cap: Cap on the forget gate where beta is 1, in (0, 1]; None for none.
        gamma_init: Forget gates of the first and the last head at the start, two numbers in (0, 1); those between are spread evenly in
            their logits. The paper does not say how they start; the default is fla's. With (0.5, 0.98) recall is learnt several times
            sooner, and text a little later.
        max_cg_step_training: Most conjugate-gradient steps over sequences.
        max_cg_step_decoding: Most steps per decoded token.
        cg_tolerance: Relative residual at which a solve stops.
        hidden_ratio: fla's rule for the MLP: width ``hidden_ratio * 2/3 * D`` rounded up to 256. None for the paper's, ``3 D``.
        intermediate_size: Width of the MLP if it is none of these two.
        hidden_act: ``"swish"``, or ``"powlu"`` of fla's MLP.
        logit_soft_cap: Logits become ``cap * tanh(logits / cap)``; None for none.
        vocab_size: Size of the vocabulary.
        max_position_embeddings: Length that the model is meant for; attention layers of a hybrid size their tables by it.
        norm_eps: Epsilon of every RMSNorm.
        attn: fla's settings of softmax-attention layers in a hybrid, such as ``{"layers": [1], "num_heads": 8}``.
        use_cache: Whether to return states when not training.
        initializer_range: Standard deviation of initial weights.
        fuse_norm, fuse_swiglu, fuse_cross_entropy, fuse_linear_cross_entropy: Use fla's fused modules.
        use_l2warp: RWKV's penalty on the largest logit.
        pad_token_id, bos_token_id, eos_token_id, tie_word_embeddings: As in transformers.
        kwargs: What ``PreTrainedConfig`` knows. Any other key is an error.

    Raises:
        ValueError: A value is out of range.
        TypeError: A key is unknown.
    """

    model_type = "mesanet"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        attn_mode: str = "chunk",
        hidden_size: int = 1024,
        num_hidden_layers: int = 28,
        num_heads: int = 8,
        head_dim: int = 128,
        use_output_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        lambda_lower_bound: float = 0.25,
        gamma_cap: float | None = 0.9975,
        gamma_init: Sequence[float] = (0.5, 0.5),
        max_cg_step_training: int = 30,
        max_cg_step_decoding: int = 30,
        cg_tolerance: float = 1e-4,
        hidden_ratio: int | None = None,
        intermediate_size: int | None = None,
        hidden_act: str = "swish",
        logit_soft_cap: float | None = 30.0,
        vocab_size: int = 50257,
        max_position_embeddings: int = 2048,
        norm_eps: float = 1e-6,
        attn: AttentionConfig = None,
        use_cache: bool = True,
        initializer_range: float = 0.02,
        fuse_norm: bool = True,
        fuse_swiglu: bool = True,
        fuse_cross_entropy: bool = True,
        fuse_linear_cross_entropy: bool = False,
        use_l2warp: bool = False,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 50256,
        eos_token_id: int | list[int] | None = 50256,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ):
        unknown = sorted(set(kwargs) - _FROM_TRANSFORMERS)
        if unknown:
            own = ", ".join(
                sorted(name for name in MesaNetConfig.__init__.__annotations__ if name not in ("kwargs", "return"))
            )
            raise TypeError(f"unknown keys of MesaNetConfig: {', '.join(unknown)}; its own are {own}")
        for name, value in (
            ("hidden_size", hidden_size),
            ("num_hidden_layers", num_hidden_layers),
            ("num_heads", num_heads),
            ("head_dim", head_dim),
            ("conv_size", conv_size),
            ("max_cg_step_training", max_cg_step_training),
            ("max_cg_step_decoding", max_cg_step_decoding),
            ("vocab_size", vocab_size),
            ("max_position_embeddings", max_position_embeddings),
        ):
            _require(_is_count(value), name, value, "an integer >= 1")
        for name, value in (("hidden_ratio", hidden_ratio), ("intermediate_size", intermediate_size)):
            _require(value is None or _is_count(value), name, value, "an integer >= 1 or None")
        _require(
            hidden_ratio is None or intermediate_size is None,
            "hidden_ratio",
            hidden_ratio,
            "None if intermediate_size is given",
        )
        _require(head_dim <= 256, "head_dim", head_dim, "at most 256")
        _require(attn_mode == "chunk", "attn_mode", attn_mode, "'chunk'")
        _require(hidden_act in ("swish", "powlu"), "hidden_act", hidden_act, "'swish' or 'powlu'")
        _require(
            _is_number(lambda_lower_bound) and 0 < lambda_lower_bound < 1,
            "lambda_lower_bound",
            lambda_lower_bound,
            "a number in (0, 1), as lamb starts at 1",
        )
        _require(
            gamma_cap is None or (_is_number(gamma_cap) and 0 < gamma_cap <= 1),
            "gamma_cap",
            gamma_cap,
            "a number in (0, 1] or None",
        )
        _require(
            isinstance(gamma_init, (tuple, list))
            and len(gamma_init) == 2
            and all(_is_number(gamma) and 0 < gamma < 1 for gamma in gamma_init),
            "gamma_init",
            gamma_init,
            "two numbers in (0, 1)",
        )
        _require(
            logit_soft_cap is None or (_is_number(logit_soft_cap) and logit_soft_cap > 0),
            "logit_soft_cap",
            logit_soft_cap,
            "a number > 0 or None",
        )
        for name, value in (
            ("cg_tolerance", cg_tolerance),
            ("norm_eps", norm_eps),
            ("initializer_range", initializer_range),
        ):
            _require(_is_number(value) and value > 0, name, value, "a number > 0")
        for name, value in (
            ("use_output_gate", use_output_gate),
            ("use_short_conv", use_short_conv),
            ("conv_bias", conv_bias),
            ("fuse_norm", fuse_norm),
            ("fuse_swiglu", fuse_swiglu),
            ("fuse_cross_entropy", fuse_cross_entropy),
            ("fuse_linear_cross_entropy", fuse_linear_cross_entropy),
            ("use_l2warp", use_l2warp),
        ):
            _require(isinstance(value, bool), name, value, "True or False")
        _require(
            not (fuse_cross_entropy and fuse_linear_cross_entropy),
            "fuse_linear_cross_entropy",
            fuse_linear_cross_entropy,
            "False unless fuse_cross_entropy is",
        )

        self.attn_mode = attn_mode
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.use_output_gate = use_output_gate
        self.use_short_conv = use_short_conv
        self.conv_size = conv_size
        self.conv_bias = conv_bias
        self.lambda_lower_bound = lambda_lower_bound
        self.gamma_cap = gamma_cap
        self.gamma_init = list(gamma_init)
        self.max_cg_step_training = max_cg_step_training
        self.max_cg_step_decoding = max_cg_step_decoding
        self.cg_tolerance = cg_tolerance
        self.hidden_ratio = hidden_ratio
        self.intermediate_size = (
            3 * hidden_size if hidden_ratio is None and intermediate_size is None else intermediate_size
        )
        self.hidden_act = hidden_act
        self.logit_soft_cap = logit_soft_cap
        self.vocab_size = vocab_size
        self.max_position_embeddings = max_position_embeddings
        self.norm_eps = norm_eps
        self.attn = attn
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.fuse_norm = fuse_norm
        self.fuse_swiglu = fuse_swiglu
        self.fuse_cross_entropy = fuse_cross_entropy
        self.fuse_linear_cross_entropy = fuse_linear_cross_entropy
        self.use_l2warp = use_l2warp
        kwargs |= {"pad_token_id": pad_token_id, "bos_token_id": bos_token_id, "eos_token_id": eos_token_id}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)  # pyright: ignore[reportCallIssue]

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; what fla's ``mesa_net`` saved is translated."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (
            _from_fla(config_dict) if config_dict.get("model_type") == FlaMesaNetConfig.model_type else config_dict
        ), kwargs


def _from_fla(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The same model in this family's terms, with fla's defaults for what its config.json leaves out."""
    theirs = FlaMesaNetConfig(**config_dict).to_dict()
    if theirs.pop("attnres_block_size") is not None:
        raise ValueError(
            f"attnres_block_size must be None to load a mesa_net checkpoint here; got {config_dict['attnres_block_size']!r}"
        )
    if theirs["intermediate_size"] is not None:
        theirs["hidden_ratio"] = None  # fla ignores it then
    theirs["use_short_conv"] = True  # fla ignores it: its layer always has the convolutions
    # fla takes all of its steps, whatever the residual: a tolerance near float32's own error gives what it means to compute.
    ours = {"model_type": MesaNetConfig.model_type, "gamma_cap": None, "logit_soft_cap": None, "cg_tolerance": 1e-6}
    return {**theirs, **ours, "architectures": None}
