"""`fla-mesa page report.json`: makes report.html again from a report's JSON file, where only that was kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from fla_mesa.commands import command
from fla_mesa.json_files import write_text
from fla_mesa.report.files import read
from fla_mesa.report.page import page


@command("page")
def main(argv: list[str]) -> int:
    """Runs the command; returns 0, or 2 after one line on stderr about a mistake."""
    parser = argparse.ArgumentParser(
        prog="fla-mesa page",
        description="Make the page of a report, with sortable tables and charts that need no network, from its JSON file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "report", type=Path, help="report.json or suite.json of fla-mesa compare, sweep.json, or inspect.json"
    )
    parser.add_argument("--output", type=Path, help="the page (default: beside the JSON file, with .html)")
    given = parser.parse_args(argv)
    path = given.output or given.report.with_suffix(".html")
    write_text(path, page(read(given.report)))
    print(f"wrote {path}")
    return 0
