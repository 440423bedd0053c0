"""Models on shards over 1 to 4 ranks against the model on the whole row in one process."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MesaNetConfig, MesaNetForCausalLM
from fla_mesa.ops import make_cp_context, take_shard
from fla_mesa.testing.ranks import run_on_ranks, run_once

T, SIZES = 24, (1, 2, 3, 4)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "cg_tolerance": 1e-7,
}
# In float64, where a small model's gradients do not magnify rounding; layers compute their gates in float32 even then.
EXACT = {"cg_tolerance": 1e-13, "max_cg_step_training": 60}
LENGTHS = {
    "one document": (24,),
    "inside shards": (5, 12, 7),
    "at edges": (6, 6, 12),
    "of one token": (1, 10, 1, 1, 11),
}
# Settings, and the documents they are tried with.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "plain": ({}, tuple(LENGTHS)),
    "convolutions longer than a shard": ({"conv_size": 9}, ("one document", "inside shards")),
    "no convolution": ({"use_short_conv": False, "use_v_conv": False}, ("inside shards",)),
    "only values convolved, with bias": ({"use_short_conv": False, "conv_bias": True}, ("inside shards",)),
    "output gate, untied, uncapped": (
        {"use_output_gate": True, "tie_word_embeddings": False, "logit_soft_cap": None, "gamma_cap": None},
        ("inside shards",),
    ),
    "loss fused with the projection": (
        {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True},
        ("inside shards",),
    ),
    "linear attention": ({"rule": "gated_linear_no_input_gate"}, ("one document", "inside shards")),
    "linear attention with input gate": ({"rule": "gated_linear"}, ("one document", "of one token")),
    "rules in turn": ({"rule": ["mesa", "gated_linear"]}, ("inside shards",)),
}


def build(settings: dict[str, Any]) -> MesaNetForCausalLM:
    """The same model on every rank."""
    torch.manual_seed(0)
    settings = {**TINY, **settings}
    if "rule" in settings:
        if "mesa" not in settings["rule"]:  # a rule without a solver refuses its settings
            settings = {name: value for name, value in settings.items() if name not in EXACT}
        return MatchedForCausalLM(MatchedConfig(**settings)).train()
    return MesaNetForCausalLM(MesaNetConfig(**settings)).train()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """A row of tokens and the target of each, some without."""
    rng = torch.Generator().manual_seed(0)
    tokens, targets = torch.randint(0, 50, (2, 1, T), generator=rng)
    return tokens, targets.masked_fill(torch.rand(1, T, generator=rng) < 0.2, -100)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of every parameter, copied."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> float:
    """The largest relative error of loss, of logits, and of the gradient of all parameters."""
    assert got.keys() == want.keys()
    apart = {name: [name] for name in ("loss", "logits") if name in want}
    groups = [*apart.values(), [name for name in want if name not in apart]]

    def norm(of: Callable[[str], torch.Tensor], names: list[str]) -> float:
        return float(torch.stack([of(name).double().norm() for name in names]).norm())

    return max(norm(lambda n: got[n] - want[n], names) / norm(lambda n: want[n], names) for names in groups)


def on_shards(model: MesaNetForCausalLM, cu_seqlens: torch.Tensor, group: Any) -> dict[str, torch.Tensor]:
    """Loss, logits of this rank and gradients, summed over the group."""
    context, (tokens, targets) = make_cp_context(cu_seqlens, group), batch()
    model.zero_grad()
    out = model(take_shard(tokens, context), shift_labels=take_shard(targets, context), cp_context=context)
    out.loss.backward()
    got = gradients(model)
    total = torch.cat([gradient.flatten() for gradient in got.values()])  # one message for all
    dist.all_reduce(total, group=group)
    parts = total.split([gradient.numel() for gradient in got.values()])
    got = {name: part.view_as(gradient) for (name, gradient), part in zip(got.items(), parts, strict=True)}
    return {"loss": out.loss.detach()} | ({} if out.logits is None else {"logits": out.logits.detach()}) | got


def on_the_whole(model: MesaNetForCausalLM, cu_seqlens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same in one process."""
    tokens, targets = batch()
    model.zero_grad()
    out = model(tokens, shift_labels=targets, cu_seqlens=cu_seqlens)
    out.loss.backward()
    logits = {} if out.logits is None else {"logits": out.logits.detach()}
    return {"loss": out.loss.detach()} | logits | gradients(model)


def errors_of_variants(groups: dict[int, Any]) -> dict[tuple[torch.dtype, str, str, int], float]:
    """How far loss, logits and gradients are from those of the whole, by type, variant, documents and size of the group."""
    found = {}

    def compare(model: MesaNetForCausalLM, variant: str, name: str) -> None:
        cu_seqlens = torch.tensor([0, *LENGTHS[name]]).cumsum(0)
        whole = on_the_whole(model, cu_seqlens)
        for size, group in groups.items():
            if dist.get_rank() < size:
                context, got = make_cp_context(cu_seqlens, group), on_shards(model, cu_seqlens, group)
                want = {n: take_shard(x, context) if n == "logits" else x for n, x in whole.items()}
                found[model.dtype, variant, name, size] = difference(got, want)

    for name in LENGTHS:
        compare(build({}), "plain", name)
    for variant, (settings, documents) in VARIANTS.items():
        for name in documents:
            compare(build({**EXACT, **settings}).double(), variant, name)
    return found


def errors_elsewhere() -> dict[str, float]:
    """Other ways to the same figures, on four ranks."""
    found, cu_seqlens, (tokens, targets) = {}, torch.tensor([0, 5, 17, 24]), batch()
    model = build({})
    context = make_cp_context(cu_seqlens)
    mine = {
        "input_ids": take_shard(tokens, context),
        "shift_labels": take_shard(targets, context),
        "cp_context": context,
    }
    whole = on_the_whole(model, cu_seqlens)

    model.gradient_checkpointing_enable()
    found["gradient checkpointing"] = difference(
        on_shards(model, cu_seqlens, dist.group.WORLD), whole | {"logits": take_shard(whole["logits"], context)}
    )
    model.gradient_checkpointing_disable()

    want = gradients_of(whole)
    model.zero_grad()
    parallel = DistributedDataParallel(model)
    (dist.get_world_size() * parallel(**mine).loss).backward()
    found["DistributedDataParallel, loss times ranks"] = difference(gradients(model), want)

    model.zero_grad()
    loss = model(**mine, num_items_in_batch=10).loss
    count = int((targets != -100).sum())
    found["num_items_in_batch"] = abs(float(loss.detach() * 10 / count / whole["loss"]) - 1)

    with torch.no_grad():
        logits = model.eval()(mine["input_ids"], cp_context=context).logits
    found["evaluation"] = float((logits - take_shard(whole["logits"], context)).abs().max())

    embeds = model.get_input_embeddings()(mine["input_ids"])
    got = model(inputs_embeds=embeds, cp_context=context).logits
    found["inputs_embeds"] = float((got - logits).detach().abs().max())

    half = build({}).to(torch.bfloat16)
    whole = on_the_whole(half, cu_seqlens)
    got = on_shards(half, cu_seqlens, dist.group.WORLD)
    whole["logits"] = take_shard(whole["logits"], context)
    found["bfloat16 (of 0.1)"] = 1e-4 * difference(got, whole)
    return found


def gradients_of(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x for name, x in found.items() if name not in ("loss", "logits")}


def calls() -> dict[str, Callable[[], Any]]:
    """Bad calls by name; each has to fail before it communicates."""
    context, (tokens, targets) = make_cp_context(torch.tensor([0, 5, T])), batch()
    mine = {"input_ids": take_shard(tokens, context), "cp_context": context}
    model, shift_labels = build({}), take_shard(targets, context)

    def call(settings: dict[str, Any] | None = None, **changes):
        return lambda: (model if settings is None else build(settings))(**mine | changes)

    return {
        "labels": call(labels=shift_labels),
        "labels of the whole": call(shift_labels=targets),
        "a mask": call(attention_mask=torch.ones(1, T // 4)),
        "a cache": call(use_cache=True),
        "boundaries": call(cu_seqlens=torch.tensor([0, T // 4])),
        "transformers' boundaries": call(cu_seq_lens_q=torch.tensor([0, T // 4])),
        "positions": call(position_ids=torch.arange(T // 4)[None]),
        "the whole row": call(input_ids=tokens),
        "two rows": call(input_ids=tokens[:, : T // 4].expand(2, -1)),
        "no context": call(cp_context=dist.group.WORLD),
        "attention in a hybrid": call({"attn": {"layers": [1], "num_heads": 2}}),
        "l2warp": call(
            {"use_l2warp": True, "fuse_linear_cross_entropy": True, "fuse_cross_entropy": False},
            shift_labels=shift_labels,
        ),
        **{rule: call({"rule": ["mesa", rule]}) for rule in ("softmax", "delta", "gated_delta", "rg_lru")},
    }


BAD = {
    "labels": (ValueError, "labels .*cp_context.* shift_labels"),
    "labels of the whole": (ValueError, r"shift_labels must have the shape of the input, \[1, 6\]; got \[1, 24\]"),
    "a mask": (ValueError, "attention_mask cannot be combined with cp_context"),
    "a cache": (ValueError, "use_cache cannot be combined with cp_context"),
    "boundaries": (ValueError, "cu_seqlens comes with cp_context"),
    "transformers' boundaries": (ValueError, "cu_seq_lens_q cannot be combined with cp_context"),
    "positions": (ValueError, "position_ids cannot be combined with cp_context"),
    "the whole row": (ValueError, r"the input must be this rank's shard, \[1, 6, ...\].*got shape \[1, 24\]"),
    "two rows": (ValueError, r"the input must be this rank's shard, \[1, 6, ...\].*got shape \[2, 6\]"),
    "no context": (TypeError, "cp_context must come from fla_mesa.ops.make_cp_context"),
    "attention in a hybrid": (ValueError, "cp_context: layer 1, Attention, cannot be split"),
    "l2warp": (ValueError, "use_l2warp"),
    "softmax": (ValueError, "cp_context: layer 1, SoftmaxAttention"),
    "delta": (ValueError, "cp_context: layer 1, DeltaRule"),
    "gated_delta": (ValueError, "cp_context: layer 1, GatedDeltaRule"),
    "rg_lru": (ValueError, "cp_context: layer 1, RGLRU"),
}


def on_this_rank() -> dict[str, Any]:
    """Everything that needs several ranks."""
    groups = {size: dist.new_group(list(range(size))) for size in SIZES[:-1]} | {4: dist.group.WORLD}
    raised = {}
    for name, call in calls().items():
        try:
            call()
        except (TypeError, ValueError) as error:
            raised[name] = type(error), str(error)
    return {"errors": errors_of_variants(groups), "elsewhere": errors_elsewhere(), "raised": raised}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of four ranks found."""
    return run_once(tmp_path_factory, on_this_rank, 4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_give_what_the_whole_gives(ranks, variant, size):
    for found in ranks[:size]:
        errors = {case: error for case, error in found["errors"].items() if case[1] == variant and case[3] == size}
        assert len(errors) == len(VARIANTS[variant][1]) * (2 if variant == "plain" else 1)
        for (dtype, *_), error in errors.items():
            # The stand-ins for fla's linear attention compute in float32 whatever comes.
            in_float64 = dtype == torch.float64 and "rule" not in VARIANTS[variant][0]
            assert error <= (1e-6 if in_float64 else 1e-5), errors


def test_elsewhere(ranks):
    for found in ranks:
        assert all(error <= 1e-5 for error in found["elsewhere"].values()), found["elsewhere"]


@pytest.mark.parametrize("name", BAD)
def test_bad_input(ranks, name):
    expected, message = BAD[name]
    for found in ranks:
        assert name in found["raised"], "nothing raised"
        error, text = found["raised"][name]
        assert error is expected, text
        assert re.search(message, text), text


PAGE = Path(__file__).parents[2] / "docs" / "context_parallel.md"


def run_example(code: str) -> str:
    """What the example prints on this rank."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def test_the_example_of_the_page(tmp_path_factory):
    (code,) = re.findall(r"```python\n(\"\"\"torchrun .*?)```", PAGE.read_text(), re.DOTALL)
    losses = []
    for size in (1, 2):
        printed = run_on_ranks(run_example, size, tmp_path_factory.mktemp("ranks"), code, connect=False)
        losses.append([float(loss) for loss in re.findall(r"loss (\S+)", printed[0])])
    assert len(losses[0]) > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
