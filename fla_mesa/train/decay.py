"""Which parameters weight decay leaves alone."""

import re

from torch import nn

_NORM = re.compile("norm", re.IGNORECASE)


def exempt_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters of `model` that must not decay towards zero.

    Those marked `_no_weight_decay = True` (fla's convention: lambda of MesaNet, the time constants of Mamba), those of
    modules whose class is a norm of whatever make, and biases.
    """
    exempt = {name for name, parameter in model.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    for prefix, module in model.named_modules():
        of_norm = _NORM.search(type(module).__name__) is not None
        for name, _ in module.named_parameters(recurse=False):
            if of_norm or name == "bias" or name.endswith("_bias"):
                exempt.add(f"{prefix}.{name}" if prefix else name)
    return exempt
