"""The command `fla-mesa`: looks up the subcommand, imports only that, and passes it the remaining arguments."""

import argparse
import importlib
import sys

from fla_mesa.plugins import FLAG, HELP

# Name: the module whose `main(argv) -> exit code` is the command, and what it does.
COMMANDS = {
    "train": ("fla_mesa.train.command", "train a model on text or on a synthetic task"),
    "eval": ("fla_mesa.eval.harness.command", "run lm-evaluation-harness on checkpoints"),
    "sweep": ("fla_mesa.eval.sweep.command", "measure quality and speed of a MesaNet checkpoint by solver steps"),
    "inspect": (
        "fla_mesa.eval.inspect.command",
        "report gates, conditioning and solver steps of a checkpoint's Mesa layers",
    ),
    "compare": ("fla_mesa.eval.compare.command", "train several models the same way and compare them"),
    "page": ("fla_mesa.report.command", "make the page of a stored report from its JSON file"),
    "export": ("fla_mesa.train.export", "merge a checkpoint written by several processes into one folder"),
    "doctor": ("fla_mesa.doctor.command", "check the op on this machine and recommend a back end"),
    "configs": ("fla_mesa.models.config_files", "write architectures as JSON files for flame and other trainers"),
    "demo": ("fla_mesa.eval.compare.demo", "compare six tiny models in ten minutes and print a sample from MesaNet"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fla-mesa",
        description="MesaNet for the flash-linear-attention ecosystem.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<9} {purpose}" for name, (_, purpose) in COMMANDS.items())
        + f"\n\nflag of every command:\n  {FLAG} MODULE  {HELP}\n\nRun `fla-mesa COMMAND --help` for a command's other flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    given = parser.parse_args(argv)
    if given.version:
        from fla_mesa import __version__

        print(f"fla-mesa {__version__}")
        return 0
    if given.command is None:
        parser.print_help()
        return 2
    module, _ = COMMANDS[given.command]
    try:
        importlib.import_module("fla_mesa.registration")  # `import fla_mesa` has not done so in this process
        return importlib.import_module(module).main(given.arguments)  # a `commands.command`: it ends as that says
    except KeyboardInterrupt:  # while this imports
        print("\nfla-mesa: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
