"""Exempts parameters from weight decay, by identity: wrappers prefix names, and sharding replaces parameters.

For our own recipe, and for trainers that decay everything unless told otherwise (flame's among them)::

    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3)    # where one makes the optimizer
    exempt_from_decay(optimizer, model)                                 # where a trainer has made it
"""

import re
from typing import Any

import torch
from torch import nn

_NORM = re.compile("norm", re.IGNORECASE)


def exempt_parameters(model: nn.Module) -> set[str]:
    """Current names, as in `model.named_parameters()`, of the parameters that must not decay towards zero.

    Those that their module lists in `no_weight_decay` (this package's convention, which outlives sharding, `to_empty` and loading,
    as all of these make parameters anew), those marked `_no_weight_decay = True` (fla's: the time constants of Mamba), those of
    modules whose class is a norm of whatever make, and biases. A parameter that several modules share is exempt if one says so.

    Args:
        model: As it is being trained: bare, sharded by FSDP2 or DeepSpeed, in DDP, compiled, with checkpointed blocks.
    """
    exempt = _exempt(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in exempt}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The model's trainable parameters in two optimizer groups: those that decay, and those that do not."""
    exempt = _exempt(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) not in exempt], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) in exempt], "weight_decay": 0.0},
    ]


def exempt_from_decay(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Removes weight decay from an optimizer's exempt parameters; call it before creating the scheduler.

    Args:
        optimizer: Any, with weight decay in its groups; a group that holds both kinds is split.
        model: Whose parameters it has, as it is being trained.

    Returns:
        How many parameters have no decay now.

    Raises:
        ValueError: None of the model's parameters is in the optimizer, which was made before they were sharded, say.
    """
    exempt, known = _exempt(model), {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in known for group in optimizer.param_groups for p in group["params"]):
        raise ValueError("optimizer: none of the model's parameters is in it; make it after the model has been sharded")
    found = 0
    for group in list(optimizer.param_groups):
        spared = [p for p in group["params"] if id(p) in exempt]
        found += len(spared)
        if len(spared) == len(group["params"]):
            group["weight_decay"] = 0.0
        elif spared:
            group["params"] = [p for p in group["params"] if id(p) not in exempt]
            optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})
    return found


def _exempt(model: nn.Module) -> set[int]:
    """Identities of the exempt parameters."""
    exempt = set()
    for module in model.modules():
        of_norm = _NORM.search(type(module).__name__) is not None
        listed = getattr(module, "no_weight_decay", ())
        for name, parameter in module.named_parameters(recurse=False):
            is_bias = name == "bias" or name.endswith("_bias")
            if of_norm or is_bias or name in listed or getattr(parameter, "_no_weight_decay", False):
                exempt.add(id(parameter))
    return exempt
