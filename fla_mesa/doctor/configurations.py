"""Every configuration that autotuning may choose for a back end's kernels, not only the one it chose here."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

# Where the kernels are that each back end launches.
MODULES = {
    "fla": ("fla.ops.mesa_net", "fla.ops.common.chunk_h", "fla.ops.utils.cumsum"),
    "triton": ("fla_mesa.ops.triton", "fla.ops.utils.cumsum"),
}


def tuners(backend: str) -> dict[str, Any]:
    """Triton's autotuners of kernels with more than one configuration, by name."""
    found = {}
    for name in MODULES.get(backend, ()):
        module = importlib.import_module(name)
        below = pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}.")
        for each in (module, *(importlib.import_module(m.name) for m in below)):
            for attribute, value in vars(each).items():
                while not hasattr(value, "configs") and hasattr(value, "fn"):
                    value = value.fn
                if len(getattr(value, "configs", ())) > 1 and hasattr(value, "cache"):
                    found[attribute] = value
    return found


def _noting(tuner: Any, configs: list[Any]) -> Any:
    """The tuner's launch, which records the configurations that pruning leaves. (All keywords are the kernel's.)"""
    launch = tuner.run

    def run(*args: Any, **kwargs: Any) -> Any:
        tuner.nargs = dict(zip(tuner.arg_names, args, strict=False))
        configs.extend(config for config in tuner.prune_configs(kwargs) if config not in configs)
        return launch(*args, **kwargs)

    return run


@contextlib.contextmanager
def watched(found: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
    """Records which configurations pruning leaves for each kernel called inside; none for a kernel that is not called."""
    seen: dict[str, list[Any]] = {name: [] for name in found}
    for name, tuner in found.items():
        tuner.run = _noting(tuner, seen[name])
    try:
        yield seen
    finally:
        for tuner in found.values():
            del tuner.run


@contextlib.contextmanager
def only(tuner: Any, config: Any) -> Iterator[None]:
    """Makes a kernel use this configuration inside, if its pruning allows it."""
    prune = tuner.prune_configs

    def pruned(kwargs: dict[str, Any]) -> list[Any]:
        allowed = prune(kwargs)
        return [config] if config in allowed else allowed[:1]

    tuner.prune_configs, kept = pruned, dict(tuner.cache)
    tuner.cache.clear()
    try:
        yield
    finally:
        del tuner.prune_configs
        tuner.cache.clear()
        tuner.cache.update(kept)
