"""The files for accelerate and DeepSpeed in configs/, as their own readers take them."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import AutoModelForCausalLM

from fla_mesa.models import MatchedConfig, MesaNetConfig

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "vocab_size": 64}


@pytest.mark.parametrize("config", [MesaNetConfig(**TINY), MatchedConfig(**TINY)])
def test_accelerate_shards_our_blocks(config):
    """What `accelerate launch` makes of the file, and which modules its policy would shard."""
    file = load_config_from_file(str(CONFIGS / "accelerate" / "fsdp2.yaml"))  # raises for a key that it does not know
    assert file.distributed_type == "FSDP" and file.mixed_precision == "bf16"
    settings = {name.removeprefix("fsdp_"): value for name, value in file.fsdp_config.items()}
    assert settings.pop("version") == 2
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_offload=settings.pop("offload_params"),
        **{name: value.lower() if name == "auto_wrap_policy" else value for name, value in settings.items()},
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    plugin.set_auto_wrap_policy(model)
    policy = plugin.auto_wrap_policy
    sharded = [m for m in model.modules() if policy(module=m, recurse=False, nonwrapped_numel=0)]
    assert sharded == list(model.model.layers)


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_deepspeed_files_leave_to_transformers_what_it_knows_how_to_fill(name, stage):
    """tests/integrations/test_deepspeed.py has transformers and DeepSpeed read them."""
    settings = json.loads((CONFIGS / "deepspeed" / f"{name}.json").read_text())
    zero = settings.pop("zero_optimization")
    assert zero["stage"] == stage
    assert {key for key, value in zero.items() if value == "auto"} <= {
        "reduce_bucket_size",
        "stage3_prefetch_bucket_size",
        "stage3_param_persistence_threshold",
    }
    assert {key for key, value in settings.items() if value == "auto"} == {
        "gradient_accumulation_steps",
        "gradient_clipping",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
    }
