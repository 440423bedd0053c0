"""Plug-ins: user modules that register architectures, rules, sources, tasks or back ends by name.

    fla-mesa train --plugin my_models.py --model linear_attn
    fla-mesa compare --plugin my_package.models --models mesanet,linear_attn

They are imported by every command, and by every process that one starts, before a name is looked up. A package that is installed can do
without the flag by an entry point:

    [project.entry-points."fla_mesa.plugins"]
    anything = "my_package.models"

A run remembers the plug-ins it was trained with (``plugins`` in its run.json), so that what reads the run imports them by itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from fla_mesa.errors import UserError

FLAG = "--plugin"
GROUP = "fla_mesa.plugins"
HELP = "a module name or .py file that registers more architectures, sources, ...; may be repeated"
# What a file is called among the loaded modules: its name alone might be that of another module.
_PREFIX = "fla_mesa_plugin_"

_loaded: dict[str, ModuleType] = {}  # by what --plugin takes, files by their absolute path
_entry_points_loaded = False


def take(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates the plug-ins on a command line from the rest of it.

    Raises:
        UserError: The flag comes without a name.
    """
    names, rest, words = [], [], iter(argv)
    for word in words:
        if word == FLAG:
            name = next(words, "")
            if not name or name.startswith("--"):
                raise UserError("plugin: expected a module name or .py file; got nothing")
            names.append(name)
        elif word.startswith(f"{FLAG}="):
            names.append(word.partition("=")[2])
        else:
            rest.append(word)
    return names, rest


def load(names: Iterable[str]) -> None:
    """Imports plug-ins, each once, after those of installed packages.

    Args:
        names: Modules by name, or paths of .py files.

    Raises:
        UserError: There is no such module or file.
        ImportError: It cannot be imported; the cause has the traceback.
    """
    _load_entry_points()
    for name in names:
        path = Path(name).expanduser()
        is_file = name.endswith(".py") or path.is_file()
        key = str(path.resolve()) if is_file else name
        if key not in _loaded:
            _loaded[key] = _import_file(Path(key)) if is_file else _import_module(name)


def loaded() -> tuple[str, ...]:
    """This process's plug-ins, as `load` takes them, with absolute paths; without those of entry points."""
    return tuple(_loaded)


def flags() -> list[str]:
    """Command-line flags that make another process load the same plug-ins."""
    return [word for name in _loaded for word in (FLAG, name)]


def load_those_of(folder: str | Path) -> None:
    """Imports the plug-ins that a run was trained with, if `folder` is a run or one of its checkpoints.

    One that this process has by the same name, wherever it lies, is not imported again.

    Raises:
        UserError: One is no longer there.
        ImportError: As :func:`load`.
    """
    folder = Path(folder).expanduser()
    for place in (folder, folder.parent):
        try:
            recorded = json.loads((place / "run.json").read_text())["plugins"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        here = {Path(name).name for name in _loaded}
        missing = [name for name in recorded if Path(name).name not in here]
        try:
            load(missing)
        except UserError as error:
            raise UserError(
                f"{place} was trained with {' '.join(missing)}: {error}; pass its new location with {FLAG}"
            ) from None
        return


def recreating(module: str) -> list[str]:
    """Lines of Python that make a module of this name importable; empty unless it is a plug-in given as a file."""
    for name, loaded_module in _loaded.items():
        if loaded_module.__name__ == module and module.startswith(_PREFIX):
            return ["from fla_mesa import plugins", f"plugins.load([{name!r}])"]
    return []


def _load_entry_points() -> None:
    global _entry_points_loaded
    if not _entry_points_loaded:
        _entry_points_loaded = True
        for entry in entry_points(group=GROUP):
            try:
                entry.load()
            except Exception as error:
                raise ImportError(
                    f"the plug-in {entry.name} = {entry.value!r} of an installed package fails"
                ) from error


def _import_module(name: str) -> ModuleType:
    if (
        "" not in sys.path and str(Path.cwd()) not in sys.path
    ):  # a console script does not look into the folder it is started in
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(f"plugin: there is no module {name!r}") from None
        raise ImportError(f"plugin: {name!r} cannot be imported") from error
    except Exception as error:
        raise ImportError(f"plugin: {name!r} cannot be imported") from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"plugin: there is no file {path}")
    name = _PREFIX + path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"plugin: {path} is not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ImportError(f"plugin: {path} cannot be imported") from error
    return module
