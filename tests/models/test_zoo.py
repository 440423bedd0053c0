"""Every architecture of the zoo at every size: how many parameters, does it train, does it generate, does it load."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from fla_mesa.models import zoo

TOKENS = {
    "vocab_size": 257,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "max_position_embeddings": 256,
}
# The same builder under two names need not be tried twice.
DISTINCT = [name for name in zoo.names() if name not in ("matched-hawk", "matched-hawk_mesa")]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("fla").setLevel(logging.ERROR)  # its Mamba2 warns of a missing package once a layer
    yield
    logging.getLogger("fla").setLevel(logging.NOTSET)


@pytest.mark.parametrize("size", zoo.sizes())
def test_parameters_are_those_of_mesanet_to_3_percent(size):
    # With few embeddings, which all have in common, so that differences are seen at their largest.
    names = DISTINCT if size in ("tiny", "440M") else zoo.RELEASED  # the matched differ from each other in gates alone
    counts = {name: zoo.count_parameters(zoo.build_config(name, size, **TOKENS)) for name in names}
    off = {name: count / counts["mesanet"] - 1 for name, count in counts.items()}
    assert {name: f"{value:+.1%}" for name, value in off.items() if abs(value) > zoo.TOLERANCE} == {}


@pytest.mark.parametrize("size", zoo.sizes())
def test_at_one_size_all_have_one_shape(size):
    shape = zoo.SIZES[size]
    for name in DISTINCT:
        config = zoo.build_config(name, size, **TOKENS)
        assert config.tie_word_embeddings and config.hidden_size == shape.hidden_size, name
        assert config.num_hidden_layers == shape.num_hidden_layers * (2 if name == "mamba2" else 1), name
        if hasattr(config, "intermediate_size") and name != "kda":
            assert config.intermediate_size == shape.intermediate_size, name


@pytest.mark.parametrize("size", ["2x32", "2x64", "3x256"])
def test_sizes_by_their_numbers(size):
    """As many parameters to 3 % with the vocabulary of the recall tasks that they are for."""
    layers, width = map(int, size.split("x"))
    shape = zoo.shape(size)
    assert (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size) == (layers, width, 3 * width)
    assert shape.num_heads * shape.head_dim == width and shape.num_heads % 2 == 0
    configs = {name: zoo.build_config(name, size, **{**TOKENS, "vocab_size": 8192}) for name in zoo.RELEASED}
    counts = {name: zoo.count_parameters(config) for name, config in configs.items()}
    assert {name for name, count in counts.items() if abs(count / counts["mesanet"] - 1) > zoo.TOLERANCE} == set()


def test_a_size_by_its_numbers_is_the_named_one():
    assert zoo.shape("4x128") == zoo.SIZES["tiny"] and zoo.shape("6x256") == zoo.SIZES["small"]


@pytest.mark.parametrize("size", ["tiny", "440M"])
def test_states_are_as_large_as_those_of_linear_attention(size):
    """As the module's docstring says: heads x keys x values."""
    shape = zoo.SIZES[size]
    want = shape.num_heads * shape.head_dim**2
    for name in ("gated_deltanet", "gla", "retnet", "xlstm"):
        config = zoo.build_config(name, size, **TOKENS)
        heads, D = config.num_heads, config.hidden_size
        if name == "gated_deltanet":
            got = heads * config.head_dim**2 * config.expand_v
        elif name == "xlstm":
            got = heads * config.qk_head_dim * config.v_head_dim
        else:
            got = D * config.expand_k * D * config.expand_v / heads
        assert got == want, name


@pytest.mark.parametrize("name", DISTINCT)
def test_it_trains_a_step_loads_again_and_generates(name, tmp_path):
    model = zoo.build(name, "tiny", **TOKENS)
    x = torch.randint(0, 256, (2, 40))
    out = model.train()(x, labels=x)
    # More than ln 257 = 5.55, as logits have a variance and as the embedding that a token leaves in the stream asks for it again: its
    # logit is the larger the more of the stream it still is, sqrt(D) = 11.3 at most.
    assert 5.5 < out.loss.item() < 11.4
    out.loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not bool(torch.isfinite(p.grad).all())]
    assert not missing
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(3e-3 * torch.sign(p.grad))
        model.eval()
        assert model(x, labels=x).loss < out.loss
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    with torch.no_grad():
        torch.testing.assert_close(again(x).logits, model(x).logits, rtol=0, atol=0)
    # Greedy generation, which goes through the cache, is the argmax of full forwards.
    got = again.generate(x, do_sample=False, max_new_tokens=4, eos_token_id=None, pad_token_id=256)
    with torch.no_grad():
        for _ in range(4):
            x = torch.cat([x, model(x).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, x)


def test_names_that_do_not_exist():
    with pytest.raises(ValueError, match=r"unknown model 'mamba3'; available: mesanet, mesa_net, .*matched-gla"):
        zoo.build_config("mamba3", "tiny", **TOKENS)
    with pytest.raises(ValueError, match="unknown size '7B'; available: tiny, small, 140M"):
        zoo.build_config("gla", "7B", **TOKENS)
    with pytest.raises(ValueError, match="unknown model 'kda'; available with matched parametrization: mesanet, "):
        zoo.resolve("kda", "matched")
    with pytest.raises(ValueError, match="parametrization must be one of released, matched; got 'both'"):
        zoo.resolve("gla", "both")
    for size in ("2x", "0x64", "2x63", "2x192", "2x64x2", "-2x64"):
        with pytest.raises(
            ValueError, match="or LAYERSxWIDTH such as 2x64, where the width is 32, 64 or a multiple of 128"
        ):
            zoo.build_config("gla", size, **TOKENS)
    assert zoo.resolve("gla", "matched") == "matched-gla" and zoo.resolve("kda", "released") == "kda"
    assert set(zoo.NOTES) <= set(zoo.names())


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "xlstm"])
def test_initial_weights_are_of_fan_in(name):
    """transformers' xLSTM alone has a rule of its own, which a note says."""
    torch.manual_seed(0)
    config = zoo.build_config(name, "small", **TOKENS)
    weight = AutoModelForCausalLM.from_config(config).get_input_embeddings().weight
    assert weight.std().item() == pytest.approx(zoo.SIZES["small"].hidden_size ** -0.5, rel=0.05)
    assert "initial weights" in zoo.NOTES["xlstm"]
