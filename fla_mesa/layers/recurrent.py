"""The common part of token mixers that process a sequence with fixed-size states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.utils import Cache
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution

from fla_mesa.layers.initialization import gate_biases, start_bias
from fla_mesa.layers.layout import Layout, find_layout
from fla_mesa.layers.shards import conv_states_before, refuse_shard
from fla_mesa.ops.context_parallel import ContextLike

States = tuple[torch.Tensor, ...]


class Call(NamedTuple):
    """Options of one call of a mixer.

    Attributes:
        use_cache: Whether the states at the end are wanted.
        cu_seqlens: Boundaries of packed sequences ``[N + 1]``, or None.
        decode: Whether it is one token of each sequence, without gradients, after states that exist.
        cp_context: What is known of the whole row if the input is a shard of one; see :mod:`fla_mesa.ops.context_parallel`.
    """

    use_cache: bool
    cu_seqlens: torch.Tensor | None
    decode: bool
    cp_context: ContextLike | None = None


class RecurrentMixer(nn.Module):
    """Handles padding, packing and the cache; a subclass implements ``_mix`` for a batch without padding.

    Args:
        hidden_size: Width of input and output, D.
        layer_idx: Index of the layer in its model; needed with a cache.
    """

    # A dataclass of what the mixer is made of; the names of its fields are those of the configuration.
    Settings: ClassVar[type]
    # Whether ``_mix`` goes by ``call.cp_context``, so that a row can be cut over ranks.
    context_parallel = False

    def __init__(self, hidden_size: int, layer_idx: int | None):
        super().__init__()
        self.hidden_size, self.layer_idx = hidden_size, layer_idx

    @classmethod
    def settings(cls) -> set[str]:
        """Names of the configuration settings that the mixer uses."""
        return {field.name for field in dataclasses.fields(cls.Settings)}

    @classmethod
    def from_config(cls, config: Any, layer_idx: int) -> RecurrentMixer:
        """The mixer of a layer; each setting comes from the configuration or from its ``rule_settings``."""
        values = {name: getattr(config, name) for name in cls.settings() if hasattr(config, name)}
        own = getattr(config, "rule_settings", None) or {}
        values |= {name: value for name, value in own.items() if name in cls.settings()}
        make: Any = cls
        return make(cls.Settings(**values), layer_idx)

    def _mix(
        self, x: torch.Tensor, conv: States | None, states: States | None, call: Call
    ) -> tuple[torch.Tensor, States | None, States | None]:
        """``x [B, T, D] -> [B, T, D]``, with the states of convolutions and recurrence before and after (batch first)."""
        raise NotImplementedError

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        cu_seqlens: torch.Tensor | None = None,
        *,
        cp_context: ContextLike | None = None,
        layout: Layout | None = None,
    ) -> tuple[torch.Tensor, None, Cache | None]:
        """Mix tokens.

        Args:
            hidden_states: ``[B, T, D]``.
            attention_mask: ``[B, >= T]``, 0 for padding (on any side), 1 for tokens; its last T columns are those of the input.
            past_key_values: fla's cache. A call of any length goes on from what it holds.
            use_cache: Whether to update it.
            output_attentions: There for fla's blocks; there are none to give.
            cu_seqlens: Boundaries of packed sequences ``[N + 1]``, B = 1.
            cp_context: For an input that is a shard of a row cut over ranks; see :mod:`fla_mesa.ops.context_parallel`.
            layout: What the model found out about these three, in place of them.

        Returns:
            ``(output [B, T, D], None, past_key_values)``.

        Raises:
            ValueError: An argument has a wrong shape or value, or cannot be had.
        """
        refuse_attentions(output_attentions)
        batch, length, _ = hidden_states.shape
        if layout is None:
            layout = find_layout(batch, length, attention_mask, cu_seqlens=cu_seqlens, cp_context=cp_context)
        if layout.cp_context is not None:
            refuse_shard(self, self.layer_idx, past_key_values, use_cache)
        use_cache = bool(use_cache) and past_key_values is not None
        cache = get_layer_cache(self, past_key_values)
        if layout.packed and batch > 1 and (use_cache or cache is not None):
            raise ValueError(
                f"past_key_values: rows that hold several sequences cannot be cached; got a batch of {batch} rows"
            )
        kept_conv, kept_states = (None, None) if cache is None else (cache["conv_state"], cache["recurrent_state"])
        conv, states = take_rows(kept_conv, layout.rows), take_rows(kept_states, layout.rows)
        decode = states is not None and length == 1 and layout.cu_seqlens is None and not torch.is_grad_enabled()

        call = Call(use_cache, layout.cu_seqlens, decode, layout.cp_context)
        output, conv, states = self._mix(layout.pack(hidden_states), conv, states, call)
        if use_cache:
            update_layer_cache(
                self,
                past_key_values,
                recurrent_state=put_rows(kept_states, states, layout.rows, batch),
                conv_state=put_rows(kept_conv, conv, layout.rows, batch),
                offset=length,
            )
        return layout.unpack(output), None, past_key_values


def refuse_attentions(output_attentions: bool | None) -> None:
    """Refuses a request for attention weights, which these layers do not have.

    Raises:
        ValueError: They are asked for.
    """
    if output_attentions:
        raise ValueError(
            "output_attentions must be False: the layers of this family have no attention weights; got True"
        )


@dataclass(frozen=True, kw_only=True)
class QKVSettings:
    """Settings of :class:`QKVMixer`.

    Attributes:
        hidden_size: Width of input and output, D.
        num_heads: Heads, H.
        head_dim: Size of keys and of values of a head.
        use_output_gate: Whether the norm on the output is gated by ``SiLU(W x)``.
        use_short_conv: Whether q and k pass a causal depthwise convolution (then SiLU).
        use_v_conv: Whether v does.
        conv_size: Width of the convolutions.
        conv_bias: Whether they have a bias.
        norm_eps: Epsilon of the norm on the output.
        gamma_init: Forget gates of the first and of the last head at the start, where the input is zero; those between are spread evenly
            in their logits. With the default, fla's, nothing is remembered for longer than a few tokens at first: recall is learnt
            several times sooner with (0.5, 0.98), and text a little later (docs/log.md).

    Raises:
        ValueError: A value is out of range.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    use_output_gate: bool = False
    use_short_conv: bool = True
    use_v_conv: bool = True
    conv_size: int = 4
    conv_bias: bool = False
    norm_eps: float = 1e-5
    gamma_init: Sequence[float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        if len(self.gamma_init) != 2 or not all(0 < gamma < 1 for gamma in self.gamma_init):
            raise ValueError(f"gamma_init must be two numbers in (0, 1); got {self.gamma_init!r}")


class QKVMixer(RecurrentMixer):
    """One parametrization for many recurrence rules (arXiv 2506.05233, appendix E.1); a subclass is a rule.

    ::

        q, k, v = SiLU(conv(W x))     beta = sigmoid(W x + b)     gamma = sigmoid(W x + b)
        y = W_o RMSNorm(rule(q, k, v, log gamma, beta))

    The paper's figure 1C and appendix E convolve the values as well, its lists of design choices (E.1, G.2) name queries and keys only:
    ``use_v_conv``. docs/log.md has what was measured.

    Args:
        settings: What it is made of.
        layer_idx: Index of the layer in its model; needed with a cache.
    """

    Settings = QKVSettings
    # Which of the two gates the rule has.
    forget_gate = True
    input_gate = True

    def __init__(self, settings: QKVSettings, layer_idx: int | None = None):
        super().__init__(settings.hidden_size, layer_idx)
        hidden_size, num_heads, head_dim = settings.hidden_size, settings.num_heads, settings.head_dim
        self.num_heads, self.head_dim = num_heads, head_dim
        self.use_output_gate = settings.use_output_gate
        self.use_short_conv, self.use_v_conv = settings.use_short_conv, settings.use_v_conv

        inner = num_heads * head_dim
        self.q_proj = nn.Linear(hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(hidden_size, inner, bias=False)
        if self.forget_gate:
            self.a_proj = nn.Linear(hidden_size, num_heads, bias=True)
            start_bias(self.a_proj, gate_biases(settings.gamma_init, num_heads))
        if self.input_gate:
            self.b_proj = nn.Linear(hidden_size, num_heads, bias=True)
        convolved = ("qk" if settings.use_short_conv else "") + ("v" if settings.use_v_conv else "")
        for name in convolved:
            convolution = ShortConvolution(inner, settings.conv_size, bias=settings.conv_bias, activation="silu")
            self.add_module(f"{name}_conv1d", convolution)
        if settings.use_output_gate:
            self.g_proj = nn.Linear(hidden_size, inner, bias=False)
            self.o_norm = FusedRMSNormGated(head_dim, eps=settings.norm_eps)
        else:
            self.o_norm = RMSNorm(head_dim, eps=settings.norm_eps, dtype=torch.float32)
        self.o_proj = nn.Linear(inner, hidden_size, bias=False)

    @classmethod
    def settings(cls) -> set[str]:
        """As :meth:`RecurrentMixer.settings`; without forget gates, without their initial values."""
        return super().settings() - (set() if cls.forget_gate else {"gamma_init"})

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _gates(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """log gamma and beta, ``[B, T, H]`` in float32; None for a gate that the rule does not have."""
        g = F.logsigmoid(self.a_proj(x).float()) if self.forget_gate else None
        beta = self.b_proj(x).float().sigmoid() if self.input_gate else None
        return g, beta

    def _qkv(
        self,
        x: torch.Tensor,
        conv: States | None,
        use_cache: bool,
        cu_seqlens: torch.Tensor | None,
        cp_context: ContextLike | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, States | None]:
        """q, k, v ``[B, T, H, head_dim]`` of one dtype, and the state of the convolutions."""
        mixed = {name: getattr(self, f"{name}_proj")(x) for name in "qkv"}
        convolutions = {name: getattr(self, f"{name}_conv1d") for name in mixed if hasattr(self, f"{name}_conv1d")}
        if cp_context is not None and convolutions:
            width = next(iter(convolutions.values())).kernel_size[0]
            conv = conv_states_before([mixed[name] for name in convolutions], width, cp_context)
        states = []
        for name, convolution in convolutions.items():
            before = None if conv is None else conv[len(states)]
            mixed[name], after = convolution(
                mixed[name], cache=before, output_final_state=use_cache, cu_seqlens=cu_seqlens
            )
            states.append(after)
        q, k, v = (self._heads(y.to(mixed["v"].dtype)) for y in mixed.values())
        return q, k, v, tuple(states) or None

    def _output(self, o: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``o [B, T, H, head_dim] -> [B, T, D]``; x is the layer's input, for the output gate."""
        o = self.o_norm(o, self._heads(self.g_proj(x))) if self.use_output_gate else self.o_norm(o)
        return self.o_proj(o.flatten(-2))

    def _recur(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor | None,
        beta: torch.Tensor | None,
        states: States | None,
        call: Call,
    ) -> tuple[torch.Tensor, States | None]:
        """The rule on ``[B, T, H, ...]``, q and k not yet normalized: ``o [B, T, H, head_dim]`` and the new states."""
        raise NotImplementedError

    def _mix(
        self, x: torch.Tensor, conv: States | None, states: States | None, call: Call
    ) -> tuple[torch.Tensor, States | None, States | None]:
        q, k, v, conv = self._qkv(x, conv, call.use_cache, call.cu_seqlens, call.cp_context)
        o, states = self._recur(q, k, v, *self._gates(x), states, call)
        return self._output(o, x), conv, states


def take_rows(states: States | None, rows: torch.Tensor | None) -> States | None:
    """The states ``[B, ...]`` of these rows of the batch (None: all)."""
    return states if states is None or rows is None else tuple(s[rows] for s in states)


def put_rows(old: States | None, new: States | None, rows: torch.Tensor | None, batch: int) -> States | None:
    """The states ``[B, ...]`` of the whole batch after some rows changed; zeros for rows without a state yet.

    States ``[N, S, ...]`` may have grown in S: zeros then come before the old ones.
    """
    if new is None or rows is None:
        return new
    if old is None:
        old = tuple(s.new_zeros(batch, *s.shape[1:]) for s in new)
    else:
        grown = (n.shape[1] - o.shape[1] if o.ndim > 1 else 0 for o, n in zip(old, new, strict=True))
        old = tuple(F.pad(o, [0, 0] * (o.ndim - 2) + [by, 0]) if by else o for o, by in zip(old, grown, strict=True))
    return tuple(o.index_copy(0, rows, n.to(o.dtype)) for o, n in zip(old, new, strict=True))
