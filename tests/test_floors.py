"""The house's floors: a lower one never imports a higher one."""

import ast
from pathlib import Path

import pytest

import fla_mesa

ROOT = Path(fla_mesa.__file__).parent
# What each room may import of the package, besides itself.
MAY_IMPORT = {
    "ops": set(),
    "cpu": {"ops"},
    "layers": {"ops"},
    "models": {"ops", "cpu", "layers"},
    "data": set(),
    "train": {"ops", "layers", "models", "data"},
    "eval": {"ops", "layers", "models", "data", "train", "cpu"},
}
# These stand at the top and may import any room.
TOP = {"__init__.py", "__main__.py", "cli.py", "registration.py"}
# These lie beneath all rooms, which may import them.
GROUND = {"commands.py", "errors.py", "fla_api.py", "interpreter.py", "json_files.py", "markdown.py", "plugins.py"}


def imported_rooms(path: Path) -> set[str]:
    """Rooms of the package that a file imports anywhere, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {
                f"{node.module}.{alias.name}" if node.module == "fla_mesa" else str(node.module) for alias in node.names
            }
    rooms = {name.split(".")[1] for name in names if name.startswith("fla_mesa.")}
    return rooms - {"__version__"} - {Path(name).stem for name in GROUND}


def test_every_room_is_listed():
    assert {p.name for p in ROOT.iterdir() if p.is_dir() and p.name != "__pycache__"} == set(MAY_IMPORT)
    assert {p.name for p in ROOT.glob("*.py")} == TOP | GROUND


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_lower_floors(room):
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        above = imported_rooms(path) - MAY_IMPORT[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("name", sorted(GROUND))
def test_what_lies_beneath_imports_no_room(name):
    assert not imported_rooms(ROOT / name)
