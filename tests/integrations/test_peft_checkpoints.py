"""The folder of a PEFT adapter as a checkpoint of `fla-mesa eval` and `fla-mesa sweep`."""

from __future__ import annotations

import json

import pytest
import torch

from fla_mesa.data.tokenizer import byte_tokenizer
from fla_mesa.models import MesaNetConfig, MesaNetForCausalLM

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'fla-mesa[integrations]'")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base checkpoint, an adapter to it on all linear layers, and the two as one model."""
    root = tmp_path_factory.mktemp("peft")
    torch.manual_seed(0)
    model = MesaNetForCausalLM(
        MesaNetConfig(
            vocab_size=257, hidden_size=32, num_hidden_layers=2, num_heads=2, head_dim=16, initializer_range=0.3,
            bos_token_id=None, eos_token_id=256,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(root / "base")
    byte_tokenizer().save_pretrained(root / "base")
    base = MesaNetForCausalLM.from_pretrained(root / "base")  # an adapter notes where its model came from
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "merged")
    byte_tokenizer().save_pretrained(root / "merged")
    (root / "text.txt").write_text("The owl and the lamp, the mill and the river.\n" * 40)
    return root


def test_eval_scores_an_adapter_as_the_merged_model(folders, tmp_path):
    harness = pytest.importorskip("fla_mesa.eval.harness.command")
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'fla-mesa[eval]'")
    names = ["adapter", "merged", "base"]
    tasks = "heldout_bits_per_byte,heldout_loss_by_position,own_haystack_niah_1"
    arguments = ["--checkpoint", *(str(folders / name) for name in names), "--tasks", tasks, "--device", "cpu"]
    arguments += ["--metadata", f"text={folders / 'text.txt'}", "positions=64", "length=400", "samples=2"]
    assert harness.main([*arguments, "--output_path", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert not found["skipped"]
    for row in found["rows"]:
        adapter, merged, base = (row["values"][name]["value"] for name in names)
        assert adapter == pytest.approx(merged, rel=1e-5)
        if row["task"] == "heldout_bits_per_byte":
            assert adapter != pytest.approx(base, rel=1e-3)


def test_sweep_measures_an_adapter_as_the_merged_model(folders, tmp_path):
    from fla_mesa.eval.sweep.command import main

    losses = []
    for name in ("adapter", "merged"):
        arguments = [
            str(folders / name),
            "--text",
            str(folders / "text.txt"),
            "--context_lengths",
            "64",
            "--steps",
            "5",
            "--no_exact",
        ]
        arguments += [
            "--tolerances",
            "1e-2",
            "--sequences",
            "2",
            "--repeats",
            "0",
            "--device",
            "cpu",
            "--output_dir",
            str(tmp_path / name),
        ]
        assert main(arguments) == 0
        losses.append([row["loss"] for row in json.loads((tmp_path / name / "sweep.json").read_text())["results"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
