"""The model card: written where a model is saved, never over one that its user wrote."""

import re

import torch
from huggingface_hub import ModelCard

import fla_mesa
from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MesaNetConfig, MesaNetForCausalLM, card

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16}
METRICS = {
    **{"model": "mesanet", "size": "tiny", "parameters": 1234, "seed": 1, "device": "cpu (x, 1 threads)", "processes": 1},
    **{"loss": 1.25, "bits_per_byte": 1.8034, "accuracy": 0.625, "yardsticks": {"byte bigram": 3.549}},
    **{"steps": 200, "sequences_per_step": 8, "seq_len": 256},
    "data": {"source": "/home/somebody/books", "sha256": "0123456789abcdef0123"},
    "versions": {"torch": "2.13.0", "triton": None},
    "commit": "abcdef123456",
    "settings": {"learning_rate": 0.003, "weight_decay": 0.1},
}  # fmt: skip


def test_save_pretrained_writes_one_that_says_what_the_model_is(tmp_path):
    for name, model in {
        "mesa": MesaNetForCausalLM(MesaNetConfig(**SMALL)),
        "gla": MatchedForCausalLM(MatchedConfig(rule="gated_linear", **SMALL)),
    }.items():
        model.save_pretrained(tmp_path / name)
        found = ModelCard.load(tmp_path / name / "README.md")
        assert found.data.library_name == "transformers" and found.data.tags[-1] == model.config.model_type
        assert f"{model.num_parameters():,}" in found.text and f"fla_mesa {fla_mesa.__version__}" in found.text
    assert "gated_linear" in found.text


def test_its_lines_load_the_model(tmp_path, monkeypatch):
    model = MesaNetForCausalLM(MesaNetConfig(**SMALL))
    model.save_pretrained(tmp_path / "a model")
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "a model" / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(line for line in code.splitlines() if "okenizer." not in line), names)  # none was saved
    assert torch.equal(names["model"].lm_head.weight, model.lm_head.weight)


def test_a_trained_models_card_has_data_figures_versions_and_commit(tmp_path):
    """And no path of the machine it was trained on."""
    model = MesaNetForCausalLM(MesaNetConfig(**SMALL))
    model.save_pretrained(tmp_path)
    assert card.write_card(tmp_path, model, METRICS)
    found = ModelCard.load(tmp_path / card.FILE)
    for words in (
        "mesanet tiny on books",
        "1.8034",
        "3.549",
        "0123456789abcdef",
        "409,600 tokens",
        "torch 2.13.0",
        "abcdef123456",
        "1,234",
    ):
        assert words in found.text, words
    assert "/home" not in found.content and "None" not in found.text
    assert {result.metric_type: result.metric_value for result in found.data.eval_results}["bits_per_byte"] == 1.8034


def test_a_task_of_symbols_has_no_tokenizer_to_load(tmp_path):
    model = MesaNetForCausalLM(MesaNetConfig(**SMALL))
    card.write_card(tmp_path, model, {**METRICS, "bits_per_byte": None, "yardsticks": None})
    assert "Tokenizer" not in (tmp_path / card.FILE).read_text()


def test_a_card_of_the_users_own_stays(tmp_path):
    (tmp_path / card.FILE).write_text("# Mine\n")
    model = MesaNetForCausalLM(MesaNetConfig(**SMALL))
    model.save_pretrained(tmp_path)
    assert not card.write_card(tmp_path, model, METRICS)
    assert (tmp_path / card.FILE).read_text() == "# Mine\n"


def test_only_the_first_process_writes_one(tmp_path):
    MesaNetForCausalLM(MesaNetConfig(**SMALL)).save_pretrained(tmp_path, is_main_process=False)
    assert not (tmp_path / card.FILE).exists()
