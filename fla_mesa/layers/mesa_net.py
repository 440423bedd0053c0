"""MesaNet's token mixer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from fla_mesa.layers.convergence import Solves
from fla_mesa.layers.initialization import fill
from fla_mesa.layers.recurrent import Call, QKVMixer, QKVSettings, States
from fla_mesa.ops import SolverStats, chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.ops.backends import check_backend, l2_normalize
from fla_mesa.ops.pytorch import TOLERANCE


class Regression(NamedTuple):
    """The ridge regression that a layer solves at every position: ``o_t = G_t' (H_t + diag(lamb))^-1 q_t``.

    Attributes:
        q, k: Unit queries and keys ``[B, T, H, K]``.
        v: Values ``[B, T, H, V]``.
        g: log gamma ``[B, T, H]``, the cap applied, float32.
        beta: ``[B, T, H]``, float32.
        lamb: ``[H, K]``, float32.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor
    lamb: torch.Tensor


class MesaNet(QKVMixer):
    r"""The layer of "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training" (von Oswald et al., arXiv 2506.05233, 2 and E).

    ::

        q, k = L2norm(SiLU(conv(W x)))     v = SiLU(conv(W x))     beta = sigmoid(W x + b)     gamma = sigmoid(W x + b)
        gamma <- gamma (1 - (1 - gamma_cap) beta^2)             lamb = lambda_lower_bound + softplus(parameter)
        y = W_o RMSNorm(mesa(q, k, v, log gamma, beta, lamb))

    Parameters have the names and shapes of ``fla.layers.MesaNet``, which has no convolution of values and no cap: with
    ``use_v_conv=False, gamma_cap=None`` it computes the same function.

    Args:
        hidden_size: Width of the input, D.
        num_heads: Heads, H.
        head_dim: Size of keys and of values of a head.
        mode: Only ``"chunk"``; there for fla's configurations.
        use_output_gate: Whether the norm on the output is gated by ``SiLU(W x)``.
        use_short_conv: Whether q and k pass a causal depthwise convolution (then SiLU).
        use_v_conv: Whether v does.
        conv_size: Width of the convolutions.
        conv_bias: Whether they have a bias.
        layer_idx: Index of the layer in its model; needed with a cache.
        norm_eps: Epsilon of the norm on the output.
        lambda_lower_bound: What lamb cannot fall below, > 0.
        lambda_init: Where lamb starts, above its lower bound.
        train_lambda: Whether lamb is learnt; otherwise it stays where it starts.
        max_cg_step_training: Most conjugate-gradient steps over sequences (training and prefill).
        max_cg_step_decoding: Most steps per decoded token.
        gamma_cap: Most that the forget gate can be where beta is 1; in (0, 1], or None for no cap. Without it, long runs of one token
            make the system degenerate.
        cg_tolerance: Relative residual at which a position's solve stops, or None for what the back end does, as in
            :func:`~fla_mesa.ops.chunk_mesa_net`.
        backend: What solves: a back end of that function, or None for the one that suits the device.
        gamma_init: Forget gates of the first and of the last head at the start; see :class:`~fla_mesa.layers.recurrent.QKVSettings`.

    Attributes:
        record_stats: Set it to True to keep the solver's statistics of each call in ``last_stats``.
        last_stats: :class:`~fla_mesa.ops.SolverStats` of the last call, in the shape in which the op saw it: ``[B, T, H]``, or packed
            ``[1, tokens, H]`` if there was padding, or ``[B, 1, H]`` for a decoding step.
        solves: What counts them, or None; set by :func:`~fla_mesa.layers.convergence.counting`.

    Raises:
        ValueError: An argument is out of range.
    """

    no_weight_decay = ("lambda_params",)

    context_parallel = True

    def __init__(
        self,
        hidden_size: int = 1024,
        num_heads: int = 8,
        head_dim: int = 128,
        mode: str = "chunk",
        use_output_gate: bool = False,
        use_short_conv: bool = True,
        use_v_conv: bool = True,
        conv_size: int = 4,
        conv_bias: bool = False,
        layer_idx: int | None = None,
        norm_eps: float = 1e-5,
        lambda_lower_bound: float = 0.25,
        max_cg_step_training: int = 30,
        max_cg_step_decoding: int = 30,
        *,
        gamma_cap: float | None = 0.9975,
        cg_tolerance: float | None = None,
        gamma_init: Sequence[float] = (0.5, 0.5),
        lambda_init: float = 1.0,
        train_lambda: bool = True,
        backend: str | None = None,
    ):
        check_backend(backend)
        if mode != "chunk":
            raise ValueError(f"mode must be 'chunk'; got {mode!r}")
        if not 0 < lambda_lower_bound < lambda_init < math.inf:
            raise ValueError(
                f"lambda_lower_bound must be above 0 and below lambda_init = {lambda_init!r}; got {lambda_lower_bound!r}"
            )
        if gamma_cap is not None and not 0 < gamma_cap <= 1:
            raise ValueError(f"gamma_cap must be in (0, 1] or None; got {gamma_cap!r}")
        settings = QKVSettings(
            hidden_size=hidden_size,
            num_heads=num_heads,
            head_dim=head_dim,
            use_output_gate=use_output_gate,
            use_short_conv=use_short_conv,
            use_v_conv=use_v_conv,
            conv_size=conv_size,
            conv_bias=conv_bias,
            norm_eps=norm_eps,
            gamma_init=gamma_init,
        )
        super().__init__(settings, layer_idx)
        self.mode = mode
        self.lambda_lower_bound, self.lambda_init, self.train_lambda = lambda_lower_bound, lambda_init, train_lambda
        self.gamma_cap = gamma_cap
        self.max_cg_step_training, self.max_cg_step_decoding = max_cg_step_training, max_cg_step_decoding
        self.cg_tolerance, self.backend = cg_tolerance, backend
        self.record_stats, self.last_stats = False, None
        self.solves: Solves | None = None

        self.lambda_params = nn.Parameter(
            torch.empty(num_heads * head_dim, dtype=torch.float32), requires_grad=train_lambda
        )
        self.lambda_params._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue] (fla's mark)
        self.reset_parameters()

    @classmethod
    def settings(cls) -> set[str]:
        """As :meth:`RecurrentMixer.settings`: its arguments, which are the public ones of fla's layer."""
        return inspect.signature(cls).parameters.keys() - {"layer_idx", "mode"}

    @classmethod
    def from_config(cls, config: Any, layer_idx: int) -> MesaNet:
        """The layer of a model."""
        arguments: dict[str, Any] = {name: getattr(config, name) for name in cls.settings()}
        return cls(**arguments, layer_idx=layer_idx)

    def reset_parameters(self) -> None:
        """Initializes lamb; all else belongs to modules that initialize themselves."""
        above = self.lambda_init - self.lambda_lower_bound
        fill(self.lambda_params, above + math.log(-math.expm1(-above)))  # the inverse of softplus, for any difference

    @property
    def tolerance(self) -> float:
        """The relative residual its solves should reach: ``cg_tolerance`` or, if that is None, the op's."""
        if self.cg_tolerance is not None:
            return self.cg_tolerance
        weight = self.lambda_params
        sixteen = weight.dtype.itemsize == 2 or torch.is_autocast_enabled(weight.device.type)
        if self.backend == "triton" and sixteen:
            from fla_mesa.ops.triton import TOLERANCE_16  # needs the package triton

            return TOLERANCE_16
        return TOLERANCE

    @property
    def lamb(self) -> torch.Tensor:
        """The ridge ``[H, K]``, float32."""
        return self.lambda_lower_bound + F.softplus(self.lambda_params.float()).view(self.num_heads, self.head_dim)

    def regression(self, hidden_states: torch.Tensor) -> Regression:
        """The regression that the layer solves for ``hidden_states [B, T, D]``, each row one sequence without padding."""
        q, k, v, _ = self._qkv(hidden_states, None, use_cache=False, cu_seqlens=None)
        g, beta = self._gates(hidden_states)
        assert g is not None and beta is not None
        return Regression(l2_normalize(q), l2_normalize(k), v, g, beta, self.lamb)

    def _gates(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """log gamma and beta, ``[B, T, H]`` in float32."""
        g, beta = super()._gates(x)
        assert g is not None and beta is not None
        if self.gamma_cap is not None:
            g = g + torch.log1p((self.gamma_cap - 1) * beta.square())
        return g, beta

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
        """The op on ``[B, T, H, ...]``: ``o [B, T, H, V]`` and the new states."""
        assert g is not None and beta is not None
        lamb = self.lamb
        if call.decode:
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
                backend=self.backend,
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
                output_final_state=call.use_cache,
                max_CG_iteration=self.max_cg_step_training,
                use_qk_l2norm_in_kernel=True,
                cu_seqlens=call.cu_seqlens,
                cp_context=call.cp_context,
                cg_tolerance=self.cg_tolerance,
                backend=self.backend,
                return_stats=True,
            )
        if self.record_stats:
            self.last_stats = stats
        if self.solves is not None:
            self.solves.add(stats, self.tolerance)
        return o, None if h_kk is None else (h_kk, h_kv)
