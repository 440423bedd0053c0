"""Every CPU stand-in against the Triton kernels of fla's that it stands in for, run in the interpreter on the same tensors.

Importing the package under TRITON_INTERPRET=1 leaves fla as it is, so its functions here are its own; the stand-ins are called
by their own names. What does not run in the interpreter: the kernels of chunk_hgrn and of the gradient of the convolution's initial
state, which combine a mask with a Python bool, and cross entropy with a soft cap, which calls the GPU's tanh.
"""

import pytest
import torch
import torch.nn.functional as F
from fla.modules.activations import ops as fla_activations
from fla.modules.causal_conv1d import ops as fla_convolution
from fla.modules.fused_cross_entropy import ops as fla_cross_entropy
from fla.modules.fused_linear_cross_entropy import ops as fla_linear_cross_entropy
from fla.modules.norm import fused_norm_gate, l2norm, layernorm, layernorm_gated
from fla.modules.rotary import ops as fla_rotary
from fla.ops import delta_rule as fla_delta_rule
from fla.ops import gated_delta_rule as fla_gated_delta_rule
from fla.ops import gla, kda, simple_gla
from fla.ops import hgrn as fla_hgrn
from fla.ops import mesa_net as fla_mesa_net
from fla.ops.kda.gate import fused_kda_gate
from fla.ops.utils import cumsum

from fla_mesa import cpu
from fla_mesa.cpu import activations, convolution, delta_rule, hgrn, linear_attention, losses, mesa_net, norms, rotary

f16, f32 = torch.float16, torch.float32
TOLERANCE = {f16: 2e-3, f32: 1e-5}
T, H, K, V = 66, 1, 16, 16  # more than one of fla's chunks of 64
T_STEPS = 20  # for kernels that go token by token


def close(actual, expected, tol):
    assert (actual is None) == (expected is None)
    if expected is None or not isinstance(expected, torch.Tensor):
        assert expected is None or actual == expected
        return
    assert actual.shape == expected.shape
    error = (actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)
    assert error <= tol, f"relative error {error:.1e}"


def test_fla_is_left_alone():
    assert not cpu.is_enabled()


# ---------------------------------------------------------------------------- recurrences, with gradients


def unit(x):
    return F.normalize(x, dim=-1)


def inputs(names, dtype, B=1, HV=H, T=T):
    make = {
        "q": lambda: torch.randn(B, T, H, K),
        "k": lambda: unit(torch.randn(B, T, H, K)),
        "v": lambda: torch.randn(B, T, HV, V),
        "beta": lambda: torch.rand(B, T, HV),
        "g": lambda: F.logsigmoid(torch.randn(B, T, HV)),
        "gk": lambda: F.logsigmoid(torch.randn(B, T, HV, K)),
        "h0": lambda: torch.randn(B, HV, K, V),
        "A": lambda: torch.rand(HV),
        "d": lambda: torch.randn(HV),
        "dk": lambda: torch.randn(HV * K),
    }
    return [make[n]().to(dtype if n in ("q", "k", "v") else f32).requires_grad_() for n in names.split()]


IN_KERNEL = dict(
    use_gate_in_kernel=True,
    use_beta_sigmoid_in_kernel=True,
    allow_neg_eigval=True,
    use_qk_l2norm_in_kernel=True,
    state_v_first=True,
)
STATE = dict(output_final_state=True)
RECURRENCES = {
    "chunk_gla": (
        gla.chunk_gla,
        linear_attention.chunk_gla,
        "q k v gk h0",
        lambda f, q, k, v, g, h: f(q, k, v, g, initial_state=h, **STATE),
    ),
    "fused_recurrent_gla": (
        gla.fused_recurrent_gla,
        linear_attention.fused_recurrent_gla,
        "q k v gk h0",
        lambda f, q, k, v, g, h: f(q, k, v, g, initial_state=h, reverse=True, **STATE),
    ),
    "chunk_simple_gla": (
        simple_gla.chunk_simple_gla,
        linear_attention.chunk_simple_gla,
        "q k v g h0",
        lambda f, q, k, v, g, h: f(q, k, v, g, initial_state=h, **STATE),
    ),
    "fused_recurrent_simple_gla": (
        simple_gla.fused_recurrent_simple_gla,
        linear_attention.fused_recurrent_simple_gla,
        "q k v h0",
        lambda f, q, k, v, h: f(q, k, v, g_gamma=torch.tensor([-0.1]), initial_state=h, **STATE),
    ),
    "fused_chunk_simple_gla": (
        simple_gla.fused_chunk_simple_gla,
        linear_attention.fused_chunk_simple_gla,
        "q k v g",
        lambda f, q, k, v, g: f(q, k, v, g, **STATE),
    ),
    "parallel_simple_gla": (
        simple_gla.parallel_simple_gla,
        linear_attention.parallel_simple_gla,
        "q k v g",
        lambda f, q, k, v, g: f(q, k, v, g)[0],
    ),
    "chunk_delta_rule": (
        fla_delta_rule.chunk_delta_rule,
        delta_rule.chunk_delta_rule,
        "q k v beta h0",
        lambda f, q, k, v, b, h: f(q, k, v, b.to(q), initial_state=h, **STATE),
    ),
    "fused_recurrent_delta_rule": (
        fla_delta_rule.fused_recurrent_delta_rule,
        delta_rule.fused_recurrent_delta_rule,
        "q k v beta h0",
        lambda f, q, k, v, b, h: f(q, k, v, b, initial_state=h, use_qk_l2norm_in_kernel=True, **STATE),
    ),
    "chunk_gated_delta_rule": (
        fla_gated_delta_rule.chunk_gated_delta_rule,
        delta_rule.chunk_gated_delta_rule,
        "q k v g beta h0",
        lambda f, q, k, v, g, b, h: f(q, k, v, g, b, initial_state=h, **STATE),
    ),
    "chunk_gated_delta_rule_in_kernel": (
        fla_gated_delta_rule.chunk_gated_delta_rule,
        delta_rule.chunk_gated_delta_rule,
        "q k v g beta A d",
        lambda f, q, k, v, g, b, A, d: f(q, k, v, g, b, A_log=A, dt_bias=d, **IN_KERNEL, **STATE),
    ),
    "chunk_kda": (
        kda.chunk_kda,
        delta_rule.chunk_kda,
        "q k v gk beta h0",
        lambda f, q, k, v, g, b, h: f(q, k, v, g, b, initial_state=h, **STATE),
    ),
    "chunk_kda_in_kernel": (
        kda.chunk_kda,
        delta_rule.chunk_kda,
        "q k v gk beta A dk",
        lambda f, q, k, v, g, b, A, d: f(q, k, v, g, b, A_log=A, dt_bias=d, **IN_KERNEL, **STATE),
    ),
    "fused_kda_gate": (
        fused_kda_gate,
        delta_rule.fused_kda_gate,
        "gk A dk",
        lambda f, g, A, d: f(g, A, d),
    ),
}
# fla asserts 16 bits for one; the others are slow to interpret.
ONLY = {"chunk_delta_rule": f16, "parallel_simple_gla": f32, "chunk_kda": f32, "chunk_kda_in_kernel": f16}
# Gradients of a few numbers that are sums over all tokens, in which most cancels.
SUMS = {"A", "d", "dk"}


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, d) for n in RECURRENCES for d in (f16, f32) if ONLY.get(n, d) == d], ids=str
)
def test_recurrence(name, dtype):
    theirs, ours, names, call = RECURRENCES[name]
    args = inputs(names, dtype, T=T_STEPS if name.startswith(("fused_recurrent", "parallel")) else T)
    expected, actual = (call(f, *args) for f in (theirs, ours))
    expected, actual = ([y] if isinstance(y, torch.Tensor) else list(y) for y in (expected, actual))
    # The gradient of the outputs' squares: what is summed over all positions has mostly one sign there, and is not all rounding.
    seeds = [y.detach() for y in expected]
    gradients = [torch.autograd.grad(y, args, seeds) for y in (expected, actual)]
    for a, e in zip(actual, expected, strict=True):
        close(a, e, TOLERANCE[dtype])
    for n, e, a in zip(names.split(), *gradients, strict=True):
        close(a, e, TOLERANCE[dtype] * (10 if n in SUMS else 1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [f16, f32], ids=str)
def test_forward_only(dtype):
    """fla has no backward pass for these. Packed, and more heads of values than of keys."""
    q, k, v, g, b, A, d, gk, dk = inputs("q k v g beta A d gk dk", dtype, HV=2 * H, T=T_STEPS)
    cu = torch.tensor([0, 7, 8, T_STEPS])
    options = dict(IN_KERNEL, **STATE, cu_seqlens=cu)
    pairs = [
        (
            fla_gated_delta_rule.fused_recurrent_gated_delta_rule,
            delta_rule.fused_recurrent_gated_delta_rule,
            dict(g=g, beta=b, A_log=A, dt_bias=d),
        ),
        (kda.fused_recurrent_kda, delta_rule.fused_recurrent_kda, dict(g=gk, beta=b, A_log=A, dt_bias=dk)),
    ]
    for theirs, ours, more in pairs:
        for a, e in zip(ours(q, k, v, **more, **options), theirs(q, k, v, **more, **options), strict=True):
            close(a, e, TOLERANCE[dtype])


@pytest.mark.parametrize("name", ["chunk_gla", "chunk_gated_delta_rule"])
def test_packed(name):
    theirs, ours, names, _ = RECURRENCES[name]
    args = inputs(names.removesuffix(" h0"), f32)
    cu = torch.tensor([0, 20, 21, T])
    expected, actual = (f(*args, cu_seqlens=cu, **STATE) for f in (theirs, ours))
    seeds = [torch.randn_like(y) for y in expected]
    for a, e in zip(actual, expected, strict=True):
        close(a, e, TOLERANCE[f32])
    for a, e in zip(torch.autograd.grad(actual, args, seeds), torch.autograd.grad(expected, args, seeds), strict=True):
        close(a, e, TOLERANCE[f32])


def test_mesa_net():
    """fla's kernels keep the solution in float16 and add 1e-5 to the denominators of the solver, at any dtype.

    Against float64 its
    gradients are off by 6e-4 to 2.4e-3 here, those of the stand-in by what the inputs' rounding to float16 leaves.
    """
    q, k, v, g, b = inputs("q k v g beta", f16)
    lamb = torch.rand(H, K).add(0.25).requires_grad_()
    args = [q, k, v, g, b, lamb]
    expected, actual = (f(*args, **STATE) for f in (fla_mesa_net.chunk_mesa_net, mesa_net.chunk_mesa_net))
    seeds = [torch.randn_like(y) for y in expected]
    for a, e in zip(actual, expected, strict=True):
        close(a, e, 2e-3)
    for a, e in zip(torch.autograd.grad(actual, args, seeds), torch.autograd.grad(expected, args, seeds), strict=True):
        close(a, e, 4e-3)
    last = [x[:, -1].detach() for x in (q, k, v, g, b)]
    states = [s.detach() for s in actual[1:]]
    functions = fla_mesa_net.mesa_net_decoding_one_step, mesa_net.mesa_net_decoding_one_step
    expected, actual = (f(*last[:4], lamb.detach(), last[4], *states) for f in functions)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, 2e-3)


@pytest.mark.parametrize("dtype", [f16, f32], ids=str)
def test_hgrn(dtype):
    B, D = 2, 24
    x, g, h0 = torch.randn(B, T_STEPS, D), F.logsigmoid(torch.randn(B, T_STEPS, D)), torch.randn(B, D)
    args = [x.to(dtype).requires_grad_(), g.requires_grad_(), h0.requires_grad_()]
    seed = torch.randn(B, T_STEPS, D).to(dtype)
    functions = fla_hgrn.fused_recurrent_hgrn, hgrn.fused_recurrent_hgrn
    expected, actual = (f(*args, output_final_state=True) for f in functions)
    for a, e in zip(actual, expected, strict=True):
        close(a, e, TOLERANCE[dtype])
    gradients = [torch.autograd.grad([y[0], y[1]], args, [seed, torch.ones_like(y[1])]) for y in (expected, actual)]
    for e, a in zip(*gradients, strict=True):
        close(a, e, TOLERANCE[dtype])


# ---------------------------------------------------------------------------- functions of fla.modules, one call each


def r(*shape):
    return torch.randn(shape)


def function_calls():
    """(fla's, ours, arguments): tensors of 16-bit inputs are the ones that follow the dtype of the test."""
    R, D, W = 12, 24, 4
    x, g, w, b, res, dy = r(R, D), r(R, D), r(D), r(D), r(R, D), r(R, D)
    pairs = []

    def add(theirs, ours, *args, **kwargs):
        pairs.append((theirs, ours, args, kwargs))

    for rms in (True, False):
        for groups in (1, 3):
            wg, bg = r(groups * D), r(groups * D)
            mean, rstd = (None if rms else x.mean(-1)), (x.var(-1, correction=0) + 1e-5).rsqrt()
            norm = dict(is_rms_norm=rms, num_groups=groups)
            add(layernorm.layer_norm_fwd, norms.layer_norm_fwd, x, wg, bg, 1e-5, res, **norm)
            add(
                layernorm.layer_norm_bwd, norms.layer_norm_bwd, dy, x, wg, bg, mean, rstd, res, True,
                recompute_output=True, x_dtype=f32, **norm,
            )  # fmt: skip
        gated = dict(is_rms_norm=rms)
        for activation in ("swish", "sigmoid"):
            add(
                fused_norm_gate.layer_norm_gated_fwd, norms.layer_norm_gated_fwd, x, g, w, b, activation,
                residual=res, **gated,
            )  # fmt: skip
            add(
                fused_norm_gate.layer_norm_gated_bwd, norms.layer_norm_gated_bwd, dy, x, g, w, b, activation,
                mean=mean, rstd=rstd, dresidual=res, has_residual=True, recompute_output=True, **gated,
            )  # fmt: skip
        for before in (True, False):
            add(
                layernorm_gated.layernorm_fn, norms.layernorm_fn, x, w, b, g, group_size=8, norm_before_gate=before,
                is_rms_norm=rms,
            )  # fmt: skip
    rstd = (x.square().sum(-1) + 1e-6).rsqrt()
    add(l2norm.l2norm_fwd, norms.l2norm_fwd, x)
    add(l2norm.l2norm_bwd, norms.l2norm_bwd, x * rstd[:, None], rstd, dy)
    add(layernorm_gated.rmsnorm_fn, norms.rmsnorm_fn, x, w, None, g)

    for name in ("sigmoid", "swish", "logsigmoid"):
        add(getattr(fla_activations, f"{name}_fwd"), getattr(activations, f"{name}_fwd"), x)
        add(getattr(fla_activations, f"{name}_bwd"), getattr(activations, f"{name}_bwd"), x, dy)
    for name in ("swiglu", "powglu"):
        add(getattr(fla_activations, f"{name}_fwd"), getattr(activations, f"{name}_fwd"), x, g)
        add(
            getattr(fla_activations, f"{name}_fwdbwd"),
            getattr(activations, f"{name}_fwdbwd"),
            x,
            g,
            dy,
            use_weight=True,
        )

    for cu, shape in ((None, (2, 9, D)), (torch.tensor([0, 6, 7, 18]), (1, 18, D))):
        xs, ys, weight, bias = r(*shape), r(*shape), r(D, W), r(D)
        state, dstate = r(2 if cu is None else 3, D, W), r(2 if cu is None else 3, D, W)
        dstate[..., 0] = 0  # the oldest input in a state is of no use, and fla passes no gradient through it
        for activation in (None, "silu"):
            options = dict(activation=activation, cu_seqlens=cu)
            add(
                fla_convolution.causal_conv1d_fwd, convolution.causal_conv1d_fwd, xs, weight, bias, ys, state,
                output_final_state=True, **options,
            )  # fmt: skip
            add(
                fla_convolution.causal_conv1d_bwd, convolution.causal_conv1d_bwd, xs, ys, dstate, weight, bias,
                ys, **options,
            )  # fmt: skip
        add(
            fla_convolution.causal_conv1d_update_states, convolution.causal_conv1d_update_states, xs, W, state,
            cu_seqlens=cu,
        )  # fmt: skip
    for shape in ((3, D), (3, 1, D), (1, 3, D)):
        add(
            fla_convolution.causal_conv1d_update, convolution.causal_conv1d_update, r(*shape), r(3, D, W), r(*shape),
            r(D, W), r(D), "silu",
        )  # fmt: skip

    logits, target, lse, dloss = r(R, 40), torch.randint(0, 40, (R,)), r(R).abs() + 4, r(R)
    target[3] = -100
    for options in ({}, dict(label_smoothing=0.1, lse_square_scale=0.01, logit_scale=1.5)):
        add(fla_cross_entropy.cross_entropy_fwd, losses.cross_entropy_fwd, logits, target, **options)
        add(fla_cross_entropy.cross_entropy_bwd, losses.cross_entropy_bwd, logits, target, lse, dloss, **options)
    add(fla_linear_cross_entropy.logsumexp_fwd, losses.logsumexp_fwd, logits, 0.5)
    add(
        fla_linear_cross_entropy.fused_linear_cross_entropy_bwd, losses.fused_linear_cross_entropy_bwd,
        torch.tensor(0.5), x, w[None].expand(3, D).contiguous(), b,
    )  # fmt: skip

    for interleaved in (False, True):
        angle = torch.outer(torch.arange(20.0), torch.rand(3))
        add(
            fla_rotary.rotary_embedding_fwdbwd, rotary.rotary_embedding_fwdbwd, r(2, 9, 2, 8), angle.cos(), angle.sin(),
            torch.tensor([-2, 4]), interleaved=interleaved, conjugate=True,
        )  # fmt: skip
        add(
            fla_rotary.rotary_embedding_fwdbwd, rotary.rotary_embedding_fwdbwd, r(1, 9, 2, 8), angle.cos(), angle.sin(),
            torch.tensor([3, 1]), torch.tensor([0, 5, 9]), interleaved,
        )  # fmt: skip
    for reverse in (False, True):
        add(
            cumsum.chunk_global_cumsum, linear_attention.chunk_global_cumsum, r(1, T, 2, 8), reverse,
            torch.tensor([0, 20, T]), 0.5,
        )  # fmt: skip
    return pairs


def as_given(x, dtype):
    """A copy (some functions write into their arguments) in the dtype of the test.

    Vectors, which hold statistics and weights, and tables of angles keep float32.
    """
    if not isinstance(x, torch.Tensor):
        return x
    return x.to(dtype) if x.is_floating_point() and x.ndim > 1 and dtype != x.dtype else x.clone()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [f16, f32], ids=str)
def test_functions(dtype):
    for theirs, ours, args, kwargs in function_calls():
        expected, actual = (
            f(*[as_given(a, dtype) for a in args], **{n: as_given(a, dtype) for n, a in kwargs.items()})
            for f in (theirs, ours)
        )
        expected, actual = (y if isinstance(y, tuple) else (y,) for y in (expected, actual))
        for a, e in zip(actual, expected, strict=True):
            try:
                close(a, e, TOLERANCE[dtype])
            except AssertionError as error:
                raise AssertionError(f"{theirs.__name__} {kwargs}: {error}") from error
            assert not isinstance(e, torch.Tensor) or a.dtype == e.dtype, theirs.__name__
