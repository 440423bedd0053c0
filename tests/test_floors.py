"""The house's floors: a lower one never imports a higher one; and nothing imports itself by a detour."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import fla_mesa

PACKAGE = Path(fla_mesa.__file__).parent
CHECKOUT = Path(__file__).parents[1]
# What each room may import of the package, besides itself.
MAY_IMPORT = {
    "ops": set(),
    "cpu": {"ops"},
    "layers": {"ops"},
    "models": {"ops", "cpu", "layers"},
    "data": set(),
    "report": set(),
    "train": {"ops", "layers", "models", "data"},
    "eval": {"ops", "layers", "models", "data", "train", "cpu", "report"},
    "doctor": {"ops"},
    "testing": {"ops"},
}
# These stand at the top and may import any room.
TOP = {"__init__.py", "__main__.py", "cli.py", "registration.py"}
# These lie beneath all rooms, which may import them.
GROUND = {
    "commands.py",
    "devices.py",
    "errors.py",
    "fla_api.py",
    "interpreter.py",
    "json_files.py",
    "markdown.py",
    "plugins.py",
    "provenance.py",
    "version.py",
}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere, also inside functions: ``a.b.c`` for ``from a.b import c``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant))


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports."""
    rooms = {name.split(".")[1] for name in imports(path) if name.startswith("fla_mesa.")}
    return rooms - {"__version__"} - {Path(name).stem for name in GROUND}


def test_every_room_is_listed():
    assert {p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(MAY_IMPORT)
    assert {p.name for p in PACKAGE.glob("*.py")} == TOP | GROUND


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_lower_floors(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        above = imported_rooms(path) - MAY_IMPORT[room] - {room}
        assert not above, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("name", sorted(GROUND))
def test_what_lies_beneath_imports_no_room(name):
    assert not imported_rooms(PACKAGE / name)


def test_the_package_imports_neither_tests_nor_benchmarks_and_these_not_each_other():
    for path, foreign in (("fla_mesa", {"tests", "benchmarks"}), ("tests", {"benchmarks"}), ("benchmarks", {"tests"})):
        for file in sorted((CHECKOUT / path).rglob("*.py")):
            here = {name.split(".")[0] for name in imports(file)} & foreign
            assert not here, f"{file.relative_to(CHECKOUT)} imports {', '.join(here)}"


def module_graph(root: Path, *folders: str) -> dict[str, set[str]]:
    """Which modules below these folders import which others of them; a package's own file has the package's name."""
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for folder in folders
        for path in (root / folder).rglob("*.py")
    }

    def module_of(name: str) -> str | None:
        """``a.b`` for ``a.b.c`` unless that is a module itself."""
        return next((found for found in (name, name.rpartition(".")[0]) if found in files), None)

    return {name: {module_of(other) for other in imports(path)} - {None, name} for name, path in files.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Ways from a module back to itself, one for each that has one, the shortest."""
    found = []
    for start in sorted(graph):
        ways, seen = [[start]], set()
        while ways and (found == [] or found[-1][0] != start):
            ways = [
                [*way, after] for way in ways for after in sorted(graph[way[-1]]) if after == start or after not in seen
            ]
            seen |= {way[-1] for way in ways}
            found += itertools.islice((way for way in ways if way[-1] == start), 1)
    return found


def test_nothing_imports_itself_by_a_detour():
    assert [" -> ".join(way) for way in circles(module_graph(CHECKOUT, "fla_mesa", "tests"))] == []
    assert [" -> ".join(way) for way in circles(module_graph(CHECKOUT / "benchmarks", "."))] == []


def test_a_circle_is_found(tmp_path):
    """Also one that a function closes, and one through a package's own file."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "__init__.py").write_text("from a.b import x\n")
    (tmp_path / "a" / "b.py").write_text("from a import c\nimport a.d\n")
    (tmp_path / "a" / "c.py").write_text("def f():\n    from a.d import y\n")
    (tmp_path / "a" / "d.py").write_text("import importlib\nimportlib.import_module('a.b')\n")
    assert circles(module_graph(tmp_path, "a")) == [
        ["a.b", "a.d", "a.b"],
        ["a.c", "a.d", "a.b", "a.c"],
        ["a.d", "a.b", "a.d"],
    ]
