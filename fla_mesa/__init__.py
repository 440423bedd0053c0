"""MesaNet for the flash-linear-attention ecosystem.

Importing the package registers the model family ``mesanet`` with transformers and, on a machine without an accelerator, stand-ins for
fla's GPU kernels, so that its models run there too.
"""

from fla_mesa import cpu

if not cpu.accelerator_available():
    cpu.enable()

# The stand-ins come first: other modules bind fla's functions when they are imported.
from fla_mesa import models
from fla_mesa.ops.drop_in import replace_fla_op

__version__ = "0.1.0"
__all__ = ["__version__", "cpu", "models", "replace_fla_op"]
