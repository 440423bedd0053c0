"""fla's Mamba2 layer.

It has no function to stand in for: its GPU path calls the mamba_ssm package, its CPU path holds a tensor
`[B, chunks, C, C, heads, state]`, slow beyond use, and its prefill and decoding read the groups of B and C in different orders.

    h_t = exp(-exp(A_log) dt_t) h_{t-1} + dt_t x_t B_t',   y_t = h_t C_t + D x_t,   dt = softplus(dt' + dt_bias)

That is linear attention with k = B, q = C, v = dt x. Training, prefill, continuation and decoding are one path here.
Unlike fla's layer, which ignores `cu_seqlens` and takes one token at a time from a cache, this honours packed sequences and
continues with any number of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from fla.layers.mamba2 import Mamba2
from fla.layers.utils import get_layer_cache, update_layer_cache
from fla.modules.causal_conv1d import causal_conv1d

from fla_mesa.cpu.precision import up
from fla_mesa.cpu.recurrences import matrix_recurrence
from fla_mesa.cpu.registry import stand_in_method

if TYPE_CHECKING:
    from fla.models.cache_utils import Cache

Tensor = torch.Tensor
convolve: Any = causal_conv1d  # which fla's decorator types as a tensor


@stand_in_method(Mamba2, "forward")
def forward(
    self: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    output_attentions: bool | None = False,
    **kwargs: Any,
):
    """hidden_states `[B, T, D]`, attention_mask `[B, >= T]` of 0 and 1 -> output like hidden_states, None, the cache"""
    T = hidden_states.shape[1]
    if T == 0:
        return hidden_states, None, past_key_values
    last = get_layer_cache(self, past_key_values)
    conv_state, state = (None, None) if last is None else (last["conv_state"], last["recurrent_state"])
    cu_seqlens = kwargs.get("cu_seqlens")
    mask = None if attention_mask is None or cu_seqlens is not None else attention_mask[:, -T:, None]

    def masked(x: Tensor) -> Tensor:
        return x if mask is None else x * mask.to(x.dtype)

    projected = self.in_proj(masked(hidden_states))
    gate, xBC, dt = projected.split([self.intermediate_size, self.conv_dim, self.num_heads], -1)
    in_convolution = self.activation in ("silu", "swish")
    xBC, conv_state = convolve(
        masked(xBC),
        self.conv1d.weight[:, 0],
        self.conv1d.bias,
        initial_state=conv_state,
        output_final_state=bool(use_cache),
        activation=self.activation if in_convolution else None,
        cu_seqlens=cu_seqlens,
    )
    xBC = masked(xBC if in_convolution else self.act(xBC))

    keys = self.n_groups * self.ssm_state_size
    x, B, C = xBC.split([self.intermediate_size, keys, keys], -1)
    x = up(x.unflatten(-1, (self.num_heads, self.head_dim)))
    heads_in_group = self.num_heads // self.n_groups
    B, C = (z.unflatten(-1, (self.n_groups, -1)).repeat_interleave(heads_in_group, 2) for z in (B, C))
    dt = F.softplus(up(dt) + up(self.dt_bias)).clamp(*self.dt_limit)
    y, state = matrix_recurrence(
        C,
        B,
        x * dt[..., None],
        g=-up(self.A_log).exp() * dt,
        scale=1.0,
        initial_state=None if state is None else state.mT,  # fla keeps it as [N, heads, head_dim, state_size]
        cu_seqlens=cu_seqlens,
    )
    y = (y + up(self._get_D(expand_to_head_dim=True)) * x).flatten(2)
    y = self.norm(y, gate) if self.norm is not None else y * self.act(gate)
    update_layer_cache(self, past_key_values, recurrent_state=state.mT, conv_state=conv_state, offset=T)
    return self.out_proj(y.to(hidden_states.dtype)), None, past_key_values
