"""Norms, activations, convolution, rotary embedding and losses against their definitions, written out here."""

import pytest
import torch
import torch.nn.functional as F
from fla import modules
from fla.modules import activations, causal_conv1d, rotary
from fla.modules.fused_linear_cross_entropy.ops import logsumexp_fwd
from fla.modules.l2norm import l2_norm
from fla.modules.rotary.ops import rotary_embedding_ref

from tests.cpu.compare import check_gradients, close, compare, f64


def norm(x, w, b, eps, rms, groups=1):
    x = x.unflatten(-1, (groups, -1))
    h = x if rms else x - x.mean(-1, keepdim=True)
    y = h / (h.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y.flatten(-2) * w
    return y if b is None else y + b


@pytest.mark.parametrize("kind", ["rms", "layer", "group", "group_rms"])
@pytest.mark.parametrize("residual", [False, True])
def test_norms(kind, residual):
    D, groups = 24, 3 if "group" in kind else 1
    rms, eps = "rms" in kind, 1e-5
    make = {
        "rms": lambda: modules.RMSNorm(D, bias=True, eps=eps),
        "layer": lambda: modules.LayerNorm(D, bias=True, eps=eps),
        "group": lambda: modules.GroupNorm(groups, D, bias=True, eps=eps),
        "group_rms": lambda: modules.GroupNorm(groups, D, bias=True, eps=eps, is_rms_norm=True),
    }[kind]
    module = make()

    def ours(x, w, b, *r):
        return torch.func.functional_call(
            module, {"weight": w, "bias": b}, (x,), {"residual": r[0] if r else None, "prenorm": bool(r)}
        )

    def reference(x, w, b, *r):
        h = x + r[0] if r else x
        y = norm(h, w, b, eps, rms, groups)
        return (y, h) if r else y

    inputs = [torch.randn(2, 5, D) * 3 + 1, torch.randn(D), torch.randn(D)]
    inputs += [torch.randn(2, 5, D)] if residual else []
    compare(ours, reference, inputs)
    check_gradients(ours, inputs)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("activation", ["swish", "sigmoid"])
@pytest.mark.parametrize("residual", [False, True])
def test_gated_norms(kind, activation, residual):
    D = 24
    module = (modules.FusedRMSNormGated if kind == "rms" else modules.FusedLayerNormGated)(D, activation=activation)

    def ours(x, g, w, *r):
        return torch.func.functional_call(
            module, {"weight": w}, (x, g), {"residual": r[0] if r else None, "prenorm": bool(r)}
        )

    def reference(x, g, w, *r):
        h = x + r[0] if r else x
        y = norm(h, w, None, 1e-5, kind == "rms") * (F.silu(g) if activation == "swish" else g.sigmoid())
        return (y, h) if r else y

    inputs = [torch.randn(2, 5, D), torch.randn(2, 5, D), torch.randn(D)] + ([torch.randn(2, 5, D)] if residual else [])
    compare(ours, reference, inputs)
    check_gradients(ours, inputs)


@pytest.mark.parametrize("kind", ["rms", "rms_gated"])
def test_norm_and_linear(kind):
    """These recompute the norm's output in the backward pass."""
    D = 16
    module = modules.RMSNormLinear(D) if kind == "rms" else modules.FusedRMSNormSwishGateLinear(D)

    def ours(x, w, lw, lb, *g):
        return torch.func.functional_call(module, {"weight": w}, (x, *g, lw, lb))

    def reference(x, w, lw, lb, *g):
        y = norm(x, w, None, 1e-5, True)
        return F.linear(y * F.silu(g[0]) if g else y, lw, lb)

    inputs = [torch.randn(2, 5, D), torch.randn(D), torch.randn(7, D), torch.randn(7)]
    inputs += [torch.randn(2, 5, D)] if kind == "rms_gated" else []
    compare(ours, reference, inputs)


def test_norm_residual_in_float32():
    """The residual stream keeps float32, the output and the gradients have their input's dtype."""
    module = modules.RMSNorm(16)
    x = torch.randn(2, 3, 16, dtype=torch.bfloat16, requires_grad=True)
    r = torch.randn(2, 3, 16, requires_grad=True)
    y, h = module(x, residual=r, prenorm=True)
    assert (y.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    close(h, x + r)
    (y.float().sum() + h.sum()).backward()
    assert (x.grad.dtype, r.grad.dtype) == (torch.bfloat16, torch.float32)
    _, h = module(x, prenorm=True, residual_in_fp32=True)
    assert h.dtype == torch.float32


def test_l2_norm():
    def reference(x):
        return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    x = torch.randn(2, 5, 3, 16)
    compare(l2_norm, reference, [x])
    check_gradients(l2_norm, [x[:1, :2]])
    assert l2_norm(x, output_dtype=torch.bfloat16).dtype == torch.bfloat16


POWER = 3.0


def power_gate(x):
    xp = torch.where(x > 0, x, 1)
    return torch.where(x > 0, xp ** (POWER / (xp.sqrt() + 1)), x) * x.sigmoid()


@pytest.mark.parametrize(
    ("ours", "reference", "shapes"),
    [
        (activations.sigmoid, torch.sigmoid, [(3, 8)]),
        (activations.swish, F.silu, [(3, 8)]),
        (lambda x: activations.logsigmoid(x, 16.0), lambda x: F.logsigmoid(x) / 16, [(3, 8)]),
        (activations.swiglu, lambda x, y: F.silu(x) * y, [(3, 8)] * 2),
        (activations.powglu, lambda x, y: power_gate(x) * y, [(3, 8)] * 2),
        (activations.swiglu_linear, lambda x, y, w, b: F.linear(F.silu(x) * y, w, b), [(3, 8), (3, 8), (5, 8), (5,)]),
        (
            activations.powglu_linear,
            lambda x, y, w, b: F.linear(power_gate(x) * y, w, b),
            [(3, 8), (3, 8), (5, 8), (5,)],
        ),
    ],
    ids=["sigmoid", "swish", "logsigmoid", "swiglu", "powglu", "swiglu_linear", "powglu_linear"],
)
def test_activations(ours, reference, shapes):
    inputs = [torch.randn(s) * 2 for s in shapes]
    compare(ours, reference, inputs)
    check_gradients(ours, inputs)
    strided = [torch.randn(*s[:-1], s[-1] + 2)[..., : s[-1]] for s in shapes]
    close(ours(*strided), reference(*strided))


# ------------------------------------------------------------------ convolution


def conv(x, w, b=None, state=None, silu=True):
    """One sequence: x `[T, D]`, state `[D, W]` -> y `[T, D]`, last W inputs `[D, W]`"""
    W = w.shape[1]
    history = x.new_zeros(W, x.shape[1]) if state is None else state.T
    rows = torch.cat([history, x])
    y = torch.stack([(rows[t + 1 : t + 1 + W] * w.T).sum(0) for t in range(len(x))])
    y = y if b is None else y + b
    return (F.silu(y) if silu else y), rows[len(rows) - W :].T


@pytest.mark.parametrize("lengths", [None, [5, 1, 9, 2]], ids=["batch", "packed"])
@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_convolution(lengths, state, activation):
    D, W, N = 6, 4, 4
    T = 7 if lengths is None else sum(lengths)
    cu = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    inputs = [torch.randn(N if lengths is None else 1, T, D), torch.randn(D, W), torch.randn(D)]
    inputs += [torch.randn(inputs[0].shape)] + ([torch.randn(N, D, W)] if state else [])

    def ours(x, w, b, r, *h):
        return causal_conv1d.causal_conv1d(
            x, w, b, r, h[0] if h else None, output_final_state=True, activation=activation, cu_seqlens=cu
        )

    def reference(x, w, b, r, *h):
        parts = list(x) if lengths is None else x[0].split(lengths)
        ys, states = zip(
            *[conv(p, w, b, h[0][n] if h else None, bool(activation)) for n, p in enumerate(parts)], strict=True
        )
        y = torch.stack(ys) if lengths is None else torch.cat(ys)[None]
        return y + r, torch.stack(states)

    compare(ours, reference, inputs)
    check_gradients(ours, inputs)


@torch.no_grad()
@pytest.mark.parametrize("packed", [False, True])
def test_short_convolution_decodes(packed):
    """Prefill, a continuation of several tokens, then single tokens with the cache updated in place."""
    N, D, W, T = 3, 6, 4, 11
    module = causal_conv1d.ShortConvolution(D, W, bias=True)
    x = torch.randn(N, T, D)
    w, b = module.weight[:, 0], module.bias
    expected = torch.stack([conv(s, w, b)[0] for s in x])

    def pack(z):  # [N, T, D] -> what the module takes, its cu_seqlens
        return (z.reshape(1, -1, D), torch.arange(N + 1) * z.shape[1]) if packed else (z, None)

    cache, got = None, []
    for piece in (x[:, :2], x[:, 2:6], *x[:, 6:].split(1, 1)):
        z, cu = pack(piece)
        before = cache
        y, cache = module(z, cache=cache, output_final_state=True, cu_seqlens=cu)
        got.append(y.view(piece.shape))
        if piece.shape[1] == 1:
            assert cache is before
    close(torch.cat(got, 1), expected)
    close(cache, x[:, -W:].mT)
    y, none = module(pack(x)[0], cu_seqlens=pack(x)[1])
    assert none is None
    close(y.view_as(x), expected)


def test_convolution_of_split_channels():
    """`[B, T, H, D/H]` in, the same shape out."""
    x, w = torch.randn(2, 5, 3, 4), torch.randn(12, 4)
    y, _ = causal_conv1d.causal_conv1d(x, w)
    close(y.flatten(2), causal_conv1d.causal_conv1d(x.flatten(2), w)[0])


# ------------------------------------------------------------------ rotary embedding


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("partial", [False, True])
def test_rotary(interleaved, partial):
    B, T, H, D = 2, 7, 3, 8
    R = D // 4 if partial else D // 2
    angle = torch.outer(torch.arange(20.0), torch.rand(R))

    def ours(x, **kw):
        return rotary.rotary_embedding(x, angle.cos().to(x), angle.sin().to(x), interleaved, **kw)

    def reference(x, at):
        return rotary_embedding_ref(x, angle.cos().to(x)[at], angle.sin().to(x)[at], interleaved)

    x, t = torch.randn(B, T, H, D), torch.arange(T)
    compare(ours, lambda x: reference(x, t), [x])
    compare(lambda x: ours(x, seqlen_offsets=5), lambda x: reference(x, t + 5), [x])
    offsets = torch.tensor([3, 11])
    compare(lambda x: ours(x, seqlen_offsets=offsets), lambda x: reference(x, t + offsets[:, None]), [x])
    check_gradients(ours, [x])

    lengths = torch.tensor([4, 3])
    cu = torch.tensor([0, 4, 7])
    packed = torch.cat([torch.arange(n) for n in lengths])
    compare(lambda x: ours(x, cu_seqlens=cu), lambda x: reference(x, packed), [x[:1]])
    shifted = packed + offsets.repeat_interleave(lengths)
    compare(lambda x: ours(x, cu_seqlens=cu, seqlen_offsets=offsets), lambda x: reference(x, shifted), [x[:1]])


def test_rotary_of_left_padding_and_in_place():
    x, angle = torch.randn(2, 5, 1, 4), torch.outer(torch.arange(9.0), torch.rand(2))
    cos, sin = angle.cos(), angle.sin()
    y = rotary.rotary_embedding(x, cos, sin, seqlen_offsets=torch.tensor([-2, 0]))
    assert (y[0, :2] == 0).all()
    close(y[0, 2:], rotary.rotary_embedding(x[:1, 2:], cos, sin)[0])
    z = x.clone()
    assert rotary.rotary_embedding(z, cos, sin, inplace=True).data_ptr() == z.data_ptr()
    close(z, rotary.rotary_embedding(x, cos, sin))
    with pytest.raises(ValueError, match="9 positions"):
        rotary.rotary_embedding(x, cos, sin, seqlen_offsets=torch.tensor([5, 0]))


# ------------------------------------------------------------------ losses


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"label_smoothing": 0.1},
        {"logit_scale": 0.5},
        {"logit_softcapping": 2.0, "logit_scale": 1.5},
        {"lse_square_scale": 0.01, "label_smoothing": 0.1},
        {"ignore_index": 3, "inplace_backward": True},
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_cross_entropy(reduction, options):
    V, ignored = 11, options.get("ignore_index", -100)
    target = torch.randint(4, V, (7,))
    target[2] = ignored
    module = modules.FusedCrossEntropyLoss(reduction=reduction, return_z_loss=True, **options)

    def reference(logits):
        z = logits * options.get("logit_scale", 1)
        cap = options.get("logit_softcapping")
        z = z if cap is None else cap * torch.tanh(z / cap)
        z_loss = options.get("lse_square_scale", 0) * z.logsumexp(-1).square() * (target != ignored)
        smoothing = options.get("label_smoothing", 0.0)
        loss = F.cross_entropy(z, target, ignore_index=ignored, reduction="none", label_smoothing=smoothing) + z_loss
        count = {"mean": (target != ignored).sum(), "sum": 1}
        return (
            (loss, z_loss) if reduction == "none" else (loss.sum() / count[reduction], z_loss.sum() / count[reduction])
        )

    logits = torch.randn(7, V)
    close(module(logits, target)[1] + 1, reference(logits.to(f64))[1] + 1)
    compare(lambda x: module(x.clone(), target)[0], lambda x: reference(x)[0], [logits])
    if "inplace_backward" not in options:  # gradcheck goes back through one graph several times
        check_gradients(lambda x: module(x.clone(), target)[0], [logits])


def test_cross_entropy_overwrites_logits_only_if_asked():
    target = torch.tensor([1, 2])
    for inplace in (False, True):
        logits = torch.randn(2, 5).requires_grad_()
        x = logits * 1
        kept = x.detach().clone()
        modules.FusedCrossEntropyLoss(inplace_backward=inplace)(x, target).backward()
        assert torch.equal(x.detach(), kept) is not inplace


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "logit_softcapping": 3.0}, {"use_l2warp": True}])
def test_linear_cross_entropy(reduction, options):
    H, V = 8, 37
    target = torch.randint(0, V, (2, 9))
    target[0, 3] = -100
    module = modules.FusedLinearCrossEntropyLoss(reduction=reduction, **options)

    def reference(x, w, b):
        logits = F.linear(x, w, b)
        z = logits
        if cap := options.get("logit_softcapping"):
            z = cap * torch.tanh(z / cap)
        smoothing = options.get("label_smoothing", 0.0)
        loss = F.cross_entropy(z.flatten(0, 1), target.flatten(), reduction=reduction, label_smoothing=smoothing)
        if options.get("use_l2warp"):  # a gradient without a value
            penalty = 0.5e-4 * logits.max(-1).values.square().sum() / target.numel()
            loss = loss + penalty - penalty.detach()
        return loss

    inputs = [torch.randn(2, 9, H), torch.randn(V, H), torch.randn(V)]
    compare(lambda x, w, b: module(x, target, w, b), reference, inputs)
    compare(lambda x, w, b: 3 * module(x, target, w, b), lambda *xs: 3 * reference(*xs), inputs)


@pytest.mark.parametrize("counted", [0, 1, 2])
@pytest.mark.parametrize("linear", [False, True])
def test_hardly_anything_counts(linear, counted):
    """As in a recall task."""
    target = torch.full((3, 5), -100)
    target[1, 1 : 1 + counted] = torch.tensor([4, 2][:counted])
    inputs = [torch.randn(3, 5, 8), torch.randn(7, 8)]

    def loss(x, w):
        if linear:
            return modules.FusedLinearCrossEntropyLoss(logit_softcapping=3.0, reduction="sum")(x, target, w)
        logits = F.linear(x, w).flatten(0, 1)
        return modules.FusedCrossEntropyLoss(logit_softcapping=3.0, reduction="sum")(logits, target.flatten())

    def reference(x, w):
        z = 3 * torch.tanh(F.linear(x, w) / 3)
        return F.cross_entropy(z.flatten(0, 1), target.flatten(), reduction="sum")

    compare(loss, reference, inputs)


def test_logsumexp():
    x = torch.randn(3, 7)
    close(logsumexp_fwd(x, scale=0.5), (x * 0.5).logsumexp(-1))
    close(logsumexp_fwd(x, softcapping=2.0), (2 * torch.tanh(x / 2)).logsumexp(-1))


# ------------------------------------------------------------------ precision


def test_bfloat16_is_computed_in_float32():
    """A module in bfloat16 gives the float32 result on the rounded inputs, rounded once."""
    x = torch.randn(4, 64).bfloat16()
    w = torch.randn(64, 4).bfloat16()
    pairs = [
        (modules.RMSNorm(64).bfloat16()(x), modules.RMSNorm(64)(x.float())),
        (l2_norm(x), l2_norm(x.float())),
        (activations.swiglu(x, x), activations.swiglu(x.float(), x.float())),
        (causal_conv1d.causal_conv1d(x[None], w)[0], causal_conv1d.causal_conv1d(x[None].float(), w.float())[0]),
    ]
    for low, high in pairs:
        assert low.dtype == torch.bfloat16
        assert torch.equal(low, high.bfloat16())
