"""`fla-mesa demo`: six tiny models learn the source code of this Python in minutes, side by side, and MesaNet writes some."""

from __future__ import annotations

from fla_mesa.commands import command
from fla_mesa.eval import compare
from fla_mesa.eval.compare_cells import Cell
from fla_mesa.eval.compare_settings import Plan, parse_all
from fla_mesa.json_files import read_json
from fla_mesa.train.sample import sample

PRESET = ["--preset", "demo"]
WRITER, PROMPT = "mesanet", "def "


@command("demo")
def main(argv: list[str]) -> int:
    """`fla-mesa compare --preset demo` and the flags given, then a sample of text; returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print(
            "fla-mesa demo [flags] is fla-mesa compare --preset demo [flags], and a sample of what MesaNet writes at the end.\n"
        )
    code = compare.main([*PRESET, *argv])
    if code == 0:
        plan = parse_all([*PRESET, *argv])[0]
        if text := _written(plan):
            print(f"\nwhat {WRITER} writes after {PROMPT!r} (sampled at temperature 0.8)\n{text}")
        print(f"\nsaved: {plan.folder}/ (report.md, report.json, pictures; models with their tokenizers under cells/)")
    return code


def _written(plan: Plan) -> str | None:
    """Indented lines, or nothing where there is no MesaNet of text."""
    found = read_json(plan.folder / "report.json")
    rows = [row for row in found["models"] if row["model"] == WRITER and row.get("bits_per_byte")]
    if not rows:
        return None
    cell = Cell(plan, WRITER, rows[0]["learning_rate"], plan.seeds[0])
    return "\n".join(f"  | {line}" for line in sample(cell.folder, PROMPT, seed=cell.seed).splitlines())
