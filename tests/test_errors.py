"""How a command ends on a mistake of its user, and on a bug."""

import errno
import os

import pytest

from fla_mesa.commands import command
from fla_mesa.errors import DISK_FULL, MISTAKE, STOPPED, UserError, mistakes_of


def raising(error):
    @command("try")
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("seeds: got 'x'"), MISTAKE, "fla-mesa try: seeds: got 'x'\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), MISTAKE, "fla-mesa try: [Errno 2] No such file: 'a.txt'\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            DISK_FULL,
            f"fla-mesa try: [Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}; free some space and start again\n",
        ),
        (KeyboardInterrupt(), STOPPED, "\nfla-mesa try: stopped\n"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(error, code, line, capsys):
    assert raising(error)([]) == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error", [ValueError("x"), TypeError("x"), KeyError("x"), RuntimeError("x"), ImportError("x"), OSError("x")]
)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        raising(error)([])
    assert raised.value is error


def test_a_full_disk_is_found_behind_another_error():
    error = RuntimeError("cannot write")
    error.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert raising(error)([]) == DISK_FULL


def test_errors_of_another_package_become_mistakes():
    with pytest.raises(UserError, match="optim: no such thing") as raised, mistakes_of(RuntimeError, prefix="optim: "):
        raise RuntimeError("no such thing")
    assert isinstance(raised.value.__cause__, RuntimeError)
    with pytest.raises(UserError, match=r"^mine$"), mistakes_of(ValueError, prefix="optim: "):
        raise UserError("mine")
    with pytest.raises(TypeError), mistakes_of(ValueError):
        raise TypeError("a bug")
