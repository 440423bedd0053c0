"""The command line: every flag of TrainingArguments, the recipe's defaults, and what is refused."""

import re
from dataclasses import fields
from functools import cached_property

import pytest
from transformers import TrainingArguments

from fla_mesa.models import zoo
from fla_mesa.train import overrides
from fla_mesa.train.command import main
from fla_mesa.train.recipe import prepare
from fla_mesa.train.settings import RecipeSettings, parse


def test_help_shows_the_recipes_flags_first_and_all_of_transformers(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    # Python 3.13 gives the value's name once, behind a flag's last spelling: "--seq_len, --seq-len SEQ_LEN".
    places = {match[1]: match.start() for match in reversed(list(re.finditer(r"--(\w+)[ ,]", text)))}
    assert max(places[item.name] for item in fields(RecipeSettings)) < places["learning_rate"]
    assert {item.name for item in fields(TrainingArguments) if item.init} <= places.keys()
    flat = re.sub(r"\s+", " ", text)
    assert "Models: mesanet" in flat and "Sizes: tiny" in flat and "Data: stdlib" in flat
    assert "(default: None)" not in flat


def test_defaults_are_the_fields_recipe(tmp_path):
    settings, arguments = parse([])
    assert (settings.model, settings.size, settings.data) == ("mesanet", "tiny", "stdlib")
    assert arguments.output_dir == "runs/mesanet-tiny"
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.98, 0.1)
    assert arguments.max_grad_norm == 1.0 and arguments.warmup_steps == 0.05
    assert arguments.lr_scheduler_type == "cosine_with_min_lr" and arguments.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert not arguments.logging_nan_inf_filter


def test_flags_of_transformers_arrive():
    given = [
        "--optim",
        "sgd",
        "--lr_scheduler_type",
        "linear",
        "--lr-scheduler-kwargs",
        "{}",
        "--bf16",
        "--report_to",
        "none",
    ]
    _, arguments = parse([*given, "--use_cpu", "--output_dir", "elsewhere", "--gradient_checkpointing", "true"])
    assert arguments.optim == "sgd" and arguments.lr_scheduler_type == "linear" and arguments.bf16
    assert arguments.output_dir == "elsewhere" and arguments.gradient_checkpointing
    _, arguments = parse(["--lr_scheduler_type", "linear"])
    assert arguments.lr_scheduler_kwargs in (None, {})  # the cosine's own would be an error there


def test_float32_on_a_cpu():
    assert parse(["--use_cpu"])[1].bf16 is False


def test_one_process_trains_on_one_of_several_gpus_with_its_own_batch(monkeypatch, tmp_path):
    """transformers counts the GPUs where it sets up the devices, and multiplies the batch by them."""
    alone, set_up = parse([])[1], TrainingArguments._setup_devices.func

    def with_eight(arguments):
        device = set_up(arguments)
        arguments._n_gpu = 8
        return device

    eight = cached_property(with_eight)
    eight.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", eight)
    assert TrainingArguments(output_dir=str(tmp_path)).train_batch_size == 8 * 8  # as it would be
    settings, arguments = parse(["--gradient_accumulation_steps", "2", "--output_dir", str(tmp_path / "run")])
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 8 and arguments.sequences_per_step == 16
    assert alone.about_idle_gpus is None
    said = []
    prepared = prepare(settings, arguments, say=said.append)
    assert prepared.description["sequences_per_step"] == 16 and arguments.n_gpu == 1
    assert said[0].startswith("of 8 GPUs one process trains on one: torchrun --nproc_per_node 8 -m fla_mesa train")
    assert sum("GPU" in line for line in said) == 1


def test_unknown_flags_are_refused_with_a_guess(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--seqlen", "64"])
    assert end.value.code == 2
    assert "unknown: --seqlen 64 (did you mean --seq_len?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--learning", "1e-3"])  # abbreviations would hide mistakes


def test_values_out_of_range_are_refused(capsys):
    for flag, value in (("--adam_beta2", "1"), ("--per_device_train_batch_size", "0"), ("--max_steps", "0")):
        assert main([flag, value]) == 2
        assert f"{flag[2:]}: allowed is" in capsys.readouterr().err
    assert main(["--resume", "--overwrite"]) == 2
    assert "resume, overwrite: allowed is one of the two, got both" in capsys.readouterr().err


# Overrides of the configuration


def config():
    ids = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    return zoo.build_config("mesanet", "tiny", vocab_size=257, max_position_embeddings=64, **ids)


def test_overrides_in_both_forms():
    changed = overrides.apply(config(), "hidden_size=32, gamma_cap=null,norm_eps=1,hidden_act=powlu")
    assert (changed.hidden_size, changed.gamma_cap, changed.norm_eps) == (32, None, 1)
    assert (changed.hidden_act, changed.vocab_size) == ("powlu", 257)
    attention = overrides.apply(config(), '{"attn": {"layers": [1], "num_heads": 2}, "hidden_size": 64}')
    assert attention.attn["layers"] == [1] and attention.hidden_size == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden_size=32", "mesanet has no setting 'hiden_size'; did you mean hidden_size?"),
        ("zzz=1", "no setting 'zzz'; it has .*hidden_size"),
        ("hidden_size=wide", "hidden_size is 128, so it cannot become 'wide'"),
        ("hidden_size=true", "hidden_size is 128, so it cannot become True"),
        ("vocab_size=300", "vocab_size is set by --data"),
        ("hidden_size", "expected key=value"),
        ("hidden_size=", "expected key=value"),
        ('{"hidden_size": ', "not a JSON object"),
        ("num_hidden_layers=-1", "num_hidden_layers"),
    ],
)
def test_overrides_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message) if "*" not in message else message):
        overrides.apply(config(), text)
