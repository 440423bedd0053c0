"""The folder of a comparison: whose it is, and that one process at a time is at work there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from fla_mesa.errors import UserError
from fla_mesa.eval.compare.plan import Plan, fixed_settings
from fla_mesa.json_files import read_json, write_json

PLAN_FILE, LOCK_FILE = "compare.json", "lock"


def open_folder(plan: Plan) -> None:
    """Makes the folder this comparison's, or finds that it is.

    Raises:
        UserError: It holds something else, or a comparison with other settings.
    """
    path, now = plan.folder / PLAN_FILE, {**plan.fixed, "size": plan.size}
    if path.exists():
        changed = _changed(read_json(path), now)
        if changed:
            changes = "; ".join(f"{name} was {was!r} and is now {now[name]!r}" for name, was in changed.items())
            raise UserError(
                f"output_dir: the comparison in {plan.folder} had other settings: {changes}: name another folder"
            )
        return
    if plan.folder.exists() and (not plan.folder.is_dir() or any(plan.folder.iterdir())):
        raise UserError(
            f"output_dir: {plan.folder} holds files that are no comparison of this program: name another folder"
        )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def _changed(stored: Mapping[str, object], now: Mapping[str, object]) -> dict[str, object]:
    """What the settings were that have changed. One that an older version did not know was what its default is."""
    was = dict(stored)
    if now.keys() - was.keys():
        was = {**fixed_settings(), **was}
    return {name: was.get(name) for name in now if was.get(name) != now[name]}


def lock(plan: Plan) -> TextIO:
    """A lock on the comparison's folder: held until it is closed here and in every child that keeps it open.

    Raises:
        UserError: Another process, perhaps a child that outlived its comparison, is at work there.
    """
    import fcntl

    file = (plan.folder / LOCK_FILE).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"output_dir: another process is at work in {plan.folder}: wait for it, or end it") from None
    return file
