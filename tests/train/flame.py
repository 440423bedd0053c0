"""What flame does to a model (its train.py and parallelize_fla.py), on a mesh of gloo ranks in place of GPUs.

with torch.device("meta"): model = AutoModelForCausalLM.from_config(config); model.criterion = its own; _is_hf_initialized = False
fully_shard every block of model.model.layers, then the model     (activation checkpointing and compilation wrap blocks before that)
to_empty, post_init, then packed batches with int32 cu_seqlens and position_ids
"""

import copy
import math
import traceback
from typing import Any

import torch
import torch.distributed as dist
from fla.modules import FusedLinearCrossEntropyLoss
from fla.ops.utils import prepare_position_ids
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from fla_mesa.layers.matched import RULES
from fla_mesa.models import MatchedConfig, MesaNetConfig
from fla_mesa.train.decay import decay_groups, exempt_parameters

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 2, "head_dim": 16, "vocab_size": 64}
HYBRID = {"attn": {"layers": [1], "num_heads": 2}}
LINEAR = {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True, "logit_soft_cap": 1.0}
# Name: configuration, its settings, what the trainer is told besides.
CASES: dict[str, tuple[type[MesaNetConfig], dict[str, Any], set[str]]] = {
    **{
        f"mesanet, {heads} head{'s' * (heads > 1)}{', tied' * tied}{', bfloat16' * half}": (
            MesaNetConfig,
            {"num_heads": heads, "gamma_init": (0.6, 0.9), "tie_word_embeddings": tied},
            {"bfloat16"} if half else set(),
        )
        for heads in (1, 2)
        for tied in (True, False)
        for half in (True, False)
    },
    "mesanet, fused linear loss": (MesaNetConfig, LINEAR, set()),
    "mesanet, checkpointed blocks": (MesaNetConfig, {}, {"checkpointed"}),
    "mesanet, frozen lambda, output gate, biases, PyTorch's norms": (
        MesaNetConfig,
        {"train_lambda": False, "lambda_init": 0.7, "use_output_gate": True, "conv_bias": True, "fuse_norm": False},
        set(),
    ),
    "mesanet, no convolutions": (MesaNetConfig, {"use_short_conv": False, "use_v_conv": False}, set()),
    "hybrid": (MesaNetConfig, HYBRID, set()),
    **{f"matched {rule}": (MatchedConfig, {"rule": rule}, set()) for rule in RULES},
    "matched rg_lru, bfloat16": (MatchedConfig, {"rule": "rg_lru"}, {"bfloat16"}),
    "hawk_mesa, one head": (MatchedConfig, {"rule": ["rg_lru", "mesa"], "num_heads": 1}, set()),
    "matched hybrid": (MatchedConfig, {"rule": ["gated_delta"], **HYBRID}, set()),
}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor put together from the ranks' shards."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def build(config: MesaNetConfig, told: set[str]) -> PreTrainedModel:
    """The model as flame has it when training starts."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if config.fuse_linear_cross_entropy:
            model.criterion = FusedLinearCrossEntropyLoss(num_chunks=8)
        model.apply(lambda module: setattr(module, "_is_hf_initialized", False))
    if "checkpointed" in told:
        for name, block in model.model.layers.named_children():
            model.model.layers.register_module(name, checkpoint_wrapper(block, preserve_rng_state=False))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if "bfloat16" in told else None, reduce_dtype=torch.float32
    )
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):  # what the memory happened to hold, at its worst
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(math.nan)
        model.post_init()
    return model.train()


def batch(rank: int) -> dict[str, torch.Tensor]:
    """A packed row of the rank: three documents of unequal length."""
    tokens = torch.randint(0, 64, (1, 40), generator=torch.Generator().manual_seed(rank))
    cu_seqlens = torch.tensor([0, 13, 14 + rank, 40], dtype=torch.int32)
    position_ids = prepare_position_ids(cu_seqlens).to(torch.int32)
    return {"input_ids": tokens, "labels": tokens, "cu_seqlens": cu_seqlens, "position_ids": position_ids}


def check_start(model: PreTrainedModel, references: list[PreTrainedModel]) -> None:
    """The same starting values as without shards: equal where nothing is drawn, of the same mean and deviation where something is."""
    first, second = (dict(reference.named_parameters()) for reference in references)
    for name, parameter in model.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "")
        assert parameter.requires_grad == first[name].requires_grad, name
        got, want = whole(parameter), first[name].detach()
        assert got.dtype == want.dtype and got.shape == want.shape, name
        assert bool(torch.isfinite(got).all()), f"{name}: {got}"
        if torch.equal(want, second[name].detach()):
            assert torch.equal(got, want), f"{name}: {got} for {want}"
        else:  # five standard errors, of the mean and of the deviation
            slack = 5 / got.numel() ** 0.5
            assert abs(got.mean() - want.mean()) < 1.5 * slack * want.std(), (
                f"{name}: mean {got.mean()} for {want.mean()}"
            )
            assert abs(got.std() / want.std() - 1) < slack, f"{name}: deviation {got.std()} for {want.std()}"
    buffers = dict(references[0].named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name.replace("_checkpoint_wrapped_module.", "")]), name


def check_step(model: PreTrainedModel, reference: PreTrainedModel, told: set[str]) -> None:
    """Loss and gradients of a packed batch a rank are those of one process with the same weights; then a step of the optimizer."""
    set_model_state_dict(model, reference.state_dict(), options=StateDictOptions(full_state_dict=True))
    if "bfloat16" in told:
        reference = copy.deepcopy(reference).bfloat16()
    tolerance = 3e-2 if "bfloat16" in told else 1e-5
    rank, ranks = dist.get_rank(), dist.get_world_size()
    want = [reference.train()(**batch(other)).loss for other in range(ranks)]
    got = model(**batch(rank)).loss
    torch.testing.assert_close(got.float(), want[rank].float(), rtol=tolerance, atol=0)
    got.backward()
    (sum(want) / ranks).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = gradients[name.replace("_checkpoint_wrapped_module.", "")]
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        error = (whole(parameter.grad) - expected).norm() / expected.float().norm().clamp_min(1e-6)
        assert error < 30 * tolerance, f"{name}: gradient off by {error}"

    exempt = exempt_parameters(model)
    assert {name.replace("_checkpoint_wrapped_module.", "") for name in exempt} == exempt_parameters(reference)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert all(bool(torch.isfinite(whole(parameter)).all()) for parameter in model.parameters())
    after = model(**batch(rank)).loss
    assert bool(torch.isfinite(after))


def check_all() -> dict[str, str]:
    """What is wrong with each case, by name; nothing where all is right."""
    wrong = {}
    for name, (config_class, changes, told) in CASES.items():
        try:
            config = config_class(**{**TINY, **changes})
            references = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                references.append(AutoModelForCausalLM.from_config(config))
            torch.manual_seed(100 + dist.get_rank())  # on GPUs, DTensor sees to it that ranks draw different numbers
            model = build(config, told)
            if config.tie_word_embeddings:
                assert model.lm_head.weight is model.model.embeddings.weight
            check_start(model, references)
            check_step(model, references[0], told)
        except Exception:  # each case is reported by itself
            wrong[name] = traceback.format_exc()
        # A rank that fails alone would leave the others waiting in the next case.
        failed = torch.tensor(float(name in wrong))
        dist.all_reduce(failed)
    return wrong
