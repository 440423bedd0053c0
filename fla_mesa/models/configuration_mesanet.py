"""Configuration of the MesaNet family."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

from fla.models.configuration_utils import parse_attention_config
from fla.models.mesa_net.configuration_mesa_net import MesaNetConfig as FlaMesaNetConfig
from transformers.configuration_utils import PreTrainedConfig

from fla_mesa.models.settings_table import (
    COUNT,
    FLAG,
    PAIR_OF_SHARES,
    POSITIVE,
    SHARE,
    Rule,
    check,
    one_of,
    setting,
)
from fla_mesa.ops.backends import BACKENDS

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

# Settings that came with the paper's initialisation, with the values of what was trained before them, by this package or by fla.
BEFORE_PAPER_START = {
    "use_v_conv": False,
    "scale_embeddings": False,
    "rescale_residual": False,
    "decay_embeddings": True,
    "lambda_init": 1.0,
    "train_lambda": True,
}


class MesaNetConfig(PreTrainedConfig):
    """Configuration of :class:`MesaNetModel` and :class:`MesaNetForCausalLM`; each setting is a line below.

    The defaults are the 440M model of von Oswald et al., arXiv 2506.05233, appendix E and G. A directory saved by fla's ``mesa_net``
    is read with fla's values instead: no gamma cap, no soft cap, its MLP rule, untied embeddings, its initialisation, no convolution of
    values (and a tolerance of 1e-6, as fla takes all of its steps). One that this package saved before a setting existed is read with
    the value it was trained with.

    Other keys are those of transformers' ``PreTrainedConfig``; the usual names ``num_attention_heads``, ``rms_norm_eps`` and
    ``final_logit_softcapping`` stand for ``num_heads``, ``norm_eps`` and ``logit_soft_cap``.

    Raises:
        ValueError: A value is out of range, or settings contradict each other.
        TypeError: A key is unknown. (A file that transformers saved may hold attributes that its user added: those are kept.)
    """

    model_type = "mesanet"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own form)
    attribute_map: ClassVar[dict[str, str]] = {
        "num_attention_heads": "num_heads",
        "rms_norm_eps": "norm_eps",
        "final_logit_softcapping": "logit_soft_cap",
    }

    # Sizes
    vocab_size: int = setting(50257, COUNT, "Size of the vocabulary.")
    hidden_size: int = setting(1024, COUNT, "Width D of the residual stream.")
    num_hidden_layers: int = setting(28, COUNT, "Blocks, N.")
    num_heads: int = setting(8, COUNT, "Heads of the token mixer, H.")
    head_dim: int = setting(
        128,
        Rule("an integer from 1 to 256", lambda value: COUNT.holds(value) and value <= 256),
        "Size of keys and values of a head.",
    )
    hidden_ratio: int | None = setting(
        None, COUNT.or_none(), "fla's rule for the MLP: width hidden_ratio * 2/3 * D rounded up to 256. None for the paper's, 3 D."
    )  # fmt: skip
    intermediate_size: int | None = setting(None, COUNT.or_none(), "Width of the MLP if it is none of these two.")
    max_position_embeddings: int = setting(
        2048, COUNT, "Length that the model is meant for; attention layers of a hybrid size their tables by it."
    )

    # The token mixer
    attn_mode: str = setting("chunk", one_of(["chunk"]), "Only 'chunk'; there for fla's configurations.")
    use_output_gate: bool = setting(False, FLAG, "Whether the mixer's output is gated.")
    use_short_conv: bool = setting(True, FLAG, "Whether q and k pass a causal convolution.")
    use_v_conv: bool = setting(True, FLAG, "Whether v passes a causal convolution, then SiLU.")
    conv_size: int = setting(4, COUNT, "Width of these convolutions.")
    conv_bias: bool = setting(False, FLAG, "Whether they have a bias.")
    gamma_init: Sequence[float] = setting(
        (0.5, 0.5), PAIR_OF_SHARES, "Forget gates of the first and the last head at the start; those between are spread evenly in their "
        "logits. The paper does not say how they start; the default is fla's. With (0.5, 0.98) recall is learnt several times sooner.",
    )  # fmt: skip
    gamma_cap: float | None = setting(0.9975, SHARE.or_none(), "Cap on the forget gate where beta is 1; None for none.")
    lambda_lower_bound: float = setting(0.25, POSITIVE, "Lower bound of lamb.")
    lambda_init: float = setting(1.0, POSITIVE, "Where lamb starts; above its lower bound.")
    train_lambda: bool = setting(True, FLAG, "Whether lamb is learnt; otherwise it stays where it starts.")
    max_cg_step_training: int = setting(30, COUNT, "Most conjugate-gradient steps over sequences.")
    max_cg_step_decoding: int = setting(30, COUNT, "Most steps per decoded token.")
    cg_tolerance: float | None = setting(
        None, POSITIVE.or_none(),
        "Relative residual at which a solve stops; None for what the back end does: 1e-4, or all steps on fla's kernels.",
    )  # fmt: skip
    backend: str | None = setting(
        None, one_of(BACKENDS).or_none(), "Back end of the op: None for the one that suits the device, 'pytorch' for any."
    )  # fmt: skip
    attn: Any = setting(
        None, None, "fla's settings of softmax-attention layers in a hybrid, such as {'layers': [1], 'num_heads': 8}."
    )

    # The rest of the block and of the model
    hidden_act: str = setting(
        "swish", one_of(["swish", "powlu"]), "Activation of the MLP: 'swish', or 'powlu' of fla's."
    )
    norm_eps: float = setting(1e-6, POSITIVE, "Epsilon of every RMSNorm.")
    logit_soft_cap: float | None = setting(
        30.0, POSITIVE.or_none(), "Logits become cap * tanh(logits / cap); None for none."
    )
    tie_word_embeddings: bool = setting(True, FLAG, "Whether the output projection is the embedding.")
    pad_token_id: int | None = setting(None, None, "As in transformers.")
    bos_token_id: int | None = setting(50256, None, "As in transformers.")
    eos_token_id: int | list[int] | None = setting(50256, None, "As in transformers.")
    use_cache: bool = setting(True, FLAG, "Whether to return states when not training.")

    # Initialisation (appendix E.1 and G.2) and what decays
    initializer_range: float | None = setting(
        None, POSITIVE.or_none(), "Standard deviation of all initial weights; None for fan-in: 1 / sqrt(a weight's inputs), each its own."
    )  # fmt: skip
    conv_init_scale: float = setting(
        1 / 3, POSITIVE, "Variance of the convolutions' initial weights, times their width: 1 for fan-in to the letter, as all others; the "
        "default is PyTorch's own start of a convolution (docs/log.md). initializer_range stands for it, too.",
    )  # fmt: skip
    scale_embeddings: bool = setting(
        True, FLAG, "Whether input embeddings are multiplied by sqrt(D), so that the residual stream starts at variance 1."
    )  # fmt: skip
    rescale_residual: bool = setting(
        True, FLAG, "Whether what projects back to the residual stream starts with 2 / N of that variance."
    )
    decay_embeddings: bool = setting(False, FLAG, "Whether weight decay applies to the embedding.")

    # Kernels
    fuse_norm: bool = setting(True, FLAG, "Use fla's fused norm.")
    fuse_swiglu: bool = setting(True, FLAG, "Use fla's fused SwiGLU.")
    fuse_cross_entropy: bool = setting(True, FLAG, "Use fla's fused cross-entropy.")
    fuse_linear_cross_entropy: bool = setting(
        False, FLAG, "Use fla's cross-entropy fused with the output projection; needs fuse_cross_entropy=False."
    )
    use_l2warp: bool = setting(False, FLAG, "RWKV's penalty on the largest logit.")

    def __setattr__(self, name: str, value: Any) -> None:
        name = self.attribute_map.get(name, name)
        check(type(self), name, value)
        if name == "attn":
            value = parse_attention_config(value, num_hidden_layers=self.num_hidden_layers)
        super().__setattr__(name, list(value) if isinstance(value, tuple) else value)

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_names(kwargs)
        for usual, ours in self.attribute_map.items():
            if usual in kwargs:
                setattr(self, ours, kwargs.pop(usual))
        super().__post_init__(**kwargs)
        self._check_together()
        if self.intermediate_size is None and self.hidden_ratio is None:
            self.intermediate_size = 3 * self.hidden_size

    @classmethod
    def _check_names(cls, keys: Any) -> None:
        unknown = sorted(set(keys) - _FROM_TRANSFORMERS - set(cls.attribute_map))
        if unknown:
            own = sorted(field.name for field in dataclasses.fields(cls) if field.metadata)
            near = difflib.get_close_matches(unknown[0], own, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise TypeError(f"unknown keys of {cls.__name__}: {', '.join(unknown)}.{hint} Its own are {', '.join(own)}")

    def _check_together(self) -> None:
        """Checks settings that depend on each other."""
        if self.hidden_ratio is not None and self.intermediate_size is not None:
            raise ValueError(f"hidden_ratio must be None if intermediate_size is given; got {self.hidden_ratio!r}")
        if self.fuse_cross_entropy and self.fuse_linear_cross_entropy:
            raise ValueError("fuse_linear_cross_entropy must be False unless fuse_cross_entropy is; got True")
        default = type(self).__dataclass_fields__["conv_init_scale"].default
        if self.initializer_range is not None and self.conv_init_scale != default:
            raise ValueError(
                f"conv_init_scale must be {default!r} where initializer_range = {self.initializer_range!r} stands for all weights; "
                f"got {self.conv_init_scale!r}"
            )
        for name in () if self._convolves() else ("conv_size", "conv_bias", "conv_init_scale"):
            default, value = type(self).__dataclass_fields__[name].default, getattr(self, name)
            if value != default:
                raise ValueError(
                    f"{name} has no effect where no layer has a convolution: it must be {default!r}; got {value!r}"
                )
        if self.lambda_init <= self.lambda_lower_bound:
            raise ValueError(
                f"lambda_init must be above lambda_lower_bound = {self.lambda_lower_bound!r}; got {self.lambda_init!r}"
            )

    def _convolves(self) -> bool:
        """Whether any layer has a convolution."""
        return self.use_short_conv or self.use_v_conv

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """As in transformers; also translates fla's ``mesa_net`` configurations."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return (
            _from_fla(config_dict) if config_dict.get("model_type") == FlaMesaNetConfig.model_type else config_dict
        ), kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers, for a dictionary written by hand or read from a file that ``save_pretrained`` wrote.

        In such a file, settings that it does not have yet are what they were when it was written, and attributes that its user added to
        the configuration are kept, with a warning.
        """
        if "transformers_version" not in config_dict:
            return super().from_dict(config_dict, **kwargs)
        known = _FROM_TRANSFORMERS | set(cls.attribute_map) | {field.name for field in dataclasses.fields(cls)}
        added = {name: value for name, value in config_dict.items() if name not in known}
        saved = {name: value for name, value in config_dict.items() if name in known}
        if "scale_embeddings" not in saved:
            saved = {**BEFORE_PAPER_START, **saved}
        loaded = super().from_dict(saved, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if added:
            warnings.warn(f"no settings of {cls.__name__}, kept as attributes: {', '.join(added)}", stacklevel=2)
            for name, value in added.items():
                setattr(config, name, value)
        return loaded


def _from_fla(config_dict: dict[str, Any]) -> dict[str, Any]:
    """The same model in this family's terms, with fla's defaults for settings missing from its config.json."""
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
    return {**theirs, **BEFORE_PAPER_START, **ours, "architectures": None}
