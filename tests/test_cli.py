"""The command `fla-mesa`."""

import sys

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
