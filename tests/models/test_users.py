"""What transformers' users look for beside a language model: heads, folders that can be saved again, adapters on any projection."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from fla_mesa.layers.mlp import is_bare
from fla_mesa.models import MatchedConfig, MesaNetConfig, zoo
from fla_mesa.models.remote_code import STUB, write_remote_code

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 63}
TOKENS = {"vocab_size": 64, "bos_token_id": 62, "eos_token_id": 62, "pad_token_id": 63, "max_position_embeddings": 64}


@pytest.mark.parametrize("config_class", [MesaNetConfig, MatchedConfig])
def test_heads_train_save_and_load(config_class, tmp_path):
    x = torch.randint(0, 62, (2, 12))
    x[1, 8:] = 63
    mask = (x != 63).long()
    labels = torch.tensor([0, 2])
    cases = (
        (AutoModelForSequenceClassification, {"labels": labels}, "logits", (2, 3)),
        (AutoModelForTokenClassification, {"labels": torch.randint(0, 3, (2, 12))}, "logits", (2, 12, 3)),
        (
            AutoModelForQuestionAnswering,
            {"start_positions": labels, "end_positions": labels + 3},
            "end_logits",
            (2, 12),
        ),
    )
    for auto, targets, name, shape in cases:
        model = auto.from_config(config_class(**TINY, num_labels=3))
        out = model(x, attention_mask=mask, **targets)
        assert out[name].shape == shape
        out.loss.backward()
        assert all(p.grad is not None for p in model.parameters()), auto
        assert model.get_input_embeddings() is model.model.embeddings
        model.eval().save_pretrained(tmp_path)
        with torch.no_grad():
            want = model(x, attention_mask=mask)[name]
            torch.testing.assert_close(auto.from_pretrained(tmp_path).eval()(x, attention_mask=mask)[name], want)
        with pytest.raises(TypeError, match="does not take nonsense"):
            model(x, nonsense=1)
        with pytest.raises(ValueError, match=r"cp_context: .* reads whole sequences"):
            model(x, cp_context=object())


def test_a_head_starts_from_a_language_model_and_padding_does_not_matter(tmp_path):
    AutoModelForCausalLM.from_config(MesaNetConfig(**TINY)).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3).eval()
    x = torch.randint(0, 62, (1, 9))
    pads = torch.full((1, 4), 63)
    with torch.no_grad():
        alone = model(x).logits
        for padded in (torch.cat([x, pads], 1), torch.cat([pads, x], 1)):
            got = model(padded, attention_mask=(padded != 63).long()).logits
            torch.testing.assert_close(got, alone, rtol=0, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("name", ["mesanet", "matched-gla", "gla", "xlstm"])
def test_a_folder_that_is_saved_again_loads_by_remote_code(tmp_path, name):
    model = zoo.build(name, "2x32", **TOKENS)
    model.save_pretrained(tmp_path / "run")
    assert write_remote_code(tmp_path / "run")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    again.save_pretrained(tmp_path / "tuned")
    shutil.rmtree(tmp_path / "run")
    auto_map = json.loads((tmp_path / "tuned" / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForCausalLM"] == f"{STUB}.{type(model).__name__}"
    text = (tmp_path / "tuned" / f"{STUB}.py").read_text()
    for target in auto_map.values():
        assert f"import {target.split('.')[1]} " in text
    exec(compile(text, STUB, "exec"), {})
    model.save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain" / f"{STUB}.py").exists()


def test_remote_code_saves_what_remote_code_loads(tmp_path):
    """transformers would add the source files of the classes, and point to these."""
    zoo.build("mesanet", "2x32", **TOKENS).save_pretrained(tmp_path / "0")
    write_remote_code(tmp_path / "0")
    for n in range(2):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(n), trust_remote_code=True)
        model.save_pretrained(tmp_path / str(n + 1))
    assert [path.name for path in (tmp_path / "2").glob("*.py")] == [f"{STUB}.py"]
    assert json.loads((tmp_path / "2" / "config.json").read_text())["auto_map"]["AutoConfig"] == f"{STUB}.MesaNetConfig"


class Adapter(torch.nn.Module):
    """What PEFT puts in a linear layer's place."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.weight, self.bias = base_layer, base_layer.weight, base_layer.bias
        self.a = torch.nn.Parameter(torch.randn(base_layer.out_features))

    def forward(self, x):
        return self.base_layer(x) + self.a * x.mean(-1, keepdim=True)


@pytest.mark.parametrize("name", [n for n in zoo.names() if not n.startswith("matched-") or n == "matched-transformer"])
def test_an_adapter_on_any_projection_is_used(name):
    """Each linear layer but the output's is called as a module, so that an adapter in its place gets a gradient."""
    model, x = zoo.build(name, "2x32", **TOKENS).train(), torch.randint(0, 62, (2, 12))
    linear = [
        path for path, module in model.named_modules() if type(module) is torch.nn.Linear and "lm_head" not in path
    ]
    for path in linear:
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, Adapter(model.get_submodule(path)))
    model(x, labels=x).loss.backward()
    without = [p for p in linear if (g := model.get_submodule(p).a.grad) is None or not bool(g.abs().max() > 0)]
    assert not without


def test_the_mlp_is_fused_where_its_last_projection_is_a_linear_layer():
    model, x = AutoModelForCausalLM.from_config(MesaNetConfig(**TINY)), torch.randint(0, 62, (1, 12))
    down = model.model.layers[0].mlp.down_proj
    assert is_bare(down)
    with torch.no_grad():
        want = model(x).logits
        seen = []
        hook = down.register_forward_hook(lambda module, args, output: seen.append(output))
        assert not is_bare(down)
        torch.testing.assert_close(model(x).logits, want)
        assert len(seen) == 1
        hook.remove()
    assert is_bare(down)


def test_a_loss_that_passes_by_an_adapter_on_the_output_is_refused():
    config = MesaNetConfig(**TINY, fuse_cross_entropy=False, fuse_linear_cross_entropy=True)
    model, x = AutoModelForCausalLM.from_config(config), torch.randint(0, 62, (1, 12))
    model.lm_head = Adapter(model.lm_head)
    with pytest.raises(ValueError, match=r"fuse_linear_cross_entropy must be False: .* place, Adapter"):
        model(x, labels=x)
