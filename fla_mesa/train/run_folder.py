"""Files of a training run: ownership, complete checkpoints, clean-up.

output_dir/
  run.json           the settings that make the run what it is; written when training starts
  status.json        how far it is and how it ended: status.py
  checkpoint-N/      all that is needed to go on after step N; whole if complete.json is in it
  model.safetensors, config.json, tokenizer.json, ..., loss.png, README.md, metrics.json     written at the end, in this order
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from fla_mesa.errors import UserError
from fla_mesa.json_files import Unreadable, read_json, read_json_if_there, write_json
from fla_mesa.models import card

RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
STATUS_FILE = "status.json"
COMPLETE_FILE = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STATE_FILES = ("trainer_state.json", "scheduler.pt")


def check_free(folder: Path) -> None:
    """Checks that a new run in `folder` would overwrite nothing.

    Raises:
        UserError: It would.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir: {folder} is a file")
    if (folder / RUN_FILE).exists():
        raise UserError(
            f"output_dir: {folder} already holds a run: add --resume to continue it, or name another folder"
        )
    if folder.exists() and (found := sorted(item.name for item in folder.iterdir())):
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(f"output_dir: {folder} holds files that do not belong to a run ({shown}): name another folder")


_RESULTS = re.compile(
    r"run\.json|metrics\.json|status\.json|loss\.png|training_args\.bin|(generation_)?config\.json|model.*\.safetensors(\.index\.json)?"
    r"|load_fla_mesa\.py|tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.\w+|merges\.txt|chat_template\.jinja|.*\.tmp"
)


def _is_result(path: Path) -> bool:
    """Whether a run writes such a file; a model card that the user wrote belongs to the user."""
    return _RESULTS.fullmatch(path.name) is not None or (path.name == card.FILE and card.is_ours(path))


def remove_run(folder: Path) -> None:
    """Deletes a run's files in `folder`, and nothing else."""
    for checkpoint in _checkpoints(folder):
        _remove(checkpoint)
    for path in folder.iterdir():
        if path.is_file() and _is_result(path):
            path.unlink()


def check_removable(folder: Path) -> None:
    """Checks that `folder` holds nothing but a run.

    Raises:
        UserError: It holds more.
    """
    if not (folder / RUN_FILE).exists():
        check_free(folder)
        return
    checkpoints = {checkpoint.name for checkpoint in _checkpoints(folder)}
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in checkpoints and not _is_result(path))
    if foreign:
        raise UserError(
            f"output_dir: {folder} holds more than an earlier run ({', '.join(foreign[:3])}): name another folder"
        )


def stored_run(folder: Path) -> dict | None:
    """Contents of run.json, or None if no run has started.

    Raises:
        UserError: It cannot be read.
    """
    try:
        stored = read_json_if_there(folder / RUN_FILE)
    except Unreadable as error:
        raise UserError(f"resume: {error}") from None
    if stored is None:
        check_free(folder)
    return stored


def check_same(folder: Path, stored: dict, now: dict) -> None:
    """Checks that a stored run has the settings that are asked for.

    Raises:
        UserError: It has others; the message names them all.
    """
    differing = [name for name in now if stored.get(name) != now[name]]
    if differing:
        changes = "; ".join(f"{name} was {stored.get(name)!r} and is now {now[name]!r}" for name in differing)
        raise UserError(f"resume: the run in {folder} was started with other settings: {changes}")


def _step(checkpoint: Path) -> int:
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoint folders, complete or not, by step."""
    found = [item for item in folder.iterdir() if item.is_dir() and _step(item) >= 0] if folder.is_dir() else []
    return sorted(found, key=_step)


def mark_complete(checkpoint: Path) -> None:
    """Marks a checkpoint as complete. Call it when all processes have written everything."""
    files = {
        path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in checkpoint.rglob("*") if path.is_file()
    }
    files.pop(COMPLETE_FILE, None)  # of the same step, saved once before
    write_json(checkpoint / COMPLETE_FILE, {"files": files})


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was marked complete and still has everything it had then."""
    try:
        files = read_json(checkpoint / COMPLETE_FILE)["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    return next((checkpoint for checkpoint in reversed(_checkpoints(folder)) if is_complete(checkpoint)), None)


def check_resumable(checkpoint: Path) -> None:
    """Checks that training can continue from `checkpoint`.

    Raises:
        UserError: It cannot.
    """
    if not is_complete(checkpoint):
        raise UserError(f"resume_from_checkpoint: {checkpoint} is not a complete checkpoint")
    missing = [name for name in _STATE_FILES if not (checkpoint / name).exists()]
    if missing:
        raise UserError(f"resume: {checkpoint} was saved with --save_only_model and lacks {', '.join(missing)}")


def _remove(checkpoint: Path) -> None:
    (checkpoint / COMPLETE_FILE).unlink(missing_ok=True)  # first: what is half gone must not look whole
    shutil.rmtree(checkpoint)


def remove_incomplete(folder: Path) -> list[str]:
    """Deletes checkpoints that a killed run was writing; returns their names."""
    incomplete = [checkpoint for checkpoint in _checkpoints(folder) if not is_complete(checkpoint)]
    for checkpoint in incomplete:
        _remove(checkpoint)
    return [checkpoint.name for checkpoint in incomplete]


def keep_latest(folder: Path, limit: int | None, protected: Iterable[Path] = ()) -> None:
    """Deletes the oldest complete checkpoints beyond `limit`, but never the latest or a protected one."""
    if limit is None or limit <= 0:
        return
    whole = [checkpoint for checkpoint in _checkpoints(folder) if is_complete(checkpoint)]
    spare = {path.resolve() for path in protected} | {path.resolve() for path in whole[-1:]}
    surplus = len(whole) - limit
    for checkpoint in [path for path in whole if path.resolve() not in spare][: max(surplus, 0)]:
        _remove(checkpoint)
