"""Every covered family as a whole model of fla's: it trains, prefills, decodes, generates, alone, padded and packed."""

import logging
from contextlib import nullcontext

import fla.models
import pytest
import torch

from tests.cpu.compare import close

VOCABULARY = 31
COMMON = dict(
    hidden_size=32,
    num_hidden_layers=2,
    vocab_size=VOCABULARY,
    bos_token_id=1,
    eos_token_id=None,
    pad_token_id=0,
    initializer_range=0.3,  # so that the greedy choice is not left to rounding
)

# Class prefix and settings; a family appears twice where its layers take another path.
FAMILIES = {
    "transformer": ("Transformer", dict(num_heads=4, num_kv_heads=2, window_size=None)),
    "transformer_window": ("Transformer", dict(num_heads=2, window_size=9, qk_norm=True)),
    "gla": ("GLA", dict(num_heads=2, use_short_conv=True)),
    "delta_net": ("DeltaNet", dict(num_heads=2)),
    "gated_deltanet": ("GatedDeltaNet", dict(num_heads=2, head_dim=16, expand_v=1)),
    "gated_deltanet_shared_heads": (
        "GatedDeltaNet",
        dict(num_heads=2, num_v_heads=4, head_dim=16, expand_v=0.5, allow_neg_eigval=True),
    ),
    "kda": ("KDA", dict(num_heads=2, num_v_heads=4, head_dim=16, allow_neg_eigval=True)),
    "mamba2": ("Mamba2", dict(head_dim=16, num_heads=4, state_size=8, n_groups=2)),
    "retnet": ("RetNet", dict(num_heads=2, num_kv_heads=1)),
    "linear_attn": ("LinearAttention", dict(num_heads=2)),
    "linear_attn_normalised": ("LinearAttention", dict(num_heads=2, feature_map="elu", norm_feature_map=True)),
    "mesa_net": ("MesaNet", dict(num_heads=2, head_dim=16, use_output_gate=True)),
    "hgrn": ("HGRN", dict(use_short_conv=True)),
    "gla_with_attention": ("GLA", dict(num_heads=2, attn={"layers": [1], "num_heads": 2})),
}
# fla's HGRN layer trains on packed input in none of its modes; its LinearAttentionForCausalLM drops `cu_seqlens` on the way to
# the layers, on any device (the layer is tested below).
PACKED = [f for f in FAMILIES if f not in ("hgrn", "linear_attn", "linear_attn_normalised")]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)  # Mamba2 recommends its CUDA kernels, once for each layer
    yield
    logging.disable(logging.NOTSET)


def build(family):
    torch.manual_seed(1)
    prefix, settings = FAMILIES[family]
    config = getattr(fla.models, f"{prefix}Config")(**{**COMMON, **settings})
    return getattr(fla.models, f"{prefix}ForCausalLM")(config)


def tokens(*shape):
    return torch.randint(2, VOCABULARY, shape)


@pytest.mark.parametrize("family", FAMILIES)
def test_learns(family):
    """A few steps on one batch bring the loss well down, and every parameter gets a gradient."""
    model = build(family).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = tokens(2, 70)
    losses = []
    for _ in range(6):
        loss = model(input_ids=x, labels=x).loss
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_is_the_full_forward(family):
    model, x = build(family).eval(), tokens(2, 75)
    full = model(input_ids=x).logits
    out = model(input_ids=x[:, :67], use_cache=True)
    logits = [out.logits]
    for t in range(67, 75):
        out = model(input_ids=x[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        logits.append(out.logits)
    close(torch.cat(logits, 1), full, 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_left_padding(family, beams):
    """A batch of prompts of unequal length generates what each generates alone."""
    model = build(family).eval()
    prompts = [tokens(n) for n in (3, 11, 7)]
    options = dict(max_new_tokens=8, num_beams=beams, do_sample=False)
    alone = [
        model.generate(p[None], attention_mask=torch.ones(1, len(p)).long(), **options)[0, len(p) :] for p in prompts
    ]
    longest = max(map(len, prompts))
    batch = torch.stack([torch.cat([p.new_zeros(longest - len(p)), p]) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(p) for p in prompts]).long()
    together = model.generate(batch, attention_mask=mask, **options)[:, longest:]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("family", PACKED)
def test_packed_is_separate(family):
    model, lengths = build(family).train(), [20, 41, 1, 9]
    x = tokens(1, sum(lengths))
    cu = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    weight = torch.randn(1, sum(lengths), VOCABULARY)

    def run(forward):
        model.zero_grad()
        logits = forward()
        (logits * weight).sum().backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    packed = run(lambda: model(input_ids=x, cu_seqlens=cu).logits)
    separate = run(lambda: torch.cat([model(input_ids=part).logits for part in x.split(lengths, 1)], 1))
    for a, b in zip(packed, separate, strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("normalised", [False, True])
def test_packed_linear_attention_layer(normalised):
    layer = fla.layers.LinearAttention(
        hidden_size=32, num_heads=2, feature_map="elu", do_feature_map_norm=normalised, layer_idx=0
    )
    lengths = [20, 41, 1, 9]
    cu = torch.tensor([0, *lengths]).cumsum(0)
    x, weight = torch.randn(1, sum(lengths), 32), torch.randn(1, sum(lengths), 32)

    def run(forward):
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        o = forward(inputs)
        (o * weight).sum().backward()
        return [o.detach(), inputs.grad, *(p.grad.clone() for p in layer.parameters())]

    packed = run(lambda h: layer(h, cu_seqlens=cu)[0])
    separate = run(lambda h: torch.cat([layer(part)[0] for part in h.split(lengths, 1)], 1))
    for a, b in zip(packed, separate, strict=True):
        close(a, b, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16(family):
    """In bfloat16 and under autocast: the float32 logits to bfloat16's accuracy, finite gradients."""
    x = tokens(2, 70)
    reference = build(family)(input_ids=x).logits.detach()
    for model, context in (
        (build(family), torch.autocast("cpu", dtype=torch.bfloat16)),
        (build(family).bfloat16(), nullcontext()),
    ):
        with context:
            logits = model(input_ids=x).logits
            loss = model(input_ids=x, labels=x).loss
        loss.backward()
        assert (logits.float() - reference).norm() < 0.1 * reference.norm()
        assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        model.eval().generate(x[:, :5], attention_mask=torch.ones(2, 5).long(), max_new_tokens=3, do_sample=False)


@torch.no_grad()
@pytest.mark.parametrize("family", ["mamba2", "gla", "delta_net", "kda", "linear_attn", "mesa_net", "gated_deltanet"])
def test_continuation_of_several_tokens(family):
    """A cached call may bring more than one token; fla's Mamba2 takes only one, its stand-in any number."""
    model, x = build(family).eval(), tokens(2, 30)
    out = model(input_ids=x[:, :13], use_cache=True)
    rest = model(input_ids=x[:, 13:], past_key_values=out.past_key_values, use_cache=True)
    close(torch.cat([out.logits, rest.logits], 1), model(input_ids=x).logits, 1e-4)


def test_mamba2_is_fla_own_definition():
    """With one group fla's own slow path is right: same outputs, states and gradients."""
    torch.manual_seed(0)
    config = fla.models.Mamba2Config(
        **{**COMMON, "head_dim": 16, "num_heads": 4, "state_size": 8, "n_groups": 1, "chunk_size": 16}
    )
    model = fla.models.Mamba2ForCausalLM(config)
    layer = model.backbone.layers[0].mixer
    x = torch.randn(2, 21, 32)
    mask = torch.ones(2, 21)
    mask[0, :5] = 0

    def run(forward):
        inputs = x.clone().requires_grad_()
        layer.zero_grad()
        o = forward(inputs)
        o.square().sum().backward()
        return [o.detach(), inputs.grad, *(p.grad.clone() for p in layer.parameters())]

    ours = run(lambda h: layer(h, attention_mask=mask)[0])
    theirs = run(lambda h: layer.torch_forward((h * mask[..., None]), None, False, mask)[0])
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)
