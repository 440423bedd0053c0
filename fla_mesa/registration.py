"""Imported for its side effects, those of ``import fla_mesa``: stand-ins without an accelerator, models registered with transformers."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":  # before fla is imported, which asks for its device then
    from fla_mesa import interpreter

    interpreter.install()

from fla_mesa import cpu
from fla_mesa.cpu.registry import also_install
from fla_mesa.fla_api import require_supported_fla

if not cpu.accelerator_available():
    cpu.enable()
else:
    require_supported_fla()

# The stand-ins come first: other modules bind fla's functions when they are imported.
from fla_mesa import models
from fla_mesa.models import fla_families, generation
from fla_mesa.ops.drop_in import replace_fla_op

generation.install()
also_install(fla_families.install)

__all__ = ["cpu", "models", "replace_fla_op"]
