"""DeepSpeed ZeRO-3 builds every architecture of the zoo as transformers builds it: each parameter is taken away as soon as it exists."""

import json
import math
import os
import traceback
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from fla_mesa.models import zoo
from fla_mesa.testing.ranks import run_once

pytest.importorskip("deepspeed", reason="needs the extra `integrations`: pip install -e '.[integrations]'")

CONFIGS = Path(__file__).parents[2] / "configs" / "deepspeed"
TOKENS = {
    "vocab_size": 256,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": None,
    "max_position_embeddings": 64,
}


def built() -> dict[str, str]:
    """What is wrong with each architecture under ZeRO-3 in a group of one; nothing where all is right."""
    # The address is read, not used: the group exists.
    os.environ.update(DS_ACCELERATOR="cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    def statistics(model: torch.nn.Module) -> dict[str, tuple[float, float, tuple[int, ...]]]:
        found = {}
        for name, parameter in model.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter) if hasattr(parameter, "ds_id") else nullcontext():
                values = parameter.detach().float()
                found[name] = (values.mean().item(), values.std(correction=0).item(), tuple(values.shape))
        return found

    wrong: dict[str, str] = {}
    whole, again = {}, {}
    for name in zoo.names():
        for seed, found in ((0, whole), (1, again)):
            torch.manual_seed(seed)
            found[name] = statistics(zoo.build(name, "2x64", **TOKENS))
    # Its shared memory between processes is compiled when a group begins; a group of one has no use for it.
    deepspeed.comm.torch.build_shm_op = lambda: None
    deepspeed.init_distributed("gloo")
    kept = HfDeepSpeedConfig({"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}})
    for name in zoo.names():
        try:
            model = zoo.build(name, "2x64", **TOKENS)
            assert all(hasattr(parameter, "ds_id") for parameter in model.parameters()), "ZeRO-3 was not on"
            for parameter, (mean, deviation, shape) in statistics(model).items():
                want_mean, want_deviation, want_shape = whole[name][parameter]
                assert shape == want_shape, parameter
                assert math.isfinite(mean), parameter
                if torch.Size(shape).numel() < 16 and whole[name][parameter] != again[name][parameter]:
                    continue  # a few draws, one a head, say nothing of what they are drawn from
                # Five standard errors where numbers are drawn; nothing but rounding where they are not.
                slack = 5 * want_deviation / torch.Size(shape).numel() ** 0.5 + 1e-6 * (1 + abs(want_mean))
                assert abs(mean - want_mean) <= 1.5 * slack, f"{parameter}: mean {mean} for {want_mean}"
                assert abs(deviation - want_deviation) <= slack, (
                    f"{parameter}: deviation {deviation} for {want_deviation}"
                )
        except Exception:  # each architecture is reported by itself
            wrong[name] = traceback.format_exc()
    del kept  # transformers looks for it as long as it lives
    return wrong


@pytest.fixture(scope="module")
def wrong(tmp_path_factory) -> dict[str, str]:
    return run_once(tmp_path_factory, built, 1)[0]


@pytest.mark.parametrize("name", zoo.names())
def test_zero_3_builds_it_with_the_same_starting_values(wrong, name):
    assert name not in wrong, wrong[name]


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_transformers_fills_the_shipped_files_and_deepspeed_reads_them(name, stage, tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime.config import DeepSpeedConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig

    with torch.device("meta"):  # first: as long as the settings of stage 3 live, every model is taken apart
        model = zoo.build("mesanet", "2x64", **TOKENS)
    filled = HfTrainerDeepSpeedConfig(json.loads((CONFIGS / f"{name}.json").read_text()))
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_grad_norm=1.0)
    filled.trainer_config_process(arguments)
    filled.trainer_config_finalize(arguments, model, num_training_steps=10)
    assert "auto" not in json.dumps(filled.config)
    read = DeepSpeedConfig(filled.config)
    assert read.zero_optimization_stage == stage and read.gradient_clipping == 1.0
