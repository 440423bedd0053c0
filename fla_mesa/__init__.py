"""MesaNet for the flash-linear-attention ecosystem.

Importing the package registers the model family ``mesanet`` with transformers and, on a machine without an accelerator, stand-ins for
fla's GPU kernels, so that its models run there too.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fla_mesa.version import __version__

__all__ = ["__version__", "cpu", "models", "replace_fla_op"]


def _is_the_command() -> bool:
    """Whether this process runs ``fla-mesa`` or ``python -m fla_mesa``, whose help must not wait for torch and fla.

    A process that it starts to compute in is another, told apart by its own command line, ``sys.orig_argv``.
    """
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # what Python puts there while it looks for the module
        return "-m" in sys.orig_argv and sys.orig_argv[sys.orig_argv.index("-m") + 1] == "fla_mesa"
    return Path(program).stem == "fla-mesa" and program in sys.orig_argv


if TYPE_CHECKING or not _is_the_command():
    from fla_mesa.registration import cpu, models, replace_fla_op


def __getattr__(name: str) -> Any:
    """The command imports `fla_mesa.registration` itself, once it has work to do; whoever asks before that causes it."""
    if name in __all__:
        from fla_mesa import registration

        return getattr(registration, name)
    raise AttributeError(f"module 'fla_mesa' has no attribute {name!r}")
