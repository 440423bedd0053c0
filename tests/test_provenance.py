"""The commit that figures are reported with."""

import shutil
import subprocess

import pytest

from fla_mesa import provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit of provenance.py, from which the package seems to run; calls git in it."""
    shutil.copy(provenance.__file__, tmp_path / "provenance.py")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))

    def git(*arguments: str) -> str:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True).stdout

    git("init")
    git("add", "provenance.py")
    git("commit", "-m", "one")
    git("tag", "a-tag")
    return git


def test_the_commit_and_whether_files_differ_from_it(checkout, tmp_path):
    head = checkout("rev-parse", "--short=12", "HEAD").decode().strip()
    assert provenance.commit() == head
    with (tmp_path / "provenance.py").open("a") as file:
        file.write("\n")
    assert provenance.commit() == f"{head}-dirty"


def test_a_foreign_repository_is_not_ours(checkout, tmp_path, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    installed = shutil.copy(tmp_path / "provenance.py", tmp_path / "site-packages")
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.commit() is None


def test_no_repository(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit() is None
