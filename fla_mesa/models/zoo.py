"""The architectures of the comparison by name, and their sizes.

To add an architecture, decorate a function from a :class:`Shape` and the tokens' settings to a configuration, here or in a plug-in:

    @zoo.register("linear_attn")
    def linear_attn(shape, tokens):
        return LinearAttentionConfig(num_heads=shape.num_heads, **zoo.common(shape, tokens))

To add a size, add a line to ``SIZES``; for a small one its numbers are name enough, as in ``2x64`` (:func:`shape`).

At one size all architectures have the same depth, width, rule for the MLP, tokenizer, tied embeddings and scale of initial weights.
Their token mixers have 4 D² parameters, as MesaNet's: where a mixer's values are wider than its keys or it has an output gate, it has
half as many heads. Its state is then as large as that of plain linear attention, which is each of the two that MesaNet keeps. What
cannot be brought to that says so in its note, which reports print.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from fla.models import (
    DeltaNetConfig,
    GatedDeltaNetConfig,
    GLAConfig,
    KDAConfig,
    Mamba2Config,
    RetNetConfig,
    TransformerConfig,
)
from fla.models import MesaNetConfig as FlaMesaNetConfig
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fla_mesa.errors import UserError
from fla_mesa.layers.matched import RULES
from fla_mesa.models.configuration_matched import MatchedConfig
from fla_mesa.models.configuration_mesanet import MesaNetConfig
from fla_mesa.models.xlstm import TiedXLSTMConfig

# How far an architecture's number of parameters may lie from MesaNet's.
TOLERANCE = 0.03


@dataclass(frozen=True)
class Shape:
    """What all architectures of one size share: L, D, H, the key size of a head, and the width of the MLP."""

    num_hidden_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int


def _paper(num_hidden_layers: int, hidden_size: int, num_heads: int, head_dim: int = 128) -> Shape:
    """The MLP is three times as wide as the residual stream."""
    return Shape(num_hidden_layers, hidden_size, num_heads, head_dim, 3 * hidden_size)


def _fla(num_hidden_layers: int, hidden_size: int, num_heads: int, head_dim: int = 128) -> Shape:
    """The MLP is 8/3 times as wide as the residual stream, rounded up to a multiple of 256."""
    return Shape(num_hidden_layers, hidden_size, num_heads, head_dim, 256 * math.ceil(hidden_size * 8 / 3 / 256))


SIZES = {
    # For machines without a GPU.
    "tiny": _paper(4, 128, num_heads=2, head_dim=64),
    "small": _paper(6, 256, num_heads=4, head_dim=64),
    # Appendix G.4 of arXiv 2506.05233.
    "140M": _paper(14, 768, num_heads=6),
    "440M": _paper(28, 1024, num_heads=8),
    "940M": _paper(28, 1536, num_heads=12),
    # The sizes at which fla's own models are trained.
    "340M": _fla(24, 1024, num_heads=8),
    "1.3B": _fla(24, 2048, num_heads=16),
}


def shape(size: str) -> Shape:
    """The shape of a named size or of ``LAYERSxWIDTH`` (MLP three times as wide; heads of 64, or two heads if that gives fewer).

    Raises:
        UserError: There is no such size; the message lists the sizes.
    """
    if size in SIZES:
        return SIZES[size]
    numbers = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", size)
    layers, width = map(int, numbers.groups()) if numbers else (0, 0)
    if width not in (32, 64) and (width == 0 or width % 128):  # an even number of heads, of 16 channels at least
        raise UserError(
            f"unknown size {size!r}; available: {', '.join(sizes())}, or LAYERSxWIDTH such as 2x64, where the width is 32, 64 or a "
            "multiple of 128"
        )
    heads = max(2, width // 64)
    return _paper(layers, width, heads, head_dim=width // heads)


Tokens = dict[str, Any]  # vocab_size, the special ids, max_position_embeddings
Builder = Callable[[Shape, Tokens], PreTrainedConfig]
Decorated = TypeVar("Decorated", bound=Builder)

# Each as fla or transformers ships it. Neither ships Hawk with an MLP of this kind: it is this package's.
RELEASED: dict[str, Builder] = {}
# One parametrisation for all, in which only the recurrence rule differs (arXiv 2506.05233, appendix E.1), by the paper's names. Not in
# the paper: Gated KalmaNet, which is younger, and softmax attention behind the convolutions and norms of the recurrent rules. The
# paper's SWA-4 to SWA-1024 are swa with another window_size.
MATCHED: dict[str, Builder] = {}
MATCHED_PREFIX = "matched-"
PARAMETRIZATIONS = {"released": RELEASED, "matched": MATCHED}
# All of them, those of the matched parametrisation behind its prefix.
ARCHITECTURES: dict[str, Builder] = {}
# In what an architecture is not as the others; reports print it.
NOTES: dict[str, str] = {}


def register(
    name: str, *, parametrization: str = "released", note: str | None = None
) -> Callable[[Decorated], Decorated]:
    """Decorator for a function ``(shape, tokens) -> configuration`` that makes it available to every command by name.

    Args:
        name: What ``--model`` and ``--models`` call it.
        parametrization: ``"released"``, or ``"matched"`` for one of this package's own layer. (A matched rule needs none: see
            :func:`fla_mesa.layers.matched.rule`.)
        note: In what it is not as the others, for reports.

    Raises:
        ValueError: The name is taken, or there is no such parametrisation.
    """

    def add(builder: Decorated) -> Decorated:
        check_parametrization(parametrization)
        full_name = name if parametrization == "released" else MATCHED_PREFIX + name
        if full_name in ARCHITECTURES:
            raise ValueError(f"name: {full_name!r} is already an architecture")
        PARAMETRIZATIONS[parametrization][name] = ARCHITECTURES[full_name] = builder
        if note is not None:
            NOTES[full_name] = note
        return builder

    return add


def check_parametrization(name: str) -> None:
    """Checks the name of a parametrization.

    Raises:
        UserError: There is no such parametrization.
    """
    if name not in PARAMETRIZATIONS:
        raise UserError(f"parametrization must be one of {', '.join(PARAMETRIZATIONS)}; got {name!r}")


def common(shape: Shape, tokens: Tokens) -> dict[str, Any]:
    """Settings that fla's configurations share, under fla's names."""
    return {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "intermediate_size": shape.intermediate_size,
        "tie_word_embeddings": True,
        # Fan-in of the residual stream, for families that have one number for all. fla's 0.02 is that of a width of 2,500: at 128 it
        # costs half a bit per byte in the first 240 steps (docs/log.md).
        "initializer_range": shape.hidden_size**-0.5,
        **tokens,
    }


def _own(shape: Shape, tokens: Tokens) -> dict[str, Any]:
    """Settings that this package's configurations share; they initialize each weight by its own fan-in."""
    return {name: value for name, value in common(shape, tokens).items() if name != "initializer_range"}


@register("mesanet")
def _mesanet(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return MesaNetConfig(num_heads=shape.num_heads, head_dim=shape.head_dim, **_own(shape, tokens))


@register(
    "mesa_net", note="fla's own implementation of MesaNet: its solver, no cap on gamma, no soft cap on the logits"
)
def _mesa_net(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return FlaMesaNetConfig(num_heads=shape.num_heads, head_dim=shape.head_dim, **common(shape, tokens))


@register("delta_net")
def _delta_net(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return DeltaNetConfig(num_heads=shape.num_heads, **common(shape, tokens))


@register("gated_deltanet", note="half as many heads, values twice as wide as keys")
def _gated_deltanet(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    # q, k: D²/2 each; v, output gate, output: D² each.
    return GatedDeltaNetConfig(
        num_heads=shape.num_heads // 2, head_dim=shape.head_dim, expand_v=2.0, **common(shape, tokens)
    )


@register("kda", note="its MLP is narrower by 4/3 of a head, to pay for its low-rank gates")
def _kda(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    # Both of its gates are matrices of rank head_dim, 2 D head_dim each, which the MLP's three of D x width pay for.
    shared = common(shape, tokens)
    shared["intermediate_size"] -= 16 * round(4 * shape.head_dim / 3 / 16)
    return KDAConfig(num_heads=shape.num_heads, head_dim=shape.head_dim, **shared)


@register("gla", note="half as many heads, values twice as wide as keys")
def _gla(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return GLAConfig(num_heads=shape.num_heads // 2, **common(shape, tokens))  # expand_k 1/2, expand_v 1, output gate


@register(
    "mamba2",
    note="it has no MLP: two of its blocks take the place of a mixer and an MLP; its state size is what matches the parameters",
)
def _mamba2(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    # A block has D (3 inner + 2 state + heads) parameters; two of them stand for a mixer and an MLP.
    D, inner = shape.hidden_size, 2 * shape.hidden_size
    heads = max(8, inner // 64)  # a multiple of 8, for the kernel of its convolution
    state = (4 * D + 3 * shape.intermediate_size) / 4 - 3 * inner / 2 - heads / 2
    shared = common(shape, tokens)
    # It has no positions, so no longest sequence, and no MLP.
    del shared["max_position_embeddings"], shared["intermediate_size"]
    shared["num_hidden_layers"] *= 2
    return Mamba2Config(expand=2, head_dim=inner // heads, state_size=min(256, 2 ** round(math.log2(state))), **shared)


@register("retnet", note="half as many heads, values twice as wide as keys")
def _retnet(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return RetNetConfig(num_heads=shape.num_heads // 2, expand_k=0.5, expand_v=1.0, **common(shape, tokens))


@register(
    "xlstm",
    note="half as many heads, values twice as wide as keys; transformers' plain PyTorch code and initial weights",
)
def _xlstm(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    ids = {name: value for name, value in tokens.items() if name != "max_position_embeddings"}
    return TiedXLSTMConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_heads=shape.num_heads // 2,  # keys are half as wide as values
        ffn_proj_factor=shape.intermediate_size / shape.hidden_size,
        # The other modes take no length but multiples of a chunk, and do not generate.
        mode="inference",
        **ids,
    )


def _with_rule(*rules: str) -> Builder:
    """A builder of the matched family; the rules alternate over the layers."""

    def build(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
        return MatchedConfig(rule=rules, num_heads=shape.num_heads, head_dim=shape.head_dim, **_own(shape, tokens))

    return build


register("hawk", note="RG-LRU; the width of its recurrence is what matches the parameters")(_with_rule("rg_lru"))
register("hawk_mesa", note="RG-LRU and Mesa layers in turn")(_with_rule("rg_lru", "mesa"))


@register("transformer")
def _transformer(shape: Shape, tokens: Tokens) -> PreTrainedConfig:
    return TransformerConfig(num_heads=shape.num_heads, **common(shape, tokens))


def _add_rules() -> None:
    """Gives every matched rule an architecture; a plug-in may have registered some since the last call."""
    for rule_name, entry in RULES.items():
        if entry.architecture not in MATCHED:
            register(entry.architecture, parametrization="matched", note=entry.description)(_with_rule(rule_name))


_add_rules()
register("hawk_mesa", parametrization="matched", note=NOTES["hawk_mesa"])(ARCHITECTURES["hawk_mesa"])


def names(parametrization: str | None = None) -> list[str]:
    """Architectures that :func:`build` knows; for one parametrization, the names that :func:`resolve` takes."""
    _add_rules()
    return list(ARCHITECTURES if parametrization is None else PARAMETRIZATIONS[parametrization])


def sizes() -> list[str]:
    """Named sizes."""
    return list(SIZES)


def resolve(name: str, parametrization: str) -> str:
    """The full name of an architecture in a parametrization, ``"released"`` or ``"matched"``.

    Raises:
        UserError: There is none; the message lists those that exist.
    """
    check_parametrization(parametrization)
    available = names(parametrization)
    if name not in available:
        raise UserError(
            f"unknown model {name!r}; available with {parametrization} parametrization: {', '.join(available)}"
        )
    return name if parametrization == "released" else MATCHED_PREFIX + name


def build_config(
    name: str,
    size: str,
    *,
    vocab_size: int,
    bos_token_id: int | None,
    eos_token_id: int | None,
    pad_token_id: int | None,
    max_position_embeddings: int,
) -> PreTrainedConfig:
    """The configuration of an architecture at a size.

    Args:
        name: One of :func:`names`.
        size: As :func:`shape` takes it.
        vocab_size, bos_token_id, eos_token_id, pad_token_id: Those of the tokenizer.
        max_position_embeddings: Longest sequence that the model will see in training.

    Raises:
        UserError: Name or size is unknown; the message lists those that exist.
    """
    if name not in names():
        raise UserError(f"unknown model {name!r}; available: {', '.join(names())}; --plugin brings others")
    tokens = {
        "vocab_size": vocab_size,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "max_position_embeddings": max_position_embeddings,
    }
    return ARCHITECTURES[name](shape(size), tokens)


def build(name: str, size: str, **tokens: Any) -> PreTrainedModel:
    """A freshly initialized causal language model; arguments as in :func:`build_config`."""
    return AutoModelForCausalLM.from_config(build_config(name, size, **tokens))


def count_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of the language model, counting tied ones once, without allocating them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
