"""The matched family: each rule against its definition, caches, padding, packing, checkpoints, configuration."""

import json

import pytest
import torch
from fla.models.utils import Cache
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fla_mesa.layers import MesaNet
from fla_mesa.layers.matched import RULES, rule
from fla_mesa.layers.matched.delta import DeltaRule
from fla_mesa.layers.matched.rg_lru import RGLRU
from fla_mesa.layers.matched.softmax import SoftmaxAttention
from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MatchedModel, MesaNetConfig, MesaNetForCausalLM
from fla_mesa.models.configuration_mesanet import BEFORE_PAPER_START
from fla_mesa.ops.backends import l2_normalize
from fla_mesa.ops.gka import naive_gka_exact
from fla_mesa.ops.mlstm import naive_mlstm

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "initializer_range": 0.2,
}


def build(rule: str = "mesa", **changes) -> MatchedForCausalLM:
    return MatchedForCausalLM(MatchedConfig(rule=rule, **{**TINY, **changes})).eval()


def takes(rule: str, setting: str) -> bool:
    """Whether a setting has a meaning for a rule."""
    return setting in RULES[rule].mixer.settings()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 48, (batch, length))


def assert_same(got: torch.Tensor, want: torch.Tensor) -> None:
    """To 1e-4 of the largest entry."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))


def forget_gates(model: torch.nn.Module) -> list[list[float]]:
    """Of each layer that has some: the gates of its heads at zero input."""
    return [module.a_proj.bias.sigmoid().tolist() for module in model.modules() if hasattr(module, "a_proj")]


@pytest.mark.parametrize("rule", [name for name in RULES if takes(name, "gamma_init")])
def test_forget_gates_start_as_configured_and_stay_as_trained(rule, tmp_path):
    """In models, which transformers initializes once more after the layers have been made."""
    model = AutoModelForCausalLM.from_config(MatchedConfig(rule=rule, gamma_init=(0.6, 0.9), **TINY))
    gates = forget_gates(model)
    assert gates and gates == [pytest.approx([0.6, 0.9])] * len(gates)
    assert forget_gates(build(rule)) == [[0.5, 0.5]] * len(gates)
    for module in model.modules():
        if hasattr(module, "a_proj"):
            torch.nn.init.constant_(module.a_proj.bias, 0.0)
    model.save_pretrained(tmp_path)
    assert forget_gates(AutoModelForCausalLM.from_pretrained(tmp_path)) == [[0.5, 0.5]] * len(gates)


@pytest.mark.parametrize("rule", ["gated_delta", "gated_linear", "mlstm"])
def test_only_the_rule_differs_from_mesa_at_the_start(rule):
    """Rules with Mesa's projections and gates draw the same numbers from one seed."""
    starts = []
    for name in ("mesa", rule):
        torch.manual_seed(0)
        starts.append(dict(build(name, gamma_init=(0.6, 0.9)).named_parameters()))
    mesa, other = starts
    assert mesa.keys() - other.keys() == {name for name in mesa if name.endswith("lambda_params")}
    for name, values in other.items():
        assert torch.equal(values, mesa[name]), name


# The rules, a token at a time, in float64


def recurrence(rule: str, q, k, v, gamma, beta):
    """q, k, v ``[T, d]``, gamma, beta ``[T]`` -> o ``[T, d]``; straight from the docstrings."""
    S, out = torch.zeros(q.shape[1], v.shape[1], dtype=q.dtype), []
    for t in range(len(q)):
        if rule == "gated_linear":
            S = gamma[t] * S + beta[t] * torch.outer(k[t], v[t])
        elif rule == "gated_linear_no_input_gate":
            S = gamma[t] * S + torch.outer(k[t], v[t])
        elif rule == "delta":
            S = S + beta[t] * torch.outer(k[t], v[t] - S.T @ k[t])
        elif rule == "gated_delta":
            S = gamma[t] * S + beta[t] * torch.outer(k[t], v[t] - gamma[t] * (S.T @ k[t]))
        out.append(S.T @ q[t])
    return torch.stack(out)


@pytest.mark.parametrize("rule", ["gated_linear", "gated_linear_no_input_gate", "delta", "gated_delta"])
def test_a_linear_rule_is_its_definition(rule):
    layer = build(rule).model.layers[0].attn
    x = torch.randn(1, 70, 32)
    with torch.no_grad():
        q, k, v, _ = layer._qkv(x, None, False, None)
        g, beta = layer._gates(x)
        assert (g is None) == (rule == "delta") and (beta is None) == (rule == "gated_linear_no_input_gate")
        ones = torch.ones(1, 70, 2)
        gamma, beta = (ones if g is None else g.exp()), (ones if beta is None else beta)
        q, k = l2_normalize(q.double()), l2_normalize(k.double())
        heads = [recurrence(rule, *(y[0, :, h].double() for y in (q, k, v, gamma, beta))) for h in range(2)]
        want = layer._output(torch.stack(heads, 1)[None].float(), x)
        assert_same(layer(x)[0], want)


@pytest.mark.parametrize(
    ("rule", "scale", "window"),
    [("softmax", 0.25, 99), ("softmax_matched", 4.0, 99)] + [("sliding_softmax", 0.25, w) for w in (1, 2, 5, 70)],
)
def test_softmax_is_its_definition(rule, scale, window):
    layer = build(rule, **({"window_size": window} if rule == "sliding_softmax" else {})).model.layers[0].attn
    x, T, d = torch.randn(1, 90, 32), 90, 16
    with torch.no_grad():
        q, k, v, _ = layer._qkv(x, None, False, None)
        if rule == "softmax_matched":
            q, k = l2_normalize(q), l2_normalize(k)
        else:  # as in Llama, q and k are linear maps of the input
            assert torch.equal(q.flatten(-2), layer.q_proj(x)) and torch.equal(v.flatten(-2), layer.v_proj(x))
        at = torch.arange(T)
        turn = torch.polar(torch.ones(T, d // 2), torch.outer(at, 1e4 ** (-torch.arange(8) / 8))).to(torch.complex128)
        q, k = (torch.complex(*y[0].double().chunk(2, -1)) * turn[:, None] for y in (q, k))  # [T, H, d/2]
        scores = scale * torch.einsum("thd,shd->hts", q, k.conj()).real
        seen = (at <= at[:, None]) & (at > at[:, None] - window)
        want = torch.einsum("hts,shd->thd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v[0].double())
        assert_same(layer(x)[0], layer._output(want[None].float(), x))


@pytest.mark.parametrize("length", [1, 3, 80])
def test_the_cache_of_a_window_holds_no_more_than_the_window(length):
    model, cache = build("sliding_softmax", window_size=5), Cache()
    with torch.no_grad():
        for piece in tokens(2, length).split(7, 1):
            model(piece, past_key_values=cache, use_cache=True)
    k, v, count = cache[0]["recurrent_state"]
    assert k.shape == v.shape == (2, min(length, 4), 32) and count.tolist() == [min(length, 4)] * 2


def test_mlstm_is_its_definition():
    layer = build("mlstm").model.layers[0].attn
    x = 3 * torch.randn(1, 70, 32)
    with torch.no_grad():
        q, k, v, _ = layer._qkv(x, None, False, None)
        gates = layer.a_proj(x).double().sigmoid().log(), layer.b_proj(x)
        want = layer._output(naive_mlstm(q, k / 4, v, *gates)[0].float(), x)
        assert_same(layer(x)[0], want)


def test_gka_is_its_definition():
    layer = build("gka", ridge_ratio=0.05, chebyshev_steps=60).model.layers[0].attn
    x = torch.randn(1, 70, 32)
    with torch.no_grad():
        q, k, v, _ = layer._qkv(x, None, False, None)
        beta, alpha = layer.b_proj(x).sigmoid(), layer.alpha_proj(x).sigmoid()
        q, k = l2_normalize(q.double()), l2_normalize(k.double())
        o, _ = naive_gka_exact(q, k, v, layer.a_proj(x).double().sigmoid().log(), beta, alpha, ridge_ratio=0.05)
        assert_same(layer(x)[0], layer._output(o.float(), x))


def test_rg_lru_is_its_definition():
    layer = build("rg_lru").model.layers[0].attn
    assert isinstance(layer, RGLRU)
    x = torch.randn(1, 30, 32)
    with torch.no_grad():
        u = layer.conv1d(layer.x_proj(x))[0][0]
        blocks = {name: torch.block_diag(*getattr(layer, name).weight) for name in ("r_gate", "i_gate")}
        r, i = ((u @ blocks[name] + getattr(layer, name).bias).sigmoid() for name in ("r_gate", "i_gate"))
        a = torch.exp(-8 * torch.nn.functional.softplus(layer.decay_params) * r)
        h, out = torch.zeros(u.shape[1]), []
        for t in range(30):
            h = a[t] * h + (1 - a[t] ** 2).sqrt() * i[t] * u[t]
            out.append(h)
        want = layer.o_proj(torch.nn.functional.gelu(layer.y_proj(x[0])) * torch.stack(out))
        assert_same(layer(x)[0][0], want)
        start = torch.exp(-8 * torch.nn.functional.softplus(layer.decay_params))
        assert 0.899 < start.min() < start.max() < 0.9991


def test_mesa_in_the_family_is_mesanet():
    matched, mesanet, x = build("mesa"), MesaNetForCausalLM(MesaNetConfig(**TINY)).eval(), tokens(2, 30)
    assert isinstance(matched.model.layers[0].attn, MesaNet)
    matched.load_state_dict(mesanet.state_dict())
    with torch.no_grad():
        assert torch.equal(matched(x).logits, mesanet(x).logits)


# Caches, padding, packing


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("changes", [{}, {"use_short_conv": False, "use_output_gate": True}], ids=["plain", "changed"])
def test_a_cached_call_of_any_length_goes_on(rule, changes):
    model, x = build(rule, **{name: value for name, value in changes.items() if takes(rule, name)}), tokens(2, 40)
    with torch.no_grad():
        want = model(x).logits
        for pieces in ([40], [1] * 40, [17, 1, 1, 20, 1], [3, 37]):
            cache, got = Cache(), []
            for piece in x.split(pieces, 1):
                got.append(model(piece, past_key_values=cache, use_cache=True).logits)
            assert_same(torch.cat(got, 1), want)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("pieces", [[24], [10, 1, 13], [4, 20], [23, 1]])
def test_left_padding_changes_nothing(rule, pieces):
    model, x, pads = build(rule), tokens(3, 24), (0, 5, 15)
    mask = torch.ones_like(x)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    with torch.no_grad():
        cache, got, end = Cache(), [], 0
        for piece in x.split(pieces, 1):
            end += piece.shape[1]
            got.append(model(piece, attention_mask=mask[:, :end], past_key_values=cache, use_cache=True).logits)
        got = torch.cat(got, 1)
        assert bool(torch.isfinite(got).all())
        for row, pad in enumerate(pads):
            assert_same(got[row, pad:], model(x[row : row + 1, pad:]).logits[0])


@pytest.mark.parametrize("rule", RULES)
def test_right_padding_and_holes_change_nothing(rule):
    model, x = build(rule), tokens(2, 20)
    mask = torch.ones_like(x)
    mask[0, 14:], mask[1, 5:9] = 0, 0
    with torch.no_grad():
        cache = Cache()
        model(x, attention_mask=mask, past_key_values=cache, use_cache=True)
        next_mask = torch.cat([mask, torch.ones(2, 3, dtype=mask.dtype)], 1)
        new = tokens(2, 3)
        got = model(new, attention_mask=next_mask, past_key_values=cache, use_cache=True).logits
        for row in range(2):
            alone = torch.cat([x[row][mask[row] == 1], new[row]])[None]
            assert_same(got[row], model(alone).logits[0, -3:])


@pytest.mark.parametrize("rule", RULES)
def test_packed_sequences_are_separate_ones(rule):
    model, lengths = build(rule).train(), (7, 1, 20, 12)
    x = tokens(1, sum(lengths))
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    packed = model(x, cu_seqlens=cu_seqlens).logits
    separate = torch.cat([model(part).logits for part in x.split(lengths, 1)], 1)
    assert_same(packed, separate)
    weight = torch.randn_like(packed)
    got, want = (torch.autograd.grad((y * weight).sum(), list(model.parameters())) for y in (packed, separate))
    for a, b, (name, _) in zip(got, want, model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()), msg=name)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("options", [{"do_sample": False}, {"num_beams": 3}])
def test_padded_prompts_generate_what_they_generate_alone(rule, options):
    model, x = build(rule), tokens(3, 12)
    mask = torch.ones_like(x)
    mask[1, :4], mask[2, :11] = 0, 0
    options = {**options, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(x, attention_mask=mask, **options)
    for row in range(3):
        start = int((mask[row] == 0).sum())
        prompt = x[row : row + 1, start:]
        alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
        assert together[row : row + 1, 12:].tolist() == alone[:, 12 - start :].tolist()


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_trains_and_decodes(rule):
    model, x = build(rule, initializer_range=0.05), tokens(2, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()(x, labels=x).loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    with torch.no_grad():
        want = model.eval()(x).logits
        half, cache = model.bfloat16(), Cache()
        steps = [half(t, past_key_values=cache, use_cache=True).logits for t in x.split(10, 1)]
        got = torch.cat(steps, 1)
        assert got.dtype == torch.bfloat16
        assert float((got - want).norm() / want.norm()) < 0.1  # as MesaNet's: each layer rounds to 2^-9


# Family


def test_rules_that_take_turns_save_and_load(tmp_path):
    layers = ["rg_lru", "softmax", "delta"]
    model, x = build(layers, num_hidden_layers=4), tokens(1, 20)
    kinds = [type(layer.attn) for layer in model.model.layers]
    assert kinds == [RGLRU, SoftmaxAttention, DeltaRule, RGLRU]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # away from what initialisation gives
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).rule == layers
    assert type(AutoModel.from_pretrained(tmp_path)) is MatchedModel
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is MatchedForCausalLM
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)


def test_softmax_layers_of_a_hybrid_stay():
    model = build("delta", attn={"layers": [1], "num_heads": 2, "num_kv_heads": 1, "window_size": 48})
    assert [type(layer.attn).__name__ for layer in model.model.layers] == ["DeltaRule", "Attention"]


def test_a_rule_is_added_in_one_place():
    with pytest.raises(ValueError, match="rule 'delta' is already DeltaRule; got MesaNet"):
        rule("delta", "")(MesaNet)
    try:
        rule("newest", "")(type("Newest", (DeltaRule,), {}))
        assert type(build("newest").model.layers[0].attn).__name__ == "Newest"
    finally:
        RULES.pop("newest")


@pytest.mark.parametrize("rule", RULES)
def test_packed_sequences_go_on_from_their_states(rule):
    """With a cache of sequences, not of rows: sequences that stand in one row in one call and in the next."""
    model, x, cache = build(rule), tokens(1, 40), Cache()
    with torch.no_grad():
        first, second = x.split([25, 15], 1)
        model(first, cu_seqlens=torch.tensor([0, 7, 25]), past_key_values=cache, use_cache=True)
        got = model(second, cu_seqlens=torch.tensor([0, 10, 15]), past_key_values=cache, use_cache=True).logits
        whole = [torch.cat([first[:, :7], second[:, :10]], 1), torch.cat([first[:, 7:], second[:, 10:]], 1)]
        want = torch.cat([model(whole[0]).logits[:, 7:], model(whole[1]).logits[:, 18:]], 1)
        assert_same(got, want)


def test_what_softmax_was_in_files_of_old_it_still_is(tmp_path):
    """Convolved, on vectors of norm 1; with settings that were of no use to any layer, which are no error there."""
    model, x = build(["softmax_matched", "delta"], use_v_conv=False), tokens(1, 20)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    for name in ("window_size", "ridge_ratio", "chebyshev_steps", *BEFORE_PAPER_START):
        del saved[name]
    path.write_text(json.dumps({**saved, "rule": ["softmax", "delta"], "gamma_cap": 0.9, "initializer_range": 0.2}))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.rule == ["softmax_matched", "delta"] and not again.config.use_v_conv
    again.model.embeddings.scale = model.model.embeddings.scale
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)
    path.write_text(json.dumps({**saved, "rule": "softmax"}))
    assert AutoConfig.from_pretrained(tmp_path).rule == ["softmax_matched"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rule": "rwkv"}, ValueError, "rule must be among mesa, delta, .*; got rwkv"),
        ({"rule": ["mesa"] * 3}, ValueError, "rule must name 1 to 2 rules, one a layer at most; got 3"),
        ({"rule": []}, ValueError, "rule must name 1 to 2 rules, one a layer at most; got 0"),
        ({"rule": "softmax", "head_dim": 15}, ValueError, "head_dim must be even for RoPE; got 15"),
        ({"rule": "delta", "rule_settings": {"x": 1}}, ValueError, "rule_settings of delta may be none; got x"),
        (
            {"rule": "rg_lru", "recurrence_width": 33},
            ValueError,
            "recurrence_width must be a multiple of num_heads = 2; got 33",
        ),
        ({"recurrence_width": 0}, ValueError, "recurrence_width must be an integer >= 1 or None; got 0"),
        ({"gamma_cap": 2.0}, ValueError, "gamma_cap must be"),
        ({"rule": "sliding_softmax", "head_dim": 15}, ValueError, "head_dim must be even for RoPE; got 15"),
        ({"rule": "sliding_softmax", "window_size": 0}, ValueError, "window_size must be an integer >= 1; got 0"),
        ({"rule": "gka", "ridge_ratio": 0}, ValueError, "ridge_ratio must be a number > 0; got 0"),
        ({"rule": "gka", "chebyshev_steps": 0}, ValueError, "chebyshev_steps must be an integer >= 1; got 0"),
        (
            {"rule": "softmax", "window_size": 8},
            ValueError,
            "window_size has no effect on softmax, only on sliding_softmax: it must be 64; got 8",
        ),
        (
            {"rule": "softmax", "use_short_conv": False},
            ValueError,
            "use_short_conv has no effect on softmax, only on",
        ),
        (
            {"rule": ["delta", "rg_lru"], "gamma_init": [0.5, 0.9]},
            ValueError,
            "gamma_init has no effect on delta, rg_lru",
        ),
        (
            {"rule": "gka", "gamma_cap": None},
            ValueError,
            "gamma_cap has no effect on gka, only on mesa: it must be 0.9975",
        ),
        ({"rules": "mesa"}, TypeError, "unknown keys"),
    ],
)
def test_bad_configurations(changes, error, message):
    with pytest.raises(error, match=message):
        MatchedConfig(**{**TINY, **changes})
