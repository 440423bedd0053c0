"""The command `fla-mesa`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fla_mesa
from fla_mesa import cli


def test_help_lists_the_commands_that_exist(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for name, (module, purpose) in cli.COMMANDS.items():
        assert f"  {name} " in shown and purpose in shown
        assert callable(__import__(module, fromlist=["main"]).main)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fla-mesa {fla_mesa.__version__}\n"


SLOW = {"torch", "fla", "transformers", "triton", "datasets", "accelerate", "matplotlib", "numpy"}  # seconds in all
ROOT = Path(fla_mesa.__file__).parents[1]


def python(*arguments, cwd):
    """A process's output; it must not find a checkout by standing in it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("flag", ["--version", "--help"])
def test_version_and_help_import_nothing_slow(tmp_path, flag):
    """As a console script, and as a module: what is imported, Python lists under `-X importtime`."""
    script = tmp_path / "bin" / "fla-mesa"
    script.parent.mkdir()
    script.write_text("import sys\nfrom fla_mesa.cli import main\nsys.exit(main())\n")
    shown = set()
    for program in ([str(script)], ["-m", "fla_mesa"]):
        done = python("-X", "importtime", *program, flag, cwd=tmp_path)
        imported = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
        assert done.returncode == 0 and "fla_mesa" in imported, done.stderr
        assert not SLOW & imported
        shown.add(done.stdout)
    assert len(shown) == 1
    assert flag == "--help" or shown == {f"fla-mesa {fla_mesa.__version__}\n"}


@pytest.mark.parametrize(
    ("orig_argv", "program", "is_the_command"),
    [
        (["python", "/bin/fla-mesa", "train"], "/bin/fla-mesa", True),
        (["python", "-X", "importtime", "/bin/fla-mesa"], "/bin/fla-mesa", True),
        (["python", "C:\\bin\\fla-mesa.exe"], "C:\\bin\\fla-mesa.exe", sys.platform == "win32"),
        (["python", "-u", "-m", "fla_mesa", "train"], "-m", True),
        (["python", "-m", "fla_mesa.eval.compare.demo"], "-m", False),
        (["python", "-c", "from multiprocessing.spawn import ..."], "/bin/fla-mesa", False),
        (["python", "mine.py", "-m", "fla_mesa"], "mine.py", False),
        (["python"], "", False),
    ],
)
def test_the_command_is_told_by_how_python_was_started(monkeypatch, orig_argv, program, is_the_command):
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    monkeypatch.setattr(sys, "argv", [program])
    assert fla_mesa._is_the_command() == is_the_command


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    assert "commands:" in capsys.readouterr().out


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["trian"])
    assert end.value.code == 2
    assert "train" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    module = type(sys)("a_command")
    module.main = interrupted
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", ("a_command", "tries"))
    assert cli.main(["try"]) == 130
    assert capsys.readouterr().err == "\nfla-mesa: stopped\n"


def test_arguments_are_passed_on_whole(monkeypatch):
    seen = []
    module = type(sys)("a_command")
    module.main = lambda argv: seen.append(argv) or 7
    monkeypatch.setitem(sys.modules, "a_command", module)
    monkeypatch.setitem(cli.COMMANDS, "try", ("a_command", "tries"))
    assert cli.main(["try", "--help", "--seed", "3", "--", "-x"]) == 7
    assert seen == [["--help", "--seed", "3", "--", "-x"]]
