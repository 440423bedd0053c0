"""What weight decay leaves alone."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from fla_mesa.models import zoo
from fla_mesa.train.decay import decay_groups, exempt_from_decay, exempt_parameters
from fla_mesa.train.recipe import prepare
from fla_mesa.train.settings import parse


class RootMeanNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scaled = RootMeanNorm()
        self.time = nn.Parameter(torch.ones(3))
        self.dt_bias = nn.Parameter(torch.ones(3))
        self.marked = nn.Parameter(torch.ones(3))
        self.marked._no_weight_decay = True


def test_norms_of_any_make_biases_and_marked_parameters():
    assert exempt_parameters(Net()) == {"linear.bias", "scaled.scale", "dt_bias", "marked"}


class Shared(nn.Module):
    """The weight of `head` is that of `embedding`, which says that it must not decay."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 5, bias=False)
        self.embedding = nn.Embedding(5, 3)
        self.embedding.no_weight_decay = ("weight",)
        self.head.weight = self.embedding.weight


def test_a_shared_parameter_is_exempt_if_one_of_its_modules_says_so():
    assert exempt_parameters(Shared()) == {"head.weight"}


def test_whatever_wraps_the_model():
    """Compilation and activation checkpointing put prefixes before names; the modules underneath are the same."""
    net = nn.Sequential(Net(), Net())
    net[0] = checkpoint_wrapper(net[0])
    net[1] = torch.compile(net[1])
    exempt = exempt_parameters(net)
    assert exempt == {
        f"{prefix}.{name}"
        for prefix in ("0._checkpoint_wrapped_module", "1._orig_mod")
        for name in ("linear.bias", "scaled.scale", "dt_bias", "marked")
    }
    decaying, spared = decay_groups(net, 0.1)
    assert [group["weight_decay"] for group in (decaying, spared)] == [0.1, 0.0]
    assert len(decaying["params"]) == 4 and len(spared["params"]) == 8


def test_marks_of_modules_outlive_new_parameters():
    with torch.device("meta"):
        net = Shared()
    net.to_empty(device="cpu")
    assert exempt_parameters(net) == {"embedding.weight"}  # to_empty has untied the other


def test_an_optimizer_that_someone_else_made():
    """As flame makes it: all parameters in one group."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.5)
    assert exempt_from_decay(optimizer, net) == 4
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in net.named_parameters():
        kept = 1.0 if name in exempt_parameters(net) else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * kept, msg=name)
    assert exempt_from_decay(optimizer, net) == 4  # once more changes nothing
    assert len(optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="none of the model's parameters is in it"):
        exempt_from_decay(optimizer, Net())


def test_lambda_of_mesanet():
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = zoo.build("mesanet", "tiny", vocab_size=9, max_position_embeddings=9, **ids)
    exempt = exempt_parameters(model)
    marked = {name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    assert marked and marked <= exempt
    assert all(name in exempt for name, _ in model.named_parameters() if "norm" in name or name.endswith("bias"))
    assert not any(name in exempt for name, _ in model.named_parameters() if "proj.weight" in name or "conv" in name)
    assert "model.embeddings.weight" in exempt  # appendix E.1 and G.2


def test_groups_of_the_optimizer(flags, text, tmp_path):
    trainer = prepare(*parse(flags(text, tmp_path / "run", "--weight_decay", 0.3)), say=lambda _: None).trainer
    groups = trainer.create_optimizer().param_groups
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    exempt = exempt_parameters(trainer.model)
    assert len(decays) == len(list(trainer.model.parameters()))
    for name, parameter in trainer.model.named_parameters():
        assert decays[id(parameter)] == (0.0 if name in exempt else 0.3), name


def test_a_step_without_gradients_shrinks_only_what_decays(flags, text, tmp_path):
    settings = flags(text, tmp_path / "run", "--weight_decay", 0.5, "--learning_rate", 0.1, "--optim", "adamw_torch")
    trainer = prepare(*parse(settings), say=lambda _: None).trainer
    optimizer = trainer.create_optimizer()
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    exempt = exempt_parameters(trainer.model)
    for name, parameter in trainer.model.named_parameters():
        expected = before[name] if name in exempt else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(parameter.detach(), expected, msg=name)
