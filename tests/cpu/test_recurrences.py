"""fla's entry points for recurrences: against fla's naive references, and against the definitions written out here."""

import pytest
import torch
import torch.nn.functional as F
from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.gla import chunk_gla, fused_recurrent_gla
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn
from fla.ops.hgrn.naive import naive_recurrent_hgrn
from fla.ops.kda import chunk_kda, fused_recurrent_kda
from fla.ops.kda.gate import fused_kda_gate, naive_kda_gate, naive_kda_lowerbound_gate
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn
from fla.ops.linear_attn.naive import naive_recurrent_linear_attn
from fla.ops.mesa_net import chunk_mesa_net, mesa_net_decoding_one_step
from fla.ops.mesa_net.naive import naive_mesa_net_exact
from fla.ops.retention import chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention
from fla.ops.retention.naive import naive_retention
from fla.ops.simple_gla import (
    chunk_simple_gla,
    fused_chunk_simple_gla,
    fused_recurrent_simple_gla,
    parallel_simple_gla,
)
from fla.ops.simple_gla.naive import naive_parallel_simple_gla, naive_recurrent_simple_gla
from fla.ops.utils.cumsum import chunk_global_cumsum

from tests.cpu.compare import check_gradients, close, compare, f64

B, T, H, K, V = 2, 45, 2, 8, 12  # T: one full chunk and a part of one


def tensors(names, T=T, B=B, H=H, HV=None):
    """Random inputs by name, as the entry points take them."""
    HV = HV or H
    make = {
        "q": lambda: torch.randn(B, T, H, K),
        "k": lambda: F.normalize(torch.randn(B, T, H, K), dim=-1),
        "v": lambda: torch.randn(B, T, HV, V),
        "beta": lambda: torch.rand(B, T, HV),
        "g": lambda: F.logsigmoid(torch.randn(B, T, HV)),
        "gk": lambda: F.logsigmoid(torch.randn(B, T, HV, K)),
        "gv": lambda: F.logsigmoid(torch.randn(B, T, HV, V)),
        "h0": lambda: torch.randn(B, HV, K, V),
    }
    return [make[name]() for name in names.split()]


def definition(q, k, v, beta=None, g=None, gk=None, gv=None, h0=None, scale=K**-0.5):
    """The recurrences token by token; beta None is linear attention."""
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    h = q.new_zeros(q.shape[0], v.shape[2], K, V) if h0 is None else h0
    out = []
    for t in range(q.shape[1]):
        if g is not None:
            h = h * g[:, t, :, None, None].exp()
        if gk is not None:
            h = h * gk[:, t, :, :, None].exp()
        if gv is not None:
            h = h * gv[:, t, :, None, :].exp()
        n = v[:, t]
        if beta is not None:
            n = beta[:, t, :, None] * (n - (h * k[:, t, ..., None]).sum(-2))
        h = h + k[:, t, ..., None] * n[..., None, :]
        out.append(scale * (h * q[:, t, ..., None]).sum(-2))
    return torch.stack(out, 1), h


# ---------------------------------------------------------------------------- fla's naive references


def head_first(f):
    def g(*xs):
        o, h = f(*[x.transpose(1, 2) for x in xs])
        return o.transpose(1, 2), h

    return g


NAIVE = {
    "gla": (
        "q k v gk h0",
        lambda q, k, v, g, h0: naive_recurrent_gla(q, k, v, g, h0, True),
        {
            "chunk": lambda q, k, v, g, h0: chunk_gla(q, k, v, g, initial_state=h0, output_final_state=True),
            "fused_recurrent": lambda q, k, v, g, h0: fused_recurrent_gla(
                q, k, v, g, initial_state=h0, output_final_state=True
            ),
        },
    ),
    "simple_gla": (
        "q k v g h0",
        lambda q, k, v, g, h0: naive_recurrent_simple_gla(q, k, v, g, initial_state=h0),
        {
            f.__name__: lambda q, k, v, g, h0, f=f: f(q, k, v, g, initial_state=h0, output_final_state=True)
            for f in (chunk_simple_gla, fused_chunk_simple_gla, fused_recurrent_simple_gla)
        },
    ),
    "parallel_simple_gla": (
        "q k v g",
        naive_parallel_simple_gla,
        {"parallel": lambda q, k, v, g: parallel_simple_gla(q, k, v, g, output_attentions=True)},
    ),
    "retention": (
        "q k v",
        lambda q, k, v: head_first(lambda *xs: (naive_retention(*xs), None))(q, k, v)[0],
        {
            f.__name__: lambda q, k, v, f=f: f(q, k, v)[0]
            for f in (chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention)
        },
    ),
    "linear_attn": (
        "q k v h0",
        lambda q, k, v, h0: naive_recurrent_linear_attn(q, k, v, initial_state=h0, output_final_state=True),
        {
            f.__name__: lambda q, k, v, h0, f=f: f(q, k, v, initial_state=h0, output_final_state=True, normalize=False)
            for f in (chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn)
        },
    ),
    "delta_rule": (
        "q k v beta",
        head_first(delta_rule_recurrence),
        {
            f.__name__: lambda q, k, v, b, f=f: f(q, k, v, b, output_final_state=True)
            for f in (chunk_delta_rule, fused_recurrent_delta_rule)
        },
    ),
    "gated_delta_rule": (
        "q k v beta g h0",
        lambda q, k, v, b, g, h0: naive_recurrent_gated_delta_rule(q, k, v, b, g, None, h0, True),
        {
            f.__name__: lambda q, k, v, b, g, h0, f=f: f(q, k, v, g, beta=b, initial_state=h0, output_final_state=True)
            for f in (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule)
        },
    ),
    "kda": (
        "q k v gk beta h0",
        lambda q, k, v, g, b, h0: naive_recurrent_kda(q, k, v, g, b, None, h0, True),
        {
            f.__name__: lambda q, k, v, g, b, h0, f=f: f(q, k, v, g, b, initial_state=h0, output_final_state=True)
            for f in (chunk_kda, fused_recurrent_kda)
        },
    ),
}


@pytest.mark.parametrize(("family", "entry"), [(f, e) for f, (_, _, entries) in NAIVE.items() for e in entries])
def test_against_fla_naive(family, entry):
    names, naive, entries = NAIVE[family]
    compare(entries[entry], naive, tensors(names), dtype=torch.float32)


@pytest.mark.parametrize("entry", [chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn])
@pytest.mark.parametrize("carried", [False, True])
def test_normalised_linear_attention(entry, carried):
    def flat(result):
        o, (h, z) = result
        return o, h, z

    q, k, v, h0 = tensors("q k v h0")
    inputs = [q.abs() + 0.1, k.abs() + 0.1, v] + ([h0, torch.rand(B, 1, H, K)] if carried else [])

    def run(f):
        return lambda q, k, v, *s: flat(
            f(q, k, v, initial_state=tuple(s) if s else None, output_final_state=True, normalize=True)
        )

    compare(run(entry), run(naive_recurrent_linear_attn), inputs, dtype=torch.float32)


# ---------------------------------------------------------------------------- options, against the definition


def test_heads_shared_among_values():
    """Fewer heads of q and k than of v."""
    q, k, v, beta, g, h0 = inputs = tensors("q k v beta g h0", HV=3 * H)
    for f in (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule):
        compare(
            lambda q, k, v, b, g, h, f=f: f(q, k, v, g, beta=b, initial_state=h, output_final_state=True),
            lambda q, k, v, b, g, h: definition(q, k, v, b, g, h0=h),
            inputs,
        )
    gk = tensors("gk", HV=3 * H)[0]
    for f in (chunk_kda, fused_recurrent_kda):
        compare(
            lambda q, k, v, b, g, h, f=f: f(q, k, v, g, b, initial_state=h, output_final_state=True),
            lambda q, k, v, b, g, h: definition(q, k, v, b, gk=g, h0=h),
            [q, k, v, beta, gk, h0],
        )
    with pytest.raises(ValueError, match="3 heads must be a multiple of the 2 heads"):
        chunk_gated_delta_rule(q, k, v[:, :, :3], g[..., :3], beta[..., :3])


def l2(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


@pytest.mark.parametrize("neg_eigval", [False, True])
def test_gates_and_norms_in_kernel(neg_eigval):
    q, v, b, g = tensors("q v beta g")
    k, A_log, dt_bias = torch.randn(B, T, H, K), torch.rand(H), torch.randn(H)
    b = torch.randn(b.shape)
    options = dict(
        use_qk_l2norm_in_kernel=True,
        use_gate_in_kernel=True,
        use_beta_sigmoid_in_kernel=True,
        allow_neg_eigval=neg_eigval,
        scale=0.3,
        output_final_state=True,
    )

    def beta(b):
        return b.sigmoid() * (2 if neg_eigval else 1)

    def both(function, reference, inputs):
        """The gradients of A_log and dt_bias are sums over all tokens in which most cancels: hence float64 too."""
        compare(function, reference, inputs, 1e-4)
        doubles = [x.to(f64).requires_grad_() for x in inputs]
        y, expected = function(*doubles), reference(*doubles)
        seeds = [torch.randn_like(x) for x in y]
        actual = torch.autograd.grad(y, doubles, seeds)
        for a, b in zip((*y, *actual), (*expected, *torch.autograd.grad(expected, doubles, seeds)), strict=True):
            close(a, b, 1e-10)

    for f in (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule):
        both(
            lambda q, k, v, b, g, A, d, f=f: f(q, k, v, g, beta=b, A_log=A, dt_bias=d, **options),
            lambda q, k, v, b, g, A, d: definition(l2(q), l2(k), v, beta(b), -A.exp() * F.softplus(g + d), scale=0.3),
            [q, k, v, b, g, A_log, dt_bias],
        )
    gk, dt_bias = torch.randn(B, T, H, K), torch.randn(H * K)
    for f in (chunk_kda, fused_recurrent_kda):
        for bound in (None, -4.0):

            def gate(g, A, d, bound=bound):
                x, A = g + d.view(H, K), A[:, None].exp()
                return -A * F.softplus(x) if bound is None else bound * (A * x).sigmoid()

            both(
                lambda q, k, v, b, g, A, d, f=f, bound=bound: f(
                    q, k, v, g, b, A_log=A, dt_bias=d, lower_bound=bound, **options
                ),
                lambda q, k, v, b, g, A, d, gate=gate: definition(
                    l2(q), l2(k), v, beta(b), gk=gate(g, A, d), scale=0.3
                ),
                [q, k, v, b, gk, A_log, dt_bias],
            )


def test_kda_gate():
    g, A_log, dt_bias = torch.randn(B, T, H, K), torch.rand(H), torch.randn(H * K)
    compare(fused_kda_gate, naive_kda_gate, [g, A_log, dt_bias], dtype=torch.float32)
    compare(
        lambda *xs: fused_kda_gate(*xs, lower_bound=-3.0),
        lambda *xs: naive_kda_lowerbound_gate(*xs, lower_bound=-3.0),
        [g, A_log, dt_bias],
        dtype=torch.float32,
    )


def test_delta_rule_options():
    q, k, v, b, _ = inputs = tensors("q k v beta h0")
    for f in (chunk_delta_rule, fused_recurrent_delta_rule):
        compare(
            lambda q, k, v, b, h, f=f: f(
                q, k, v, b, scale=0.7, initial_state=h, output_final_state=True, use_qk_l2norm_in_kernel=True
            ),
            lambda q, k, v, b, h: definition(l2(q), l2(k), v, b, h0=h, scale=0.7),
            inputs,
        )
    assert fused_recurrent_delta_rule(q, k, v, b)[1] is None
    close(fused_recurrent_delta_rule(q, k, v)[0], definition(q, k, v, torch.ones_like(b))[0])


def test_constant_gates():
    g_gamma = -torch.rand(H)
    for f in (chunk_simple_gla, fused_chunk_simple_gla, fused_recurrent_simple_gla):
        compare(
            lambda q, k, v, f=f: f(q, k, v, g_gamma=g_gamma, output_final_state=True),
            lambda q, k, v: definition(q, k, v, g=g_gamma.to(f64).expand(B, T, H)),
            tensors("q k v"),
        )


def test_gates_on_value_channels():
    compare(
        lambda q, k, v, gk, gv, h: fused_recurrent_gla(q, k, v, gk, gv, initial_state=h, output_final_state=True),
        lambda q, k, v, gk, gv, h: definition(q, k, v, gk=gk, gv=gv, h0=h),
        tensors("q k v gk gv h0", T=7),
    )
    compare(
        lambda q, k, v, b, g, gk, gv: fused_recurrent_gated_delta_rule(q, k, v, g, gk, gv, b, output_final_state=True),
        lambda q, k, v, b, g, gk, gv: definition(q, k, v, b, g, gk, gv),
        tensors("q k v beta g gk gv", T=7),
    )


def test_beta_on_value_channels():
    q, k, v, g = tensors("q k v g", T=7)
    compare(
        lambda q, k, v, g, b: fused_recurrent_gated_delta_rule(q, k, v, g, beta=b)[0],
        # one state for each value channel is the scalar rule
        lambda q, k, v, g, b: torch.stack(
            [definition(q, k, v[..., i : i + 1].expand_as(v), b[..., i], g)[0][..., 0] for i in range(V)],
            -1,
        ),
        [q, k, v, g, torch.rand(v.shape)],
    )


@pytest.mark.parametrize("lengths", [None, [5, 40]])
def test_reverse(lengths):
    cu = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    q, k, v, gk, h0 = tensors("q k v gk h0", B=1 if lengths else B)
    h0 = torch.randn(2, H, K, V)

    def reference(q, k, v, g, h):
        parts = [x.split(lengths or T, 1) for x in (q, k, v, g)]
        done = [
            definition(*[x.flip(1) for x in part[:3]], gk=part[3].flip(1), h0=h[n : n + 1] if lengths else h)
            for n, part in enumerate(zip(*parts, strict=True))
        ]
        return torch.cat([o.flip(1) for o, _ in done], 1), torch.cat([s for _, s in done])

    compare(
        lambda q, k, v, g, h: fused_recurrent_gla(
            q, k, v, g, initial_state=h, output_final_state=True, reverse=True, cu_seqlens=cu
        ),
        reference,
        [q, k, v, gk, h0],
    )


@pytest.mark.parametrize("steepest", [3.0, 40.0, 500.0])
def test_steep_gates(steepest):
    """Gates from 0 to exp(-500) a token, and gentle stretches between steep ones.

    The sum of the gates over a chunk is good to
    float32's 6e-8 of itself, and so is every decay.
    """
    q, k, v, b, h0 = tensors("q k v beta h0")
    g = -steepest * torch.rand(B, T, H) ** 4
    gk = -steepest * torch.rand(B, T, H, K) ** 4
    gk[:, 32:] = -0.1 * torch.rand(B, T - 32, H, K)
    gk[:, 32] = -steepest  # a steep start of a chunk that is gentle otherwise
    tol = 1e-5 * max(1, steepest / 10)
    compare(
        lambda q, k, v, g, h: chunk_gla(q, k, v, g, initial_state=h, output_final_state=True),
        lambda q, k, v, g, h: definition(q, k, v, gk=g, h0=h),
        [q, k, v, gk, h0],
        tol,
    )
    compare(
        lambda q, k, v, g, b, h: chunk_kda(q, k, v, g, b, initial_state=h, output_final_state=True),
        lambda q, k, v, g, b, h: definition(q, k, v, b, gk=g, h0=h),
        [q, k, v, gk, b, h0],
        tol,
    )
    compare(
        lambda q, k, v, g, b, h: chunk_gated_delta_rule(q, k, v, g, b, initial_state=h, output_final_state=True),
        lambda q, k, v, g, b, h: definition(q, k, v, b, g, h0=h),
        [q, k, v, g, b, h0],
        tol,
    )


@pytest.mark.parametrize("name", ["q", "gk", "h0"])
def test_nan_stays_with_its_sequence(name):
    """NaN in the first of two sequences neither hangs nor reaches the second."""
    names = "q k v gk beta h0"
    inputs = dict(zip(names.split(), tensors(names), strict=True))
    inputs[name][0, 0] = torch.nan

    def call(x):
        return chunk_kda(*[x[n] for n in names.split()[:5]], initial_state=x["h0"], output_final_state=True)

    o, _ = call(inputs)
    assert o[0].isnan().any()
    close(o[1:], call({n: x[1:] for n, x in inputs.items()})[0])


# ---------------------------------------------------------------------------- the layouts every entry point shares

CALLS = {
    "gla": ("q k v gk", lambda q, k, v, g, **o: chunk_gla(q, k, v, g, output_final_state=True, **o)),
    "simple_gla": ("q k v g", lambda q, k, v, g, **o: chunk_simple_gla(q, k, v, g, output_final_state=True, **o)),
    "fused_recurrent_simple_gla": (
        "q k v g",
        lambda q, k, v, g, **o: fused_recurrent_simple_gla(q, k, v, g, output_final_state=True, **o),
    ),
    "fused_recurrent_gla": (
        "q k v gk gv",
        lambda q, k, v, gk, gv, **o: fused_recurrent_gla(q, k, v, gk, gv, output_final_state=True, **o),
    ),
    "delta_rule": ("q k v beta", lambda q, k, v, b, **o: chunk_delta_rule(q, k, v, b, output_final_state=True, **o)),
    "gated_delta_rule": (
        "q k v beta g",
        lambda q, k, v, b, g, **o: chunk_gated_delta_rule(q, k, v, g, b, output_final_state=True, **o),
    ),
    "kda": ("q k v beta gk", lambda q, k, v, b, g, **o: chunk_kda(q, k, v, g, b, output_final_state=True, **o)),
}


@pytest.mark.parametrize("family", CALLS)
@pytest.mark.parametrize(
    "lengths", [[33, 1, 70, 20], [5, 0, 64, 7], [9, 9, 9], [1, 1, 1, 1]], ids=lambda n: "-".join(map(str, n))
)
def test_packed_is_separate(family, lengths):
    """Lengths longer and shorter than a chunk, in no order, none at all, and all equal; gradients and states included."""
    names, call = CALLS[family]
    cu = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    inputs = [*tensors(names, T=sum(lengths), B=1), torch.randn(len(lengths), H, K, V)]

    def separate(*xs):
        *xs, h0 = xs
        o, h = [], []
        for n, part in enumerate(zip(*[x.split(lengths, 1) for x in xs], strict=True)):
            if lengths[n]:
                o_n, h_n = call(*part, initial_state=h0[n : n + 1])
            o.append(o_n if lengths[n] else part[2])
            h.append(h_n if lengths[n] else h0[n : n + 1])
        return torch.cat(o, 1), torch.cat(h)

    compare(lambda *xs: call(*xs[:-1], initial_state=xs[-1], cu_seqlens=cu), separate, inputs)


@pytest.mark.parametrize("family", CALLS)
def test_gradcheck(family):
    names, call = CALLS[family]
    inputs = tensors(names, T=9, B=3, H=1)
    check_gradients(lambda *xs: call(*xs[:-1], initial_state=xs[-1]), [*inputs, torch.randn(3, 1, K, V)])
    packed = [x.reshape(1, 27, *x.shape[2:]) for x in inputs]
    cu = torch.tensor([0, 17, 19, 27])
    check_gradients(lambda *xs: call(*xs[:-1], initial_state=xs[-1], cu_seqlens=cu), [*packed, torch.randn(3, 1, K, V)])


@pytest.mark.parametrize("family", ["gla", "kda"])
def test_gradcheck_with_steep_gates(family):
    """So steep that the scores are halved down to rows."""
    names, call = CALLS[family]
    *inputs, g = tensors(names, T=16, B=1, H=1)
    check_gradients(call, [*inputs, 15 * g])


@pytest.mark.parametrize("family", CALLS)
def test_token_by_token_is_the_sequence(family):
    names, call = CALLS[family]
    inputs = tensors(names, T=40)
    o, h = call(*inputs)
    outputs, state = [], None
    for piece in (slice(0, 33), slice(33, 36), *(slice(t, t + 1) for t in range(36, 40))):
        y, state = call(*[x[:, piece] for x in inputs], initial_state=state)
        outputs.append(y)
    close(torch.cat(outputs, 1), o)
    close(state, h)


@pytest.mark.parametrize("family", ["gla", "simple_gla", "fused_recurrent_gla", "gated_delta_rule", "kda"])
def test_state_layouts(family):
    names, call = CALLS[family]
    inputs, h0 = tensors(names), torch.randn(B, H, K, V)
    o, h = call(*inputs, initial_state=h0)
    o_v, h_v = call(*inputs, initial_state=h0.mT.contiguous(), state_v_first=True)
    close(o_v, o)
    close(h_v.mT, h)
    if family not in ("gla", "simple_gla"):
        with pytest.warns(DeprecationWarning, match="state_v_first"):
            assert torch.equal(call(*inputs, transpose_state_layout=True)[1], call(*inputs, state_v_first=True)[1])


@pytest.mark.parametrize("family", CALLS)
def test_low_precision(family):
    """bfloat16 in and out, float32 inside: the float32 result on the rounded inputs, rounded once. Autocast changes nothing."""
    names, call = CALLS[family]
    inputs = [x.bfloat16() for x in tensors(names)]
    o, h = call(*inputs)
    o32, h32 = call(*[x.float() for x in inputs])
    assert (o.dtype, h.dtype) == (torch.bfloat16, torch.float32)
    close(o, o32, 2**-8)
    close(h, h32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(*[x.float() for x in inputs])[0], o32)


# ---------------------------------------------------------------------------- arguments


def test_bad_arguments():
    q, k, v, g, b = tensors("q k v g beta")
    cu = torch.tensor([0, 20, T])
    with pytest.raises(ValueError, match="batch size 2"):
        chunk_simple_gla(q, k, v, g, cu_seqlens=cu)
    one = [x[:1] for x in (q, k, v, g)]
    for bad in ([0, 20, T + 1], [1, T], [0, 30, 20, T]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            chunk_simple_gla(*one, cu_seqlens=torch.tensor(bad))
    with pytest.raises(ValueError, match="2 sequences, got 3"):
        chunk_simple_gla(*one, cu_seqlens=cu, initial_state=torch.zeros(3, H, K, V))
    with pytest.raises(TypeError, match="chunksize"):
        chunk_simple_gla(q, k, v, g, chunksize=64)
    with pytest.raises(ValueError, match="use_beta_sigmoid_in_kernel"):
        fused_recurrent_gated_delta_rule(q, k, v, g, beta=b, allow_neg_eigval=True)
    with pytest.raises(ValueError, match="A_log"):
        chunk_gated_delta_rule(q, k, v, g, b, use_gate_in_kernel=True)
    for option in ({"cp_context": object()}, {"use_graph": True}, {"return_intermediate_states": True}):
        with pytest.raises(NotImplementedError, match=next(iter(option))):
            chunk_kda(q, k, v, k, b, **option)
    with pytest.raises(ValueError, match="lower_bound"):
        chunk_kda(q, k, v, k, b, safe_gate=True, use_gate_in_kernel=True)
    with pytest.raises(ValueError, match="output_attentions"):
        parallel_simple_gla(*one, output_attentions=True, cu_seqlens=cu)
    with pytest.raises(ValueError, match="same shape"):
        chunk_delta_rule(q[:, :3], k, v, b)


# ---------------------------------------------------------------------------- hgrn, mesa_net, sums


@pytest.mark.parametrize("entry", [chunk_hgrn, fused_recurrent_hgrn])
def test_hgrn(entry):
    D = 6
    inputs = [torch.randn(B, T, D), F.logsigmoid(torch.randn(B, T, D)), torch.randn(B, D)]

    def call(x, g, h):
        return entry(x, g, h, output_final_state=True)

    def naive(x, g, h):
        return naive_recurrent_hgrn(x, g, h, output_final_state=True)

    compare(call, naive, inputs, dtype=torch.float32)
    compare(lambda x, g: entry(x, g)[0], lambda x, g: naive_recurrent_hgrn(x, g)[0], inputs[:2], dtype=torch.float32)
    check_gradients(call, inputs)
    o, h = call(*[x.bfloat16() for x in inputs])
    assert (o.dtype, h.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("carried", [False, True])
def test_hgrn_packed(carried):
    D, lengths = 6, [7, 0, 1, 12]
    cu = torch.tensor([0, *lengths]).cumsum(0)
    inputs = [torch.randn(1, 20, D), F.logsigmoid(torch.randn(1, 20, D))] + ([torch.randn(4, D)] if carried else [])

    def separate(x, g, *h0):
        o, h = [], []
        for n, part in enumerate(zip(x.split(lengths, 1), g.split(lengths, 1), strict=True)):
            state = h0[0][n : n + 1] if carried else None
            o_n, h_n = (
                fused_recurrent_hgrn(*part, state, True)
                if lengths[n]
                else (part[0], x.new_zeros(1, D) if state is None else state)
            )
            o.append(o_n)
            h.append(h_n)
        return torch.cat(o, 1), torch.cat(h)

    compare(lambda x, g, *h: fused_recurrent_hgrn(x, g, *h, output_final_state=True, cu_seqlens=cu), separate, inputs)
    with pytest.raises(ValueError, match="4 sequences, got 3"):
        fused_recurrent_hgrn(*inputs[:2], torch.zeros(3, D), cu_seqlens=cu)


def test_mesa_net():
    q, k, g, b = tensors("q k g beta")
    v, lamb, h = torch.randn(B, T, H, K), 0.25 + torch.rand(H, K), torch.randn(B, H, K, K)
    inputs = [q, k, v, g, b, lamb, (h @ h.mT) / K, torch.randn(B, H, K, K)]
    compare(
        lambda q, k, v, g, b, lamb, hk, hv: chunk_mesa_net(q, k, v, g, b, lamb, hk, hv, output_final_state=True),
        lambda q, k, v, g, b, lamb, hk, hv: naive_mesa_net_exact(q, k, v, g, lamb, b, hk, hv),
        inputs,
        dtype=torch.float32,
    )
    o, hk, hv = chunk_mesa_net(q, k, v, g, b, lamb, output_final_state=True)
    *_, hk1, hv1 = chunk_mesa_net(*[x[:, :-1] for x in (q, k, v, g, b)], lamb, output_final_state=True)
    step = mesa_net_decoding_one_step(*[x[:, -1] for x in (q, k, v, g)], lamb, b[:, -1], hk1, hv1)
    for actual, expected in zip(step, (o[:, -1], hk, hv), strict=True):
        close(actual, expected)
    assert chunk_mesa_net(q, k, v, g, b, lamb)[1:] == (None, None)


@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sum(reverse):
    def reference(x):
        return x.flip(1).cumsum(1).flip(1) if reverse else x.cumsum(1)

    x, lengths = torch.randn(1, 12, 3), [5, 0, 7]
    close(chunk_global_cumsum(x, reverse), reference(x))
    close(
        chunk_global_cumsum(x[..., None].expand(1, 12, 3, 2), reverse, scale=2.0),
        2 * reference(x)[..., None].expand(1, 12, 3, 2),
    )
    packed = chunk_global_cumsum(x, reverse, cu_seqlens=torch.tensor([0, 5, 5, 12]))
    close(packed, torch.cat([reference(part) for part in x.split(lengths, 1)], 1))
    assert chunk_global_cumsum(x.bfloat16(), output_dtype=None).dtype == torch.bfloat16
