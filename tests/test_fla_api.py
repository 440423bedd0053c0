"""What fla_mesa/fla_api.py says is used of flash-linear-attention: all of it, and as the installed version has it."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

import fla
import pytest

import fla_mesa.cpu
from fla_mesa import fla_api

ROOT = Path(fla_mesa.__file__).parent


def resolve(name):
    """A name's value: the longest part of it that is a module is imported, the rest are attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ".".join(parts[:count])
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module and not module.startswith(f"{error.name}."):
                raise  # something else is missing that the module needs
            continue
        for attribute in parts[count:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(name)


def used_names(path):
    """Names of fla that a file imports, and attributes of fla's modules and classes that it reads by them."""
    imported, names = {}, set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fla":
            imported |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "fla"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imported:
            names.add(f"{imported[node.value.id]}.{node.attr}")
    return names | set(imported.values())


def test_all_that_is_used_is_listed():
    used = {name: path for path in sorted(ROOT.rglob("*.py")) for name in used_names(path)}
    assert len(used) > 80
    missing = {
        name: str(path.relative_to(ROOT))
        for name, path in used.items()
        if name not in fla_api.USED and not isinstance(resolve(name), ModuleType)
    }
    assert not missing, "list these in fla_mesa/fla_api.py, with the parameters that are used"


@pytest.mark.parametrize("name", fla_api.USED)
def test_fla_has(name):
    value, parameters = resolve(name), fla_api.USED[name]
    if parameters is fla_api.EXISTS:
        return
    found = inspect.signature(value).parameters
    if parameters == fla_api.STAND_IN:
        fla_mesa.cpu.enable()
        original = inspect.unwrap(value)
        assert f"{original.__module__}.{original.__qualname__}" in fla_mesa.cpu.covered()
        return
    used = parameters.split()
    assert [p for p in found if p in used] == used, f"{name} takes {inspect.signature(value)}"
    needed = [
        p.name for p in found.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    # A method that is called by fla itself, and only overridden here, is none the worse for more.
    assert set(needed) <= set(used), f"{name} takes {inspect.signature(value)}"


def test_a_private_name_is_read_only_where_the_list_has_it():
    """Attributes of fla's modules that are looked up by name, not imported, are strings in the source."""
    for path in sorted((ROOT / "cpu").rglob("*.py")):
        for name in re.findall(r"\bbackends\.(\w+)", path.read_text()):
            assert f"fla.backends.{name}" in fla_api.USED, f"{path.name}: fla.backends.{name}"


@pytest.mark.parametrize("version", ["0.6.0", "0.6.0+cpu", "0.6.1", "0.6.12.dev3"])
def test_versions_that_are_taken(monkeypatch, version):
    monkeypatch.setattr(fla, "__version__", version)
    fla_api.require_supported_fla()


@pytest.mark.parametrize("version", ["0.5.2", "0.7.0", "0.7", "0.7.0rc1", "0.10.0", "1.0", "main"])
def test_versions_that_are_refused(monkeypatch, version):
    monkeypatch.setattr(fla, "__version__", version)
    with pytest.raises(
        ImportError, match=rf">= 0\.6\.0, < 0\.7, but {re.escape(version)} is.*pip install 'flash-linear"
    ):
        fla_api.require_supported_fla()


def test_no_fla_at_all(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(ImportError, match=r"cannot be imported.*pip install 'flash-linear-attention>=0\.6\.0,<0\.7'"):
        fla_api.require_supported_fla()


def test_pyproject_asks_for_the_same_range():
    asked = (ROOT.parent / "pyproject.toml").read_text()
    assert f'"flash-linear-attention>={fla_api.OLDEST},<{fla_api.BELOW}"' in asked
