"""The soft cap belongs to the model: it stays whatever criterion a trainer puts in the place of the model's."""

import pytest
import torch
from fla.modules import FusedCrossEntropyLoss, FusedLinearCrossEntropyLoss
from torch import nn

from fla_mesa.models import MatchedConfig, MatchedForCausalLM, MesaNetConfig, MesaNetForCausalLM

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 2, "head_dim": 16, "vocab_size": 50}
LINEAR = {"fuse_cross_entropy": False, "fuse_linear_cross_entropy": True}
REPLACEMENTS = {
    "flame's": (LINEAR, lambda: FusedLinearCrossEntropyLoss(num_chunks=8)),
    "fla's, not fused with the projection": ({}, FusedCrossEntropyLoss),
    "PyTorch's": ({}, nn.CrossEntropyLoss),
    "with another index to ignore": ({}, lambda: nn.CrossEntropyLoss(ignore_index=7)),
    "none": ({}, lambda: None),
    "none, fused": (LINEAR, lambda: None),
}


@pytest.mark.parametrize("family", [(MesaNetConfig, MesaNetForCausalLM), (MatchedConfig, MatchedForCausalLM)])
@pytest.mark.parametrize("replacement", REPLACEMENTS)
def test_a_replaced_criterion_keeps_the_cap(family, replacement):
    fused, make = REPLACEMENTS[replacement]
    config, model_class = family
    model = model_class(config(**TINY, **fused, logit_soft_cap=1.0)).train()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    x = torch.randint(0, 50, (2, 20))
    labels = x.clone()
    ignored = 7 if "ignore" in replacement else -100
    labels[0, :5] = ignored
    with torch.no_grad():
        raw = torch.nn.functional.linear(model.model(x).last_hidden_state, model.lm_head.weight)
    assert raw.abs().max() > 2  # the cap matters

    model.criterion = make()
    targets = labels[:, 1:].flatten()
    want = nn.functional.cross_entropy(raw.tanh()[:, :-1].flatten(0, 1), targets, ignore_index=ignored)
    for _ in range(2):
        torch.testing.assert_close(model(x, labels=labels).loss, want)
    count = int((targets != ignored).sum())
    torch.testing.assert_close(model(x, labels=labels, num_items_in_batch=2 * count).loss, want / 2)
    torch.testing.assert_close(model(x, labels=labels).loss, want)


def test_a_replaced_criterion_keeps_the_penalty_on_the_largest_logit():
    model = MesaNetForCausalLM(MesaNetConfig(**TINY, **LINEAR, use_l2warp=True)).train()
    x = torch.randint(0, 50, (1, 20))
    gradients = []
    for criterion in (model.criterion, FusedLinearCrossEntropyLoss(num_chunks=8)):
        model.criterion = criterion
        model.zero_grad()
        model(x, labels=x).loss.backward()
        gradients.append(model.lm_head.weight.grad.clone())
    torch.testing.assert_close(*gradients)
