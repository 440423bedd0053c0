"""Architectures of the comparison by name, and the sizes they come in.

To add an architecture, write a function from a :class:`Shape` and the tokens' settings to a configuration, and name it in
``ARCHITECTURES``. To add a size, add a line to ``SIZES``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from fla_mesa.models.configuration_mesanet import MesaNetConfig


@dataclass(frozen=True)
class Shape:
    """What all architectures of one size have in common."""

    num_hidden_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP: three times that of the residual stream, the paper's rule."""
        return 3 * self.hidden_size


SIZES = {
    # For machines without a GPU.
    "tiny": Shape(num_hidden_layers=4, hidden_size=128, num_heads=2, head_dim=64),
    "small": Shape(num_hidden_layers=6, hidden_size=256, num_heads=4, head_dim=64),
    # Table 5 of arXiv 2506.05233.
    "140M": Shape(num_hidden_layers=14, hidden_size=768, num_heads=6, head_dim=128),
    "440M": Shape(num_hidden_layers=28, hidden_size=1024, num_heads=8, head_dim=128),
    "940M": Shape(num_hidden_layers=28, hidden_size=1536, num_heads=12, head_dim=128),
}


def _mesanet(shape: Shape, tokens: dict[str, Any]) -> PreTrainedConfig:
    return MesaNetConfig(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_heads=shape.num_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        **tokens,
    )


ARCHITECTURES: dict[str, Callable[[Shape, dict[str, Any]], PreTrainedConfig]] = {
    "mesanet": _mesanet,
}


def names() -> list[str]:
    """The architectures that :func:`build` knows."""
    return list(ARCHITECTURES)


def sizes() -> list[str]:
    """The sizes that :func:`build` knows."""
    return list(SIZES)


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
        size: One of :func:`sizes`.
        vocab_size, bos_token_id, eos_token_id, pad_token_id: Those of the tokenizer.
        max_position_embeddings: Longest sequence that the model will see in training.

    Raises:
        ValueError: Name or size is unknown; the message lists what exists.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"unknown model {name!r}; available: {', '.join(names())}")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r}; available: {', '.join(sizes())}")
    tokens = {
        "vocab_size": vocab_size,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "pad_token_id": pad_token_id,
        "max_position_embeddings": max_position_embeddings,
    }
    return ARCHITECTURES[name](SIZES[size], tokens)


def build(name: str, size: str, **tokens: Any) -> PreTrainedModel:
    """A freshly initialised causal language model; the arguments are those of :func:`build_config`."""
    return AutoModelForCausalLM.from_config(build_config(name, size, **tokens))
