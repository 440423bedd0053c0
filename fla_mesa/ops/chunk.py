"""The Mesa op over whole sequences: the public function, and the autograd function in front of every back end."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.autograd.function import once_differentiable

from fla_mesa.ops.backends import Backend, choose_backend, default_tolerance
from fla_mesa.ops.checks import check_chunk
from fla_mesa.ops.context_parallel import ContextLike, check_call, states_before
from fla_mesa.ops.opaque import opaque
from fla_mesa.ops.types import SolverStats


class _ChunkMesaNet(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, g, beta, lamb, h_kk_init, h_kv_init, backend: Backend, options: dict):
        with torch.autocast(q.device.type, enabled=False):
            out = backend.chunk_forward(q, k, v, g, beta, lamb, h_kk_init, h_kv_init, **options)
        ctx.save_for_backward(k, v, g, beta, lamb, h_kk_init, h_kv_init, out.x)
        ctx.backend, ctx.options, ctx.q_dtype = backend, options, q.dtype
        ctx.mark_non_differentiable(out.iterations, out.residual)
        ctx.set_materialize_grads(False)
        return out.o, out.h_kk, out.h_kv, out.iterations, out.residual

    @staticmethod
    @once_differentiable
    def backward(ctx, do, dh_kk, dh_kv, *_):
        k, v, g, beta, lamb, h_kk_init, h_kv_init, x = ctx.saved_tensors
        if do is None:
            do = torch.zeros_like(v)
        if dh_kk is not None or dh_kv is not None:
            N, H, K = (
                (len(do) if ctx.options["cu_seqlens"] is None else len(ctx.options["cu_seqlens"]) - 1),
                *k.shape[2:],
            )
            dh_kk = x.new_zeros(N, H, K, K) if dh_kk is None else dh_kk
            dh_kv = x.new_zeros(N, H, K, v.shape[-1]) if dh_kv is None else dh_kv
        with torch.autocast(k.device.type, enabled=False):
            d = ctx.backend.chunk_backward(
                k, v, g, beta, lamb, h_kk_init, h_kv_init, x, do, dh_kk, dh_kv, **ctx.options
            )
        inputs = (k, v, g, beta, lamb, h_kk_init, h_kv_init)
        rest = (None if dx is None else dx.to(x.dtype) for dx, x in zip(d[1:], inputs, strict=True))
        return d.q.to(ctx.q_dtype), *rest, None, None


@opaque
def chunk_mesa_net(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    lamb: torch.Tensor,
    h_kk_init: torch.Tensor | None = None,
    h_kv_init: torch.Tensor | None = None,
    output_final_state: bool = False,
    max_CG_iteration: int = 30,
    use_qk_l2norm_in_kernel: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    cu_seqlens_cpu: torch.Tensor | None = None,
    *,
    cg_tolerance: float | None = None,
    return_stats: bool = False,
    backend: str | None = None,
    cp_context: ContextLike | None = None,
) -> tuple[Any, ...]:
    """The Mesa layer's recurrence over whole sequences (von Oswald et al., arXiv 2506.05233).

        H_t = exp(g_t) H_{t-1} + beta_t k_t k_t'
        G_t = exp(g_t) G_{t-1} + beta_t k_t v_t'
        o_t = G_t' (H_t + diag(lamb))^-1 q_t

    The systems are solved by conjugate gradients, those of a tile of positions together; the gradients by implicit
    differentiation, with a second solve. Both solves are invariant to the scale of their right-hand side. Everything inside is
    float32 (float64 for float64 inputs), whatever the dtype of the inputs, also under autocast; on "fla" q, k, the solutions and the
    gradients of states are float16, and G bfloat16.

    The solves start where the paper's does (its algorithm 1), at ``q / diag(H + diag(lamb))``, so that n steps are
    the paper's n where lamb is one number. Where lamb differs from channel to channel, it preconditions: steps differ from the paper's
    plain ones, and at a given tolerance there are about as many or fewer. (Decoding takes the plain ones.)

    The arguments before the ``*`` are those of ``fla.ops.mesa_net.chunk_mesa_net``, in its order.

    Args:
        q: Queries ``[B, T, H, K]``, any T >= 1.
        k: Keys ``[B, T, H, K]``.
        v: Values ``[B, T, H, V]``; V may differ from K. q, k and v share one dtype (under autocast they are cast to its dtype).
        g: Logarithm of the forget gate, ``<= 0`` (``-inf`` forgets all), ``[B, T, H]``.
        beta: Input gate in ``[0, 1]``, ``[B, T, H]``.
        lamb: Regularisation, ``> 0``, ``[H, K]``.
        h_kk_init: State H before the first position, symmetric, ``[N, H, K, K]``, float32 or float64, where N is B, or the number of
            packed sequences. Zero if None.
        h_kv_init: State G likewise, ``[N, H, K, V]``. Comes with ``h_kk_init`` or not at all.
        output_final_state: Whether to return the states after the last position.
        max_CG_iteration: Most steps a system may take. With 0 the start is all there is, which has no gradients.
        use_qk_l2norm_in_kernel: Whether to divide q and k by ``sqrt(sum x^2 + 1e-6)`` first.
        cu_seqlens: Boundaries ``[N + 1]`` of sequences packed into one row (B = 1), from 0 to T, increasing; int32 or int64.
        cu_seqlens_cpu: A copy of them on the CPU, which saves a synchronisation on GPUs.
        cg_tolerance: A system stops when ``||r|| <= cg_tolerance ||q||``, both in the norm weighted by ``1 / lamb``. (The paper's epsilon
            is relative to the residual of the start, in the plain norm.) None: what the back end does, which is to stop at 1e-4
            (16-bit inputs on "triton": 1e-3) or, on "fla", to take ``max_CG_iteration`` steps always. A number keeps "fla" from being
            chosen.
        return_stats: Whether to return a :class:`~fla_mesa.ops.types.SolverStats` of the forward solve as well.
        backend: ``"pytorch"`` (any device); ``"fla"`` (fla's kernels, on GPUs: bfloat16 and float16, K = V from 16 to 128, all
            of its steps); ``"triton"`` (this package's, on GPUs); ``"exact"`` (every system solved densely, in float64, no steps);
            ``"diagonal"`` (no steps either: the start is all, without gradients); or None, for "fla" on an NVIDIA GPU where it takes these
            arguments, and "pytorch" otherwise, on a GPU with one warning that says why. Under ``TRITON_INTERPRET=1`` "fla" and "triton"
            take CPU tensors, too.
        cp_context: For a row that is cut over the ranks of a process group, from :func:`~fla_mesa.ops.make_cp_context` or fla's own
            ``FLACPContext``. The other arguments are then this rank's shard, B = 1; ``cu_seqlens`` is the context's, and states can
            neither be given nor be asked for. Every rank must call the op. The gradient of lamb is that of this shard alone: it has to be
            summed over the group, like those of all parameters.

    Returns:
        ``(o, h_kk, h_kv)`` or, with ``return_stats``, ``(o, h_kk, h_kv, stats)``: o ``[B, T, H, V]`` in the dtype of v; the states
        ``[N, H, K, K]`` and ``[N, H, K, V]`` in float32 (float64 for float64 inputs), None without ``output_final_state``.

    Raises:
        ValueError, TypeError: An argument is not as above; the message names it, what came, and what is allowed.
    """
    if isinstance(q, torch.Tensor) and torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in (q, k, v))
    if cp_context is not None:
        check_call(
            cp_context,
            q.shape if isinstance(q, torch.Tensor) else (),
            "q",
            cu_seqlens,
            h_kk_init=h_kk_init,
            h_kv_init=h_kv_init,
            output_final_state=output_final_state,
            cu_seqlens_cpu=cu_seqlens_cpu,
        )
        cu_seqlens, cu_seqlens_cpu = cp_context.cu_seqlens, cp_context.cu_seqlens_cpu
    check_chunk(
        q, k, v, g, beta, lamb, h_kk_init, h_kv_init, max_CG_iteration, cg_tolerance, cu_seqlens, cu_seqlens_cpu
    )
    tensors = {
        "q": q,
        "k": k,
        "v": v,
        "g": g,
        "beta": beta,
        "lamb": lamb,
        "h_kk_init": h_kk_init,
        "h_kv_init": h_kv_init,
    }
    chosen = choose_backend(backend, "chunk", tensors, max_steps=max_CG_iteration, tolerance=cg_tolerance)
    if use_qk_l2norm_in_kernel:
        q, k = chosen.l2_normalize(q), chosen.l2_normalize(k)
    if cp_context is not None:
        h_kk_init, h_kv_init = states_before(k, v, g, beta, cp_context)
    options = {
        "cu_seqlens": cu_seqlens,
        "cu_seqlens_cpu": cu_seqlens_cpu,
        "max_steps": max_CG_iteration,
        "tolerance": default_tolerance(chosen, k.dtype) if cg_tolerance is None else float(cg_tolerance),
    }
    o, h_kk, h_kv, *stats = cast(
        "tuple[torch.Tensor, ...]", _ChunkMesaNet.apply(q, k, v, g, beta, lamb, h_kk_init, h_kv_init, chosen, options)
    )
    out = (o, h_kk, h_kv) if output_final_state else (o, None, None)
    return (*out, SolverStats(*stats)) if return_stats else out
