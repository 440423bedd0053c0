"""The command line: several checkpoints in one table, tasks that cannot run, bad input, and plain lm-eval with a stub."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fla_mesa.data import documents, synthetic
from fla_mesa.data.synthetic.registry import REGISTRY
from fla_mesa.data.tokenizer import byte_tokenizer
from fla_mesa.eval.harness.command import main
from fla_mesa.eval.harness.cut import cut_inputs
from fla_mesa.eval.harness.model import FlaMesaLM
from fla_mesa.eval.harness.results import Evaluation
from fla_mesa.eval.harness.side_by_side import compare, short_names
from fla_mesa.eval.harness.suites import suite
from fla_mesa.eval.harness.tasks import FILES, Tasks
from fla_mesa.eval.measure.quality import position_ranges
from fla_mesa.models import MesaNetForCausalLM
from fla_mesa.models.remote_code import write_remote_code


def squeezed(table):
    """A table without the spaces that align it."""
    return re.sub(" +", " ", table)


SMALL = ["--metadata", "length=400", "samples=3", "--batch_size", "4", "--device", "cpu"]


def test_several_checkpoints_one_table(llama_checkpoint, mesanet_checkpoint, local_tasks, tmp_path, capsys):
    code = main(
        ["--checkpoint", str(llama_checkpoint), str(mesanet_checkpoint), "--tasks", "local_choice,local_missing,own_haystack_niah_1",
         "--include_path", str(local_tasks), "--output_path", str(tmp_path), *SMALL]
    )  # fmt: skip
    assert code == 0
    table = (tmp_path / "comparison.md").read_text()
    assert table in capsys.readouterr().out
    table = squeezed(table)
    assert "| task | metric | llama | mesanet |" in table
    rows = [line for line in table.splitlines() if line.startswith("| local_choice | acc ↑")]
    assert len(rows) == 1 and rows[0].count("±") == 2
    assert "- local_missing (llama): " in table and "- local_missing (mesanet): " in table
    data = json.loads((tmp_path / "comparison.json").read_text())
    assert data["checkpoints"] == ["llama", "mesanet"]
    assert set(data["skipped"]) == {"llama", "mesanet"}
    for row in data["rows"]:
        for value in row["values"].values():
            assert 0 <= value["value"] <= 1 and value["stderr"] >= 0
    # lm-eval's own files are there as well, one a checkpoint, and know what was left out.
    files = sorted(tmp_path.glob("*/results_*.json"))
    assert len(files) == 2
    for file in files:
        saved = json.loads(file.read_text())
        assert saved["model_source"] == "fla_mesa"
        assert set(saved["results"]) == {"local_choice", "own_haystack_niah_1"}
        assert list(saved["skipped"]) == ["local_missing"]
        assert saved["config"]["model_args"]["pretrained"] == saved["model_name"]


def test_one_checkpoint_by_lm_eval_s_own_flags(suite_checkpoint, tmp_path, capsys):
    code = main(
        ["run", "--model_args", f"pretrained={suite_checkpoint},cg_tolerance=0.1", "--tasks", "recorded_suite", "--device", "cpu",
         "--batch_size", "8", "--output_path", str(tmp_path), "--log_samples"]
    )  # fmt: skip
    assert code == 0
    assert "recorded_suite" in capsys.readouterr().out
    (samples,) = tmp_path.glob("*/samples_recorded_suite_*.jsonl")
    assert len(samples.read_text().splitlines()) == 6
    assert not (tmp_path / "comparison.md").exists()


def test_no_task_that_can_run_is_an_error(llama_checkpoint, local_tasks, capsys):
    code = main(
        ["--checkpoint", str(llama_checkpoint), "--tasks", "local_missing", "--include_path", str(local_tasks), *SMALL]
    )
    assert code == 2
    assert "no task could be run: local_missing: " in capsys.readouterr().err


def test_a_bug_in_the_only_task_keeps_its_traceback(llama_checkpoint, local_tasks, monkeypatch, capsys):
    def broken(*_, **__):
        raise AttributeError("a bug")

    monkeypatch.setattr(FlaMesaLM, "_model_call", broken)
    asked = ["--checkpoint", str(llama_checkpoint), "--include_path", str(local_tasks), "--device", "cpu", "--tasks"]
    with pytest.raises(AttributeError, match="a bug"):
        main([*asked, "local_choice"])
    assert main([*asked, "local_choice,own_haystack_niah_1", "--metadata", "length=400", "samples=1"]) == 2
    assert "no task could be run: local_choice: AttributeError: a bug; own_haystack" in capsys.readouterr().err


def test_suites_of_other_checkpoints_are_named_not_asked(llama_checkpoint, suite_checkpoint, capsys):
    tasks = "own_haystack_niah_1,regbench,mqar_64x4,recorded_suite"
    assert (
        main(["--checkpoint", str(llama_checkpoint), str(suite_checkpoint), "--tasks", tasks, "--limit", "3", *SMALL])
        == 0
    )
    out = capsys.readouterr().out
    assert "regbench (llama): the checkpoint's tokenizer records no synthetic suite" in out
    assert "regbench (mqar): the checkpoint was trained on another suite, mqar:vocab_size=64" in out
    assert "recorded_suite (llama): this task is the suite that the checkpoint was trained on" in out
    # Words are no numbers: the model of numbers is not asked about text.
    assert "own_haystack_niah_1 (mqar): " in out


def broken(checkpoint, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    change(copy)
    return str(copy)


def other_model_type(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "mezanet"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda copy: shutil.rmtree(copy), r"checkpoint '.*copy': there is no such directory"),
        (
            lambda copy: (copy / "config.json").unlink(),
            r"is no checkpoint: it has no config\.json \(it holds .*model\.safetensors",
        ),
        (lambda copy: (copy / "config.json").write_text("{"), r"is no checkpoint: its config\.json is not JSON"),
        (lambda copy: (copy / "model.safetensors").unlink(), r"is no checkpoint: it has no weights"),
        (other_model_type, r"has the unknown model_type 'mezanet'"),
    ],
)
def test_directories_that_are_no_checkpoints(llama_checkpoint, tmp_path, change, message, capsys):
    path = broken(llama_checkpoint, tmp_path, change)
    assert main(["--checkpoint", path, "--tasks", "own_haystack_niah_1", *SMALL]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fla-mesa eval: ")
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)


@pytest.mark.parametrize(
    ("adapter", "weights", "installed", "message"),
    [
        ({"base_model_name_or_path": "BASE"}, True, False, "PEFT adapter, and peft is not installed; run: pip install peft"),
        ({"base_model_name_or_path": "BASE"}, False, True, "is no adapter: it has no weights"),
        ({"base_model_name_or_path": None}, True, True, "does not name the model that the adapter changes"),
        ({"base_model_name_or_path": "/nowhere"}, True, True, "checkpoint '/nowhere': there is no such directory"),
    ],
)  # fmt: skip
def test_adapters_that_cannot_be_evaluated(
    adapter, weights, installed, message, llama_checkpoint, tmp_path, capsys, monkeypatch
):
    found = importlib.util.find_spec
    spec = object() if installed else None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "peft" else found(name, *rest))
    path = adapter["base_model_name_or_path"]
    adapter = {"base_model_name_or_path": str(llama_checkpoint) if path == "BASE" else path}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    if weights:
        (tmp_path / "adapter_model.safetensors").touch()
    assert main(["--checkpoint", str(tmp_path), "--tasks", "own_haystack_niah_1", *SMALL]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_checkpoints_names_them(llama_checkpoint, capsys):
    assert main(["--checkpoint", str(llama_checkpoint.parent), "--tasks", "own_haystack_niah_1"]) == 2
    assert "did you mean one of llama inside it?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "synthetic", "ls", "tasks"], "--checkpoint and --suite belong to run, not to ls"),
        ([], "no tasks: pass --tasks NAME,... or --suite paper-zeroshot|paper-recall|paper-fewshot|paper-needles|text|mqar|mad|"),
        (["--tasks", "regbench", "--include_path", "/nowhere"], "--include_path: there is no /nowhere"),
        (["--tasks", "regbench", "--model_args", "pretrained=a", "--checkpoint", "b"], "not both"),
        (["--tasks", "regbench", "--model_args", "pretrained=LLAMA,cg_tolerence=1"], "Did you mean 'cg_tolerance'?"),
        (["--tasks", "regbench", "--model_args", "pretrained=LLAMA,cg_tolerance=0.1"], "got a model of type 'llama'"),
        (["--tasks", "regbench", "--model_args", "pretrained=MESANET,cg_tolerance=2"], "cg_tolerance must be a number in (0, 1)"),
        (["--tasks", "regbench", "--model_args", "pretrained=MESANET,max_cg_steps=0"], "max_cg_steps must be an integer >= 1"),
        (["--tasks", "heldout_bits_per_byte", "--metadata", "text=/nowhere.txt", "--checkpoint", "LLAMA"], "/nowhere.txt"),
        (["--tasks", "heldout_loss_by_position", "--metadata", "positions=1", "--checkpoint", "LLAMA"], "must be an integer >= 2"),
        (["--tasks", "regbench", "--checkpoint", "LLAMA", "--device", "cuda:77"], "device: this machine has cpu"),
        (["--tasks", "regbench", "--checkpoint", "LLAMA", "--device", "gpu"], "got 'gpu'"),
        (["--tasks", "regbench", "--model_args", "pretrained=LLAMA,dtype=float31"], "dtype: allowed are auto, float32"),
        (["--tasks", "regbench", "--model_args", "max_length=1", "--checkpoint", "LLAMA"], "max_length must be an integer >= 2; got 1"),
        (["--tasks", "regbench", "--checkpoint", "LLAMA", "--output_path", "LLAMA/config.json/out"], "config.json' is a file"),
        (["--tasks", "own_haystack_niah_1", "--metadata", "length=300", "--checkpoint", "LLAMA"], "length 300 is too short"),
        (["--tasks", "own_haystack_niah_1", "--metadata", "samples=0", "--checkpoint", "LLAMA"], "samples must be an integer >= 1"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message, llama_checkpoint, mesanet_checkpoint, capsys):
    arguments = [
        a.replace("LLAMA", str(llama_checkpoint)).replace("MESANET", str(mesanet_checkpoint)) for a in arguments
    ]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_task_that_does_not_exist_is_named_before_anything_runs(llama_checkpoint, capsys, monkeypatch):
    # The default index takes many seconds to build; what it holds does not matter here.
    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", staticmethod(lambda root: iter(())))
    assert main(["--checkpoint", str(llama_checkpoint), "--tasks", "own_haystack_niah_9", *SMALL]) == 2
    assert "Tasks not found: own_haystack_niah_9" in capsys.readouterr().err


def test_a_context_longer_than_asked_for_is_an_error_or_cut(llama_checkpoint, capsys):
    task = ["--tasks", "own_haystack_niah_1", *SMALL, "--model_args", f"pretrained={llama_checkpoint},max_length=256"]
    assert main(task) == 2
    assert "an input of 399 tokens is longer than max_length=256" in capsys.readouterr().err
    assert main([*task[:-1], f"{task[-1]},truncation=True"]) == 0


def test_generation_longer_than_asked_for_is_an_error(llama_checkpoint, local_tasks, capsys):
    arguments = ["--tasks", "local_generation", "--include_path", str(local_tasks), "--model_args"]
    assert main([*arguments, f"pretrained={llama_checkpoint},max_length=30"]) == 2
    assert "an input and its answer of" in capsys.readouterr().err


def test_generation_with_lm_eval_s_defaults_runs_for_every_architecture(short_checkpoint, local_tasks, capsys):
    """Its model says that it was trained on 32 tokens; lm-eval would leave no room for 256 new ones."""
    arguments = [
        "--tasks",
        "local_default_generation",
        "--include_path",
        str(local_tasks),
        "--checkpoint",
        short_checkpoint,
    ]
    assert main([*arguments, "--limit", "1", "--batch_size", "1"]) == 0
    assert "skipped" not in capsys.readouterr().out
    assert main([*arguments, "--limit", "1", "--model_args", "max_length=256,truncation=True"]) == 2
    assert "an answer of 256 tokens (max_gen_toks) leaves no room" in capsys.readouterr().err


@pytest.fixture
def short_checkpoint(mesanet_checkpoint, tmp_path):
    """One that stores that it was trained on sequences of 32 tokens."""
    copy = shutil.copytree(mesanet_checkpoint, tmp_path / "short")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    return str(copy)


def test_one_context_for_all_rows_and_what_is_cut_is_counted(short_checkpoint, llama_checkpoint, tmp_path, capsys):
    both = ["--checkpoint", short_checkpoint, str(llama_checkpoint), "--tasks", "own_haystack_niah_1", *SMALL]
    assert main([*both, "--output_path", str(tmp_path / "whole")]) == 0
    table = (tmp_path / "whole" / "comparison.md").read_text()
    assert table.startswith("Context: at most 2,048 tokens.\n") and "inputs cut" not in table
    cut = ["--model_args", "max_length=300,truncation=True", "--output_path", str(tmp_path / "cut")]
    for _ in range(2):  # the second time answers come from the cache, and are cut no less
        assert main([*both, *cut, "--use_cache", str(tmp_path / "cache")]) == 0
        table = squeezed((tmp_path / "cut" / "comparison.md").read_text())
        assert table.startswith("Context: at most 300 tokens.\n")
        assert "| own_haystack_niah_1 | inputs cut | 3 of 3 | 3 of 3 |" in table
    data = json.loads((tmp_path / "cut" / "comparison.json").read_text())
    assert data["max_length"] == {"short": 300, "llama": 300}
    assert data["cut"]["short"] == {"own_haystack_niah_1": {"cut": 3, "of": 3}}


def test_inputs_are_counted_as_cut_exactly_where_lm_eval_cuts_them(llama_checkpoint):
    lm = FlaMesaLM(str(llama_checkpoint), device="cpu", max_length=10, truncation=True)

    def counted(kind, *arguments):
        samples = {"t": [{"filter": "none", "arguments": [arguments]}]}
        return cut_inputs(lm, {"samples": samples, "configs": {"t": {"output_type": kind}}})

    # Nine tokens are read of ten: the last is only predicted.
    assert counted("loglikelihood", "a" * 6, "b" * 5) == {}
    assert counted("multiple_choice", "a" * 7, "b" * 5) == {"t": {"cut": 1, "of": 1}}
    assert counted("loglikelihood", "", "b" * 10) == {} != counted("loglikelihood", "", "b" * 11)
    assert counted("generate_until", "a" * 7, {"max_gen_toks": 3}) == {}
    assert counted("generate_until", "a" * 7, {"max_new_tokens": 4}) == {"t": {"cut": 1, "of": 1}}
    assert counted("loglikelihood_rolling", "a" * 50) == {}


def test_a_model_with_fewer_positions_is_refused_before_the_first_is_evaluated(llama_checkpoint, tmp_path, capsys):
    GPT2LMHeadModel(GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=1, vocab_size=257)).save_pretrained(
        tmp_path / "gpt2"
    )
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    tasks = ["--tasks", "own_haystack_niah_1", *SMALL, "--checkpoint", str(llama_checkpoint)]
    assert main([*tasks, str(tmp_path / "gpt2")]) == 2
    captured = capsys.readouterr()
    assert (
        "pass --model_args max_length=64,truncation=True" in captured.err and "own_haystack_niah_1|" not in captured.out
    )
    assert main([*tasks, str(tmp_path / "nowhere")]) == 2
    captured = capsys.readouterr()
    assert "there is no such directory" in captured.err and "own_haystack_niah_1|" not in captured.out


def test_the_cache_is_one_a_model(mesanet_checkpoint, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(mesanet_checkpoint, other)
    model = MesaNetForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    model.save_pretrained(other)
    (tmp_path / "text.txt").write_text("The owl and the lamp.\n" * 8)

    def score(checkpoint, *settings, batch=1):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        arguments = [
            "--model_args",
            ",".join([f"pretrained={checkpoint}", *settings]),
            "--use_cache",
            str(tmp_path / "cache" / "answers"),
        ]
        arguments += [
            "--tasks",
            "heldout_bits_per_byte",
            "--metadata",
            f"text={tmp_path / 'text.txt'}",
            "--device",
            "cpu",
        ]
        assert main([*arguments, "--output_path", str(out), "--batch_size", str(batch)]) == 0
        (file,) = out.glob("*/results_*.json")
        return json.loads(file.read_text())["results"]["heldout_bits_per_byte"]["bits_per_byte,none"]

    def files():
        return len(list((tmp_path / "cache").glob("answers_*_rank0.db")))

    settings = ("max_cg_steps=1", "dtype=bfloat16", "max_length=16")
    scores = [score(mesanet_checkpoint), score(other), *(score(mesanet_checkpoint, setting) for setting in settings)]
    assert len(set(scores)) == files() == 5
    # The same weights elsewhere, in other batches: the same file, and no question asked.
    elsewhere = shutil.copytree(mesanet_checkpoint, tmp_path / "elsewhere")
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(FlaMesaLM, "_model_call", None)
        assert score(elsewhere, batch=3) == scores[0]
    assert files() == 5


def test_stored_requests_are_not_for_tasks_that_metadata_changes(llama_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("lm_eval.caching.cache.PATH", str(tmp_path / "requests"))
    lengths = []
    for length in (400, 500):
        out = tmp_path / str(length)
        arguments = [
            "--checkpoint",
            str(llama_checkpoint),
            "--tasks",
            "own_haystack_niah_1",
            "--cache_requests",
            "true",
            "--log_samples",
        ]
        assert (
            main(
                [
                    *arguments,
                    "--metadata",
                    f"length={length}",
                    "samples=1",
                    "--device",
                    "cpu",
                    "--output_path",
                    str(out),
                ]
            )
            == 0
        )
        (file,) = out.glob("*/samples_*.jsonl")
        lengths.append(len(json.loads(file.read_text().splitlines()[0])["arguments"]["gen_args_0"]["arg_0"]))
    assert lengths[1] > lengths[0] + 50


def test_sequences_longer_than_asked_for_are_an_error(suite_checkpoint, capsys):
    assert main(["--tasks", "recorded_suite", "--model_args", f"pretrained={suite_checkpoint},max_length=16"]) == 2
    assert "a sequence of 32 tokens is longer than max_length=16" in capsys.readouterr().err


def test_solver_settings_reach_the_layers_and_change_the_answers(mesanet_checkpoint):
    ids = torch.arange(60, 160)[None]
    lms = {steps: FlaMesaLM(str(mesanet_checkpoint), device="cpu", max_cg_steps=steps) for steps in (1, 2, 30)}
    loose = FlaMesaLM(str(mesanet_checkpoint), device="cpu", cg_tolerance=0.5)
    default = FlaMesaLM(str(mesanet_checkpoint), device="cpu")
    exact = FlaMesaLM(str(mesanet_checkpoint), device="cpu", backend="exact")
    assert all(layer.attn.backend == "exact" for layer in exact.model.model.layers)
    torch.testing.assert_close(exact._model_call(ids), default._model_call(ids), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match=r"backend must be None or one of .*; got 'cuda'"):
        FlaMesaLM(str(mesanet_checkpoint), device="cpu", backend="cuda")
    for steps, lm in lms.items():
        assert all(
            layer.attn.max_cg_step_training == layer.attn.max_cg_step_decoding == steps
            for layer in lm.model.model.layers
        )
    logits = {name: lm._model_call(ids) for name, lm in [*lms.items(), ("loose", loose), ("default", default)]}
    assert torch.equal(logits[30], logits["default"])
    for name in (1, 2, "loose"):
        assert not torch.allclose(logits[name], logits["default"], atol=1e-3)


def test_every_suite_has_its_tasks(suite_checkpoint, llama_checkpoint, tmp_path):
    (tmp_path / "text.txt").write_text("words " * 100)
    settings = {"text": str(tmp_path / "text.txt"), "positions": 64, "length": 400, "samples": 2}
    for checkpoint, wanted in ((suite_checkpoint, "mqar_64x4"), (llama_checkpoint, "own_haystack_niah_3")):
        tasks = Tasks(metadata={"pretrained": str(checkpoint), **settings}, include_defaults=False)
        assert wanted in tasks.load([wanted])["tasks"]
    texts = ["heldout_bits_per_byte", "heldout_loss_by_position"]
    assert set(tasks.load(texts)["tasks"]) == set(texts)
    names = {name.replace("-", "_") for name in synthetic.suites()}
    assert names <= set(tasks.all_tasks)
    assert set(suite("synthetic").tasks) <= set(tasks.all_subtasks)
    assert tasks.all_groups == ["mqar"]
    anyone = Tasks(metadata={"any_checkpoint": True}, include_defaults=False)
    loaded = anyone.load([task for task in suite("synthetic").tasks if task.startswith(("mad", "regbench"))])["tasks"]
    assert {name: len(task.test_docs()) for name, task in loaded.items()} == {
        name: 250 if name == "regbench" else 1280 for name in loaded
    }


def test_names_patterns_files_and_folders_of_tasks(local_tasks, tmp_path):
    tasks = Tasks([local_tasks], include_defaults=False)
    assert tasks.find(["mad_*", "mad_compression"]) == sorted(name for name in tasks.all_tasks if "mad_" in name)
    (file,) = tasks.find([str(local_tasks / "choice.yaml")])
    assert tasks.find([str(local_tasks)]) == sorted(map(str, local_tasks.glob("*.yaml"))) and file in tasks.find(
        ["*", str(local_tasks)]
    )
    assert not tasks.is_ours(file) and not tasks.is_ours("local_choice") and tasks.is_ours("mqar_64x4")
    with pytest.raises(ValueError, match="Tasks not found: nonsense, none_\\*"):
        tasks.find(["regbench", "nonsense", "none_*"])
    # A group whose members are lm-eval's own is not complete without them.
    (tmp_path / "group.yaml").write_text("group: mine\ntask: [local_choice, hellaswag]\n")
    assert not Tasks([local_tasks, tmp_path], include_defaults=False)._holds("mine")


def test_a_synthetic_task_of_a_plugin_has_its_entry(llama_checkpoint, tmp_path, capsys):
    (tmp_path / "recall_of_a_plugin.py").write_text(
        "from dataclasses import dataclass\nfrom fla_mesa.data import synthetic\nfrom fla_mesa.data.synthetic.mqar import MQAR\n\n"
        "@synthetic.register('recall-of-a-plugin', sizes=(8, 2, 5))\n@dataclass(frozen=True)\nclass Recall(MQAR):\n"
        "    name = 'recall-of-a-plugin'\n    vocab_size: int = 64\n    length: int = 32\n    num_pairs: int = 2\n"
    )
    arguments = ["--plugin", str(tmp_path / "recall_of_a_plugin.py"), "--checkpoint", str(llama_checkpoint)]
    try:
        code = main(
            [*arguments, "--tasks", "recall_of_a_plugin", "--metadata", "any_checkpoint=True", "--device", "cpu"]
        )
    finally:
        REGISTRY.pop("recall-of-a-plugin", None)
    assert code == 0 and "recall_of_a_plugin" in capsys.readouterr().out


def test_held_out_text(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    assert documents.read_documents(str(tmp_path)) == ["first", "second"]
    assert documents.read_documents(str(tmp_path / "a.md")) == ["first"]
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n{"words": "two"}\n')
    with pytest.raises(ValueError, match=r"line 2 of '.*c\.jsonl' is no JSON object with a 'text'"):
        documents.read_documents(str(tmp_path / "c.jsonl"))
    assert len(documents.read_documents("stdlib")) > 20


def test_buckets_cover_every_position_once():
    for length in (2, 10, 16, 17, 100, 512):
        covered = [p for first, end in position_ranges(length) for p in range(first, end)]
        assert covered == list(range(1, length))


def test_names_are_as_short_as_they_can_be():
    assert short_names(["runs/a/model", "runs/b/model"]) == ["a/model", "b/model"]
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]


def test_best_values_are_bold_and_ties_of_all_are_not():
    def result(acc, loss):
        results = {
            "results": {
                "t": {
                    "alias": "t",
                    "acc,none": acc,
                    "acc_stderr,none": 0.1,
                    "loss,none": loss,
                    "loss_stderr,none": "N/A",
                }
            },
            "higher_is_better": {"t": {"acc": True, "loss": False}},
        }
        return Evaluation(results)

    table = compare({"a": result(0.5, 2.0), "b": result(0.5, 1.0), "c": Evaluation()}).markdown()
    table = squeezed(table)
    assert "| t | acc ↑ | 0.5000 ± 0.1000 | 0.5000 ± 0.1000 | – |" in table
    assert "| t | loss ↓ | 2.0000 | **1.0000** | – |" in table


def test_plain_lm_eval_loads_a_checkpoint_with_the_stub(mesanet_checkpoint, llama_checkpoint, tmp_path):
    copy = tmp_path / "with stub"
    shutil.copytree(mesanet_checkpoint, copy)
    assert write_remote_code(copy)
    assert not write_remote_code(llama_checkpoint)
    text = tmp_path / "text.txt"
    text.write_text("The owl and the lamp.\n" * 8)
    # Nothing here imports this package but the stub: lm-eval's own program, its own model, its own flags.
    program = (
        "import sys; from lm_eval.tasks._index import TaskIndex as I; find = I._iter_yaml_files\n"
        "I._iter_yaml_files = staticmethod(lambda root: iter(()) if 'lm_eval' in str(root) else find(root))\n"  # spares the long index
        "from lm_eval.__main__ import cli_evaluate; assert 'fla_mesa' not in sys.modules; cli_evaluate()"
    )
    root = str(Path(__file__).parents[2])
    arguments = ["--model", "hf", "--model_args", f"pretrained={copy},trust_remote_code=True", "--device", "cpu"]
    arguments += ["--tasks", "heldout_bits_per_byte", "--include_path", str(FILES), "--metadata", f"text={text}"]
    arguments += ["--output_path", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "PYTHONPATH": root,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, "run", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = (tmp_path / "out").glob("*/results_*.json")
    by_plain = json.loads(file.read_text())["results"]["heldout_bits_per_byte"]["bits_per_byte,none"]
    ours = [
        "--checkpoint",
        str(mesanet_checkpoint),
        "--tasks",
        "heldout_bits_per_byte",
        "--metadata",
        f"text={text}",
        "--device",
        "cpu",
    ]
    assert main([*ours, "--output_path", str(tmp_path / "ours")]) == 0
    (file,) = (tmp_path / "ours").glob("*/results_*.json")
    assert json.loads(file.read_text())["results"]["heldout_bits_per_byte"]["bits_per_byte,none"] == pytest.approx(
        by_plain, rel=1e-6
    )
