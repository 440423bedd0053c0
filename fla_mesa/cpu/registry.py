"""Replaces fla's functions: `stand_in` collects replacements, `install` puts them in place, `uninstall` removes them.

fla offers three kinds of seats, taken in this order:

1. the function is a dispatch point of its own (`@dispatch`): `fla.backends.register(function, backend=...)`;
2. it belongs to an operation that dispatches by name (`@dispatch("kda")`): `fla.backends.register("kda")(adapter)`;
3. it is an ordinary function: fla's own `dispatch` makes a dispatch point of it, and the new function takes the old one's
   name in every module that holds it.

Methods have no seat: `stand_in_method` swaps them. Names that fla leaves empty where an optional package is missing are filled
by functions marked with `replacement`. Whatever is put anywhere by `put` is given back by `uninstall`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from fla_mesa.fla_api import HOW_TO_INSTALL

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class StandIn:
    """`implementation` handles calls of fla's `original` on CPU tensors."""

    original: Callable[..., Any]
    implementation: Callable[..., Any]
    operation: str | None

    @property
    def name(self) -> str:
        return qualified_name(self.original)


_stand_ins: list[StandIn] = []
_methods: list[tuple[type, StandIn]] = []
_replacements: list[tuple[str, Callable[[], None]]] = []
_others: list[Callable[[], None]] = []  # repairs of other modules and rooms
_undo: list[Callable[[], None]] = []  # in the order in which it was done
_installed = False


def qualified_name(function: Callable[..., Any]) -> str:
    function = inspect.unwrap(function)
    return f"{function.__module__}.{function.__qualname__}"


def stand_in(original: Callable[..., Any], *, operation: str | None = None) -> Callable[[F], F]:
    """Decorator: this function handles calls of fla's `original` whose first tensor is on the CPU.

    Its parameters must be the original's: same names, order, kinds and defaults (checked by `install`).
    `operation` is the name under which fla dispatches the function, if it does so by name.
    """

    def collect(implementation: F) -> F:
        _stand_ins.append(StandIn(original, implementation, operation))
        return implementation

    return collect


def stand_in_method(owner: type, name: str) -> Callable[[F], F]:
    """Decorator: this function handles calls of the method whose first tensor is on the CPU.

    Its parameters must be the method's (checked by `install`).
    """
    original = getattr(owner, name)

    def collect(implementation: F) -> F:
        _methods.append((owner, StandIn(original, implementation, None)))
        return implementation

    return collect


def replacement(name: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Decorator: `install` calls this function, which puts a stand-in for `name` in place itself."""

    def collect(put_in_place: Callable[[], None]) -> Callable[[], None]:
        _replacements.append((name, put_in_place))
        return put_in_place

    return collect


def also_install(repair: Callable[[], None]) -> None:
    """Also runs `repair`, which uses `put`, whenever the stand-ins are installed; now if they already are."""
    _others.append(repair)
    if _installed:
        repair()


def put(owner: Any, name: str, value: Any) -> None:
    """Sets ``owner.name = value`` on a class or module, until `uninstall`."""
    before = vars(owner).get(name, _undo)  # any object that is no value of a name
    setattr(owner, name, value)
    _undo.append(lambda: delattr(owner, name) if before is _undo else setattr(owner, name, before))


def pairs() -> list[tuple[str, str]]:
    """Replaced functions and their replacements on CPU tensors, sorted; empty before `install`."""
    if not _installed:
        return []
    entries = [*_stand_ins, *(method for _, method in _methods)]
    found = [(entry.name, qualified_name(entry.implementation)) for entry in entries]
    return sorted([*found, *((name, qualified_name(function)) for name, function in _replacements)])


def covered() -> tuple[str, ...]:
    """Names of fla's functions and methods that have a stand-in, sorted; empty before `enable()`."""
    if not _installed:
        return ()
    functions = {s.name for s in _stand_ins} | {s.name for _, s in _methods}
    return tuple(sorted(functions | {name for name, _ in _replacements}))


def is_installed() -> bool:
    return _installed


def install() -> None:
    """Put every collected stand-in in place; :func:`fla_mesa.cpu.enable` lists further errors.

    Raises:
        RuntimeError: FLA_DISABLE_BACKEND_DISPATCH=1 is set.
    """
    global _installed
    backends = importlib.import_module("fla.backends")
    if backends._DISPATCH_DISABLED:
        raise RuntimeError(
            "FLA_DISABLE_BACKEND_DISPATCH=1 makes flash-linear-attention ignore every registered back end, "
            "the CPU stand-ins included. Unset it before fla is imported."
        )
    for entry in (*_stand_ins, *(method for _, method in _methods)):
        _check_signature(entry)

    class TorchCPU(backends.BaseBackend):
        """Handles exactly the calls whose first tensor is on the CPU."""

        backend_type = "torch_cpu"
        priority = -1  # before fla's own back ends (0 and up), none of which takes CPU tensors

        def verify(self, function_name: str, *args: Any, **kwargs: Any) -> tuple[bool, str | None]:
            return on_cpu(*args, **kwargs), "not a CPU tensor"

    by_operation: dict[str, dict[str, Any]] = {}
    adopted: dict[int, tuple[Any, Any]] = {}
    for entry in _stand_ins:
        if entry.operation is not None:
            methods = by_operation.setdefault(entry.operation, {})
            methods[inspect.unwrap(entry.original).__name__] = staticmethod(entry.implementation)
            continue
        try:
            backends.register(entry.original, backend=TorchCPU)(entry.implementation)
        except KeyError:  # no dispatch point yet
            new = backends.dispatch(_unmarked(entry.original))
            backends.register(new, backend=TorchCPU)(entry.implementation)
            adopted[id(entry.original)] = (entry.original, new)
    for operation, methods in by_operation.items():
        backends.register(operation)(type("TorchCPU", (TorchCPU,), methods))
    _undo.append(functools.partial(_unregister, TorchCPU.backend_type, [old for old, _ in adopted.values()]))
    _rebind(adopted)
    _undo.append(lambda: _rebind({id(new): (new, old) for old, new in adopted.values()}))
    for owner, method in _methods:
        put(owner, method.original.__name__, _by_device(method))
    for _, put_in_place in _replacements:
        put_in_place()
    for repair in _others:
        repair()
    _installed = True


def uninstall() -> None:
    """Restore every function, method and name of fla in every module that holds it."""
    global _installed
    while _undo:
        _undo.pop()()
    _installed = False


def _unregister(backend_type: str, adopted: list[Callable[..., Any]]) -> None:
    """Remove a back end from fla's registries, and the registries created for it."""
    backends = importlib.import_module("fla.backends")
    for function in adopted:
        del backends._function_registries[inspect.unwrap(function)]
    for registry in (*backends._function_registries.values(), *backends._operation_registries.values()):
        registry._backends.pop(backend_type, None)


def _unmarked(function: F) -> F:
    """The function behind a disabled one.

    fla's `dispatch` keeps its wrapper out of graphs by `torch.compiler.disable`; where the function has
    been through that already, torch 2.10 looks for its mark, finds it on the wrapper too, and disables the function in place of it.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    vars(call).pop("_torchdynamo_orig_callable", None)
    return call  # pyright: ignore[reportReturnType] (a wrapper is of its function's type)


def on_cpu(*args: Any, **kwargs: Any) -> bool:
    """Whether the first tensor among the arguments is on the CPU."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device.type == "cpu"
    return False


def unsupported(argument: str, value: Any, allowed: str) -> NotImplementedError:
    return NotImplementedError(f"`{argument}`: the CPU stand-in allows {allowed}, got {value!r}")


def _by_device(method: StandIn) -> Callable[..., Any]:
    @functools.wraps(method.original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = method.implementation if on_cpu(*args, **kwargs) else method.original
        return chosen(self, *args, **kwargs)

    return wrapper


def _check_signature(entry: StandIn) -> None:
    def parameters(function: Callable[..., Any]) -> list[tuple[Any, ...]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    theirs, ours = parameters(entry.original), parameters(entry.implementation)
    if theirs != ours:
        raise ImportError(
            f"{entry.name} of the installed flash-linear-attention takes {inspect.signature(entry.original)}, its CPU "
            f"stand-in in fla_mesa takes {inspect.signature(entry.implementation)}: this version has not been "
            f"tested. Install a tested one with: {HOW_TO_INSTALL}"
        )


def _rebind(adopted: dict[int, tuple[Any, Any]]) -> None:
    """Rename the old functions to the new ones in every loaded module; modules loaded later import the new ones."""
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            old_and_new = adopted.get(id(value))
            if old_and_new is not None and old_and_new[0] is value:
                setattr(module, name, old_and_new[1])
