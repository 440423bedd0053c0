"""Run fla's own ``mesa_net`` models on this package's op."""

from __future__ import annotations

import functools
import importlib
import sys
from types import TracebackType
from typing import Any

from fla_mesa.ops.chunk import chunk_mesa_net
from fla_mesa.ops.step import mesa_net_decoding_one_step

OURS = {"chunk_mesa_net": chunk_mesa_net, "mesa_net_decoding_one_step": mesa_net_decoding_one_step}
# Where fla defines the two functions and where its layer finds them; other modules that imported them are found by search.
HOMES = ("fla.ops", "fla.ops.mesa_net", "fla.layers.mesa_net")

_active: FlaOpReplacement | None = None


class FlaOpReplacement:
    """The active replacement. Call it, or leave its ``with`` block, to restore fla's own op."""

    def __init__(self, replacements: dict[str, Any]):
        self._before: list[tuple[Any, str, Any]] = []
        for home in HOMES:
            importlib.import_module(home)
        originals = {name: getattr(sys.modules["fla.ops.mesa_net"], name) for name in replacements}
        for module_name, module in list(sys.modules.items()):
            if module_name != "fla" and not module_name.startswith("fla."):
                continue
            for name, new in replacements.items():
                if vars(module).get(name) is originals[name]:
                    self._before.append((module, name, originals[name]))
                    setattr(module, name, new)

    def __call__(self) -> None:
        """Undo the replacement. Calling it again does nothing."""
        global _active
        for module, name, original in self._before:
            setattr(module, name, original)
        self._before = []
        if _active is self:
            _active = None

    def __enter__(self) -> FlaOpReplacement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self()


def replace_fla_op(*, cg_tolerance: float | None = None, backend: str | None = None) -> FlaOpReplacement:
    """Makes fla's ``mesa_net`` layers and models, existing and new ones, use this package's op.

    Their configuration stays in charge of everything else: ``max_cg_step_training`` and ``max_cg_step_decoding`` become the most
    steps a system may take, of which it now takes only those that ``cg_tolerance`` asks for.

        undo = fla_mesa.replace_fla_op()
        ...
        undo()

    or, for a while, ``with fla_mesa.replace_fla_op(): ...``. A function that other code has imported from fla by name before
    the call stays fla's own.

    Args:
        cg_tolerance: As for :func:`fla_mesa.ops.chunk_mesa_net`, in training, prefill and decoding alike.
        backend: As for :func:`fla_mesa.ops.chunk_mesa_net`.

    Returns:
        What undoes it: a callable and a context manager.

    Raises:
        RuntimeError: It is replaced already.
    """
    global _active
    if _active is not None:
        raise RuntimeError(
            "fla's mesa_net op is already replaced: first call what replace_fla_op() returned to undo that"
        )
    options = {"cg_tolerance": cg_tolerance, "backend": backend}
    replacements = {name: functools.wraps(ours)(functools.partial(ours, **options)) for name, ours in OURS.items()}
    _active = FlaOpReplacement(replacements)
    return _active
