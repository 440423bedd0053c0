"""What lies beneath all rooms: JSON files and Markdown tables."""

import json

import pytest

from fla_mesa.json_files import Unreadable, read_json, read_json_if_there, write_json
from fla_mesa.markdown import table


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == json.loads(path.read_text()) == {"loss": 1.5}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ['{"loss": 1.', "[1]", b"\xff"])
def test_what_is_no_json_object_is_named(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Unreadable, match=r"a\.json cannot be read"):
        read_json(path)


def test_a_missing_file_is_no_unreadable_one(tmp_path):
    assert read_json_if_there(tmp_path / "a.json") is None
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "a.json")


def test_a_table_is_aligned():
    assert table(["model", "loss"], [["a|b", "1.5"], ["mesanet", "–"]]).splitlines() == [
        "| model   | loss |",
        "| ------- | ---: |",
        "| a\\|b    |  1.5 |",
        "| mesanet |    – |",
    ]
