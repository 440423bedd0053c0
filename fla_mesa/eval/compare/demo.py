"""`fla-mesa demo`: six tiny models learn the source code of this Python in minutes, side by side, and MesaNet writes some."""

from __future__ import annotations

from fla_mesa import plugins
from fla_mesa.commands import command
from fla_mesa.eval.compare.command import compare
from fla_mesa.eval.compare.plan import parse
from fla_mesa.eval.compare.results import Report
from fla_mesa.train.sample import sample

PRESET = "demo"
WRITER, PROMPT = "mesanet", "def "


@command("demo")
def main(argv: list[str]) -> int:
    """`fla-mesa compare --preset demo` and the flags given, then a sample of text; returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print(
            "fla-mesa demo [flags] is fla-mesa compare --preset demo [flags], and a sample of what MesaNet writes at the end.\n"
        )
    code, reports = compare(parse(argv, PRESET), ["fla-mesa", "demo", *plugins.flags(), *argv])
    if code == 0:
        if text := _written(reports[0]):
            print(f"\nwhat {WRITER} writes after {PROMPT!r} (sampled at temperature 0.8)\n{text}")
        folder = reports[0].plan.folder
        print(
            f"\nsaved: {folder}/ (report.html, report.md, report.json, pictures; models with their tokenizers under cells/)"
        )
    return code


def _written(report: Report) -> str | None:
    """Indented lines, or nothing where there is no MesaNet of text."""
    for model in report.finished:
        if model.label == WRITER and model.spread("bits_per_byte") is not None:
            cell = model.runs[0].cell
            return "\n".join(f"  | {line}" for line in sample(cell.folder, PROMPT, seed=cell.seed).splitlines())
    return None
