"""How fresh models start: the statistics of appendix E.1 and G.2 of arXiv 2506.05233, and what older checkpoints keep."""

import json
import math
import re

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fla_mesa.models import MatchedConfig, MesaNetConfig, MesaNetForCausalLM, zoo
from fla_mesa.train.decay import exempt_parameters

TOKENS = {
    "vocab_size": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
    "max_position_embeddings": 256,
}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "vocab_size": 50}


def expected_variance(name: str, shape: tuple[int, ...], config: MesaNetConfig) -> float:
    """By appendix G.2: 1 / fan-in; 2 / (N fan-in) for what projects back to the residual stream. Convolutions: a third of it."""
    fan_in = math.prod(shape[1:])  # the embedding's inputs are those of the output projection that it also is
    if re.search(r"(attn\.o_proj|mlp\.down_proj)\.weight$", name):
        return 2 / config.num_hidden_layers / fan_in
    return (1 / 3 if "conv1d" in name else 1) / fan_in


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("name", ["mesanet", "matched-gated_deltanet", "hawk_mesa"])
def test_fresh_weights_have_the_paper_s_variances(name, size):
    torch.manual_seed(0)
    model = zoo.build(name, size, **TOKENS)
    # Weights of one kind are pooled over layers, so that 5 % is several standard errors.
    pools: dict[str, list[torch.Tensor]] = {}
    for key, weight in model.named_parameters():
        if (
            weight.ndim >= 2 and "gate.weight" not in key
        ):  # the block-diagonal gates of the RG-LRU have a rule of their own
            scaled = weight.detach() / expected_variance(key, tuple(weight.shape), model.config) ** 0.5
            pools.setdefault(re.sub(r"\.\d+\.", ".", key), []).append(scaled.flatten())
    assert any("down_proj" in key for key in pools) and any("o_proj" in key for key in pools)
    for key, parts in pools.items():
        pool = torch.cat(parts)
        error = 4 * (2 / pool.numel()) ** 0.5  # of a variance, by the normal distribution
        assert pool.var().item() == pytest.approx(1, abs=max(0.05, error)), key
    stream = model.model.embeddings(torch.arange(257)[None])
    assert stream.var().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("size", ["140M", "440M", "940M", "340M", "1.3B"])
def test_the_sizes_that_are_not_drawn_here_ask_for_the_same(size, monkeypatch):
    config = zoo.build_config("mesanet", size, **TOKENS)
    asked = {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    monkeypatch.setattr(
        torch.nn.init, "normal_", lambda weight, mean=0.0, std=1.0, **_: asked.update({id(weight): std})
    )
    for module in model.modules():
        model._init_weights(module)
    drawn = {key: asked[id(p)] for key, p in model.named_parameters() if id(p) in asked}
    assert len(drawn) == 1 + 12 * config.num_hidden_layers  # q, k, v, a, b, o, three convolutions, three of the MLP
    for key, std in drawn.items():
        shape = tuple(model.get_parameter(key).shape)
        assert std**2 == pytest.approx(expected_variance(key, shape, config)), key
    assert model.model.embeddings.scale == pytest.approx(config.hidden_size**0.5)


def test_the_token_is_still_seen_before_the_last_block():
    torch.manual_seed(0)
    model = zoo.build("mesanet", "tiny", **TOKENS).eval()
    ids = torch.randint(0, 256, (4, 256))
    with torch.no_grad():
        out = model.model(ids, output_hidden_states=True)
        stream, token = out.hidden_states[-2], model.model.embeddings(ids)
    assert (token.var() / stream.var()).item() >= 0.25


def test_each_part_is_a_setting():
    torch.manual_seed(0)
    convolution = MesaNetForCausalLM(MesaNetConfig(**SMALL, conv_init_scale=1.0)).model.layers[0].attn.q_conv1d.weight
    assert convolution.std().item() == pytest.approx(0.5, rel=0.3)
    old = {"initializer_range": 0.3, "scale_embeddings": False, "rescale_residual": False, "decay_embeddings": True}
    model = MesaNetForCausalLM(MesaNetConfig(**SMALL, **old))
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and weight.numel() > 500:
            assert weight.std().item() == pytest.approx(0.3, rel=0.2), name
    assert model.model.embeddings.scale == 1
    assert "model.embeddings.weight" not in exempt_parameters(model)
    assert "model.embeddings.weight" in exempt_parameters(MesaNetForCausalLM(MesaNetConfig(**SMALL)))


@pytest.mark.parametrize(("init", "bound"), [(1.0, 0.25), (2.5, 2.0), (50.0, 0.25), (1.001, 1.0)])
@pytest.mark.parametrize("train", [True, False])
def test_lambda_starts_where_it_is_told_and_stays_if_it_is_told(tmp_path, init, bound, train):
    config = MesaNetConfig(**SMALL, lambda_init=init, lambda_lower_bound=bound, train_lambda=train)
    MesaNetForCausalLM(config).save_pretrained(tmp_path)
    for model in (MesaNetForCausalLM(config), AutoModelForCausalLM.from_pretrained(tmp_path)):
        parameter = model.model.layers[0].attn.lambda_params
        lamb = bound + torch.nn.functional.softplus(parameter)
        torch.testing.assert_close(lamb, torch.full_like(lamb, init), rtol=1e-5, atol=0)
        assert parameter.requires_grad == train
        assert "model.layers.0.attn.lambda_params" in exempt_parameters(model)


def test_a_checkpoint_from_before_these_settings_keeps_what_it_was_trained_with(tmp_path):
    before = MesaNetConfig(
        **SMALL, initializer_range=0.02, use_v_conv=False, scale_embeddings=False, rescale_residual=False, decay_embeddings=True
    )  # fmt: skip
    model = MesaNetForCausalLM(before).eval()
    model.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    for name in (
        "use_v_conv",
        "scale_embeddings",
        "rescale_residual",
        "decay_embeddings",
        "lambda_init",
        "train_lambda",
    ):
        del config[name]
    file.write_text(json.dumps(config))
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.to_diff_dict() == {
        **before.to_diff_dict(),
        "dtype": "float32",
        "architectures": again.config.architectures,
    }
    ids = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=0, atol=0)


def test_a_value_convolution_that_a_checkpoint_has_not_is_refused(tmp_path):
    MesaNetForCausalLM(MesaNetConfig(**SMALL, use_v_conv=False)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"use_v_conv must be False for this checkpoint.*v_conv1d"):
        AutoModelForCausalLM.from_pretrained(tmp_path, use_v_conv=True)


def test_a_configuration_keeps_what_its_user_added_and_the_usual_names(tmp_path):
    config = MesaNetConfig(**SMALL, rms_norm_eps=1e-5, final_logit_softcapping=7.0)
    assert (config.norm_eps, config.logit_soft_cap, config.num_attention_heads) == (1e-5, 7.0, 2)
    config.final_logit_softcapping = None
    assert config.logit_soft_cap is None
    with pytest.raises(ValueError, match="norm_eps must be a number > 0; got -1"):
        config.rms_norm_eps = -1
    config.remark = "mine"
    config.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no settings of MesaNetConfig, kept as attributes: remark"):
        assert AutoConfig.from_pretrained(tmp_path).remark == "mine"


def test_a_start_of_convolutions_that_nothing_goes_by_is_refused():
    with pytest.raises(ValueError, match=r"conv_init_scale must be .* initializer_range = 0\.02"):
        MesaNetConfig(**SMALL, initializer_range=0.02, conv_init_scale=1.0)
    with pytest.raises(ValueError, match="conv_init_scale has no effect where no layer has a convolution"):
        MatchedConfig(**SMALL, rule="softmax", conv_init_scale=1.0)
    for rule in ("rg_lru", ["mesa", "softmax"]):
        assert MatchedConfig(**SMALL, rule=rule, conv_init_scale=1.0).conv_init_scale == 1.0


@pytest.mark.parametrize(("name", "value"), [("conv_size", 3), ("conv_bias", True), ("conv_init_scale", 1.0)])
def test_a_setting_of_convolutions_is_refused_where_there_are_none(name, value):
    without = {"use_short_conv": False, "use_v_conv": False}
    for config in (MesaNetConfig, MatchedConfig):
        with pytest.raises(ValueError, match=f"{name} has no effect where no layer has a convolution.*got {value}"):
            config(**SMALL, **without, **{name: value})
        assert getattr(config(**SMALL, use_short_conv=False, **{name: value}), name) == value
    if name != "conv_bias":  # RG-LRU's convolution always has one
        hybrid = MatchedConfig(**SMALL, **without, rule=["mesa", "rg_lru"], **{name: value})
        assert getattr(hybrid, name) == value
