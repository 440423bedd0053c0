"""MesaNet, the token mixer."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.models.utils import Cache
from fla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution

from fla_mesa.layers.padding import find_packing, pack, unpack
from fla_mesa.ops import SolverStats, chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.ops.chunk import l2_normalize

States = tuple[torch.Tensor, ...]


class MesaNet(nn.Module):
    r"""The layer of "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training" (von Oswald et al., arXiv 2506.05233, 2 and E).

    ::

        q, k = L2norm(SiLU(conv(W x)))     v = W x     beta = sigmoid(W x + b)     gamma = sigmoid(W x + b)
        gamma <- gamma (1 - (1 - gamma_cap) beta^2)             lamb = lambda_lower_bound + softplus(parameter)
        y = W_o RMSNorm(mesa(q, k, v, log gamma, beta, lamb))

    Parameters have the names and shapes of ``fla.layers.MesaNet``. With ``gamma_cap=None`` it computes the same function.

    Args:
        hidden_size: Width of the input, D.
        num_heads: Heads, H.
        head_dim: Size of keys and of values of a head.
        mode: Only ``"chunk"``; there for fla's configurations.
        use_output_gate: Whether the norm on the output is gated by ``SiLU(W x)``.
        use_short_conv: Whether q and k pass a causal depthwise convolution (then SiLU).
        conv_size: Its width.
        conv_bias: Whether it has a bias.
        layer_idx: Index of the layer in its model; needed with a cache.
        norm_eps: Epsilon of the norm on the output.
        lambda_lower_bound: What lamb cannot fall below; in (0, 1), as lamb starts at 1.
        max_cg_step_training: Most conjugate-gradient steps over sequences (training and prefill).
        max_cg_step_decoding: Most steps per decoded token.
        gamma_cap: Most that the forget gate can be where beta is 1; in (0, 1], or None for no cap. Without it, long runs of one token
            make the system degenerate.
        cg_tolerance: Relative residual at which a position's solve stops.

    Attributes:
        record_stats: Set it to True to keep the solver's statistics of each call in ``last_stats``.
        last_stats: :class:`~fla_mesa.ops.SolverStats` of the last call, in the shape in which the op saw it: ``[B, T, H]``, or packed
            ``[1, tokens, H]`` if there was padding, or ``[B, 1, H]`` for a decoding step.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        hidden_size: int = 1024,
        num_heads: int = 8,
        head_dim: int = 128,
        mode: str = "chunk",
        use_output_gate: bool = False,
        use_short_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
        lambda_lower_bound: float = 0.25,
        max_cg_step_training: int = 30,
        max_cg_step_decoding: int = 30,
        *,
        gamma_cap: float | None = 0.9975,
        cg_tolerance: float = 1e-4,
    ):
        super().__init__()
        if mode != "chunk":
            raise ValueError(f"mode must be 'chunk'; got {mode!r}")
        if not 0 < lambda_lower_bound < 1:
            raise ValueError(f"lambda_lower_bound must be in (0, 1), as lamb starts at 1; got {lambda_lower_bound!r}")
        if gamma_cap is not None and not 0 < gamma_cap <= 1:
            raise ValueError(f"gamma_cap must be in (0, 1] or None; got {gamma_cap!r}")
        self.mode = mode
        self.hidden_size, self.num_heads, self.head_dim = hidden_size, num_heads, head_dim
        self.use_output_gate, self.use_short_conv = use_output_gate, use_short_conv
        self.layer_idx = layer_idx
        self.lambda_lower_bound, self.gamma_cap = lambda_lower_bound, gamma_cap
        self.max_cg_step_training, self.max_cg_step_decoding = max_cg_step_training, max_cg_step_decoding
        self.cg_tolerance = cg_tolerance
        self.record_stats, self.last_stats = False, None

        inner = num_heads * head_dim
        self.q_proj = nn.Linear(hidden_size, inner, bias=False)
        self.k_proj = nn.Linear(hidden_size, inner, bias=False)
        self.v_proj = nn.Linear(hidden_size, inner, bias=False)
        self.a_proj = nn.Linear(hidden_size, num_heads, bias=True)
        self.b_proj = nn.Linear(hidden_size, num_heads, bias=True)
        self.lambda_params = nn.Parameter(torch.empty(inner, dtype=torch.float32))
        self.lambda_params._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] (fla's mark)
        if use_short_conv:
            self.q_conv1d = ShortConvolution(inner, conv_size, bias=conv_bias, activation="silu")
            self.k_conv1d = ShortConvolution(inner, conv_size, bias=conv_bias, activation="silu")
        if use_output_gate:
            self.g_proj = nn.Linear(hidden_size, inner, bias=False)
            self.o_norm = FusedRMSNormGated(head_dim, eps=norm_eps)
        else:
            self.o_norm = RMSNorm(head_dim, eps=norm_eps, dtype=torch.float32)
        self.o_proj = nn.Linear(inner, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start lamb at 1. The other parameters belong to modules that initialise themselves."""
        with torch.no_grad():
            self.lambda_params.fill_(math.log(math.expm1(1 - self.lambda_lower_bound)))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))

    def _mix_neighbours(
        self, x: torch.Tensor, cached: States | None, use_cache: bool, cu_seqlens: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, States | None]:
        """q and k ``[B, T, inner]`` after the short convolutions, and the state of those."""
        q, k = self.q_proj(x), self.k_proj(x)
        if not self.use_short_conv:
            return q, k, None
        state_q, state_k = (None, None) if cached is None else cached
        q, state_q = self.q_conv1d(q, cache=state_q, output_final_state=use_cache, cu_seqlens=cu_seqlens)
        k, state_k = self.k_conv1d(k, cache=state_k, output_final_state=use_cache, cu_seqlens=cu_seqlens)
        return q, k, (state_q, state_k)

    def _gates(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """log gamma and beta, ``[B, T, H]`` in float32."""
        beta = self.b_proj(x).float().sigmoid()
        g = F.logsigmoid(self.a_proj(x).float())
        if self.gamma_cap is not None:
            g = g + torch.log1p((self.gamma_cap - 1) * beta.square())
        return g, beta

    def _mesa(
        self, q, k, v, g, beta, states: States | None, use_cache: bool, cu_seqlens, decode: bool
    ) -> tuple[torch.Tensor, States | None]:
        """The op on ``[B, T, H, ...]``: ``o [B, T, H, V]`` and the new states."""
        lamb = self.lambda_lower_bound + F.softplus(self.lambda_params.float()).view(self.num_heads, self.head_dim)
        if decode:
            assert states is not None
            q, k, v, g, beta = (x.squeeze(1) for x in (l2_normalize(q), l2_normalize(k), v, g, beta))
            o, h_kk, h_kv, stats = mesa_net_decoding_one_step(
                q,
                k,
                v,
                g,
                lamb,
                beta,
                states[0],
                states[1],
                self.max_cg_step_decoding,
                cg_tolerance=self.cg_tolerance,
                return_stats=True,
            )
            o, stats = o.unsqueeze(1), SolverStats(*(x.unsqueeze(1) for x in stats))
        else:
            h_kk, h_kv = (None, None) if states is None else states
            o, h_kk, h_kv, stats = chunk_mesa_net(
                q,
                k,
                v,
                g,
                beta,
                lamb,
                h_kk_init=h_kk,
                h_kv_init=h_kv,
                output_final_state=use_cache,
                max_CG_iteration=self.max_cg_step_training,
                use_qk_l2norm_in_kernel=True,
                cu_seqlens=cu_seqlens,
                cg_tolerance=self.cg_tolerance,
                return_stats=True,
            )
        if self.record_stats:
            self.last_stats = stats
        return o, None if h_kk is None else (h_kk, h_kv)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = False,
        output_attentions: bool | None = False,
        cu_seqlens: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, None, Cache | None]:
        """Mix tokens.

        Args:
            hidden_states: ``[B, T, D]``.
            attention_mask: ``[B, >= T]``, 0 for padding (on any side), 1 for tokens; its last T columns are those of the input.
            past_key_values: fla's cache. A call of any length goes on from what it holds.
            use_cache: Whether to update it.
            output_attentions: There for fla's blocks; there are none to give.
            cu_seqlens: Boundaries of packed sequences ``[N + 1]``, B = 1; takes precedence over the mask.
            kwargs: What fla's models hand to all their layers; not used here.

        Returns:
            ``(output [B, T, D], None, past_key_values)``.
        """
        batch, length, _ = hidden_states.shape
        use_cache = bool(use_cache) and past_key_values is not None
        packing = None if attention_mask is None or cu_seqlens is not None else find_packing(attention_mask, length)
        if packing is not None:
            hidden_states, cu_seqlens = pack(hidden_states, packing), packing.cu_seqlens
        rows = None if packing is None else packing.rows

        cache = get_layer_cache(self, past_key_values)
        kept_conv, kept_states = (None, None) if cache is None else (cache["conv_state"], cache["recurrent_state"])
        conv, states = _take_rows(kept_conv, rows), _take_rows(kept_states, rows)
        decode = states is not None and length == 1 and cu_seqlens is None and not torch.is_grad_enabled()

        q, k, conv = self._mix_neighbours(hidden_states, conv, use_cache, cu_seqlens)
        v = self.v_proj(hidden_states)
        g, beta = self._gates(hidden_states)
        q, k = q.to(v.dtype), k.to(v.dtype)
        o, states = self._mesa(
            self._heads(q), self._heads(k), self._heads(v), g, beta, states, use_cache, cu_seqlens, decode
        )
        if use_cache:
            update_layer_cache(
                self,
                past_key_values,
                recurrent_state=_put_rows(kept_states, states, rows, batch),
                conv_state=_put_rows(kept_conv, conv, rows, batch),
                offset=length,
            )
        o = self.o_norm(o, self._heads(self.g_proj(hidden_states))) if self.use_output_gate else self.o_norm(o)
        o = self.o_proj(o.flatten(-2))
        return (o if packing is None else unpack(o, packing, batch, length)), None, past_key_values


def _take_rows(states: States | None, rows: torch.Tensor | None) -> States | None:
    """The states of these rows of the batch (None: all)."""
    return states if states is None or rows is None else tuple(s[rows] for s in states)


def _put_rows(old: States | None, new: States | None, rows: torch.Tensor | None, batch: int) -> States | None:
    """The states of the whole batch after those of some rows changed; zeros where a row has seen nothing yet."""
    if new is None or rows is None:
        return new
    old = tuple(s.new_zeros(batch, *s.shape[1:]) for s in new) if old is None else old
    return tuple(o.index_copy(0, rows, n.to(o.dtype)) for o, n in zip(old, new, strict=True))
