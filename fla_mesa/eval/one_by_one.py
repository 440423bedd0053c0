"""Runs lm-eval's tasks one at a time, so that one that cannot be loaded or run is named and the others' results are kept."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import lm_eval.api.registry
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind

from fla_mesa.errors import UserError
from fla_mesa.eval.cut import cut_inputs
from fla_mesa.eval.fingerprint import fingerprint

logger = logging.getLogger(__name__)

# The parts of lm-eval's results that have an entry for each task.
_PER_TASK = (
    "results",
    "groups",
    "group_subtasks",
    "configs",
    "versions",
    "n-shot",
    "higher_is_better",
    "n-samples",
    "samples",
    "cut",
)


class OneByOne:
    """Stands in for lm-eval's `simple_evaluate` under its command line and takes the same keyword arguments.

    Args:
        own_tasks: The folder of this package's task files.

    Attributes:
        results: What the last call returned.
        skipped: Task names of the last call that could not be run, with the reason.
    """

    def __init__(self, own_tasks: Path) -> None:
        self._own_tasks = own_tasks
        self.results: dict[str, Any] | None = None
        self.skipped: dict[str, str] = {}

    def __call__(self, **arguments: Any) -> dict[str, Any] | None:
        self.results, self.skipped = None, {}
        model, model_args, tasks = (arguments.pop(name) for name in ("model", "model_args", "tasks"))
        tracker = arguments.get("evaluation_tracker")
        lm = lm_eval.api.registry.get_model(model).create_from_arg_obj(
            dict(model_args), {name: arguments[name] for name in ("batch_size", "max_batch_size", "device")}
        )
        if arguments.get("use_cache"):  # lm-eval looks answers up by the question alone
            arguments["use_cache"] += f"_{fingerprint(lm, model, model_args)}"
        keep_samples = arguments.pop("log_samples", True) or arguments.get("predict_only", False)
        merged: dict[str, Any] | None = None
        for task in _expand_tags(tasks, arguments["task_manager"]):
            try:
                # Facts about the machine take lm-eval a second to find and are the same for every task: the first ones are kept.
                with nullcontext() if merged is None else patch("lm_eval.evaluator.add_env_info"):
                    one = cast(
                        "dict[str, Any] | None",
                        simple_evaluate(
                            model=lm,
                            model_args=model_args,
                            tasks=[task],
                            log_samples=True,
                            **self._without_stored_requests(task, arguments),
                        ),
                    )
            except Exception as error:  # whatever a task's data or code can raise
                if lm.world_size > 1:
                    raise  # the other processes would wait for this one
                name = task if isinstance(task, str) else str(task.get("task", task))
                self.skipped[name] = _first_line(error)
                logger.warning("task %s is skipped: %s", name, self.skipped[name])
                logger.debug("task %s", name, exc_info=True)
                continue
            if one is not None:
                one["cut"] = cut_inputs(lm, one["samples"], one["configs"])
                if not keep_samples:
                    del one["samples"]
                merged = one if merged is None else _merge(merged, one)
        if merged is None and self.skipped:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.skipped.items())
            raise UserError(f"no task could be run: {reasons}")
        if merged is not None:
            merged["config"].update(model=model, model_args=model_args)
            merged["skipped"] = dict(self.skipped)
            merged["max_length"] = getattr(lm, "max_length", None)
            if tracker is not None:
                tracker.general_config_tracker.model_source = model
        self.results = merged
        return merged

    def _without_stored_requests(self, task: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        """What `simple_evaluate` is given for a task: --cache_requests is not for those of this package.

        lm-eval stores requests by the name of the task, but --metadata and the checkpoint decide what these tasks ask.
        """
        entry = arguments["task_manager"].task_index.get(task) if isinstance(task, str) else None
        if entry is None or entry.yaml_path is None or Path(entry.yaml_path).parent != self._own_tasks:
            return arguments
        return {**arguments, "cache_requests": False, "rewrite_requests_cache": False, "delete_requests_cache": False}


def _expand_tags(tasks: list[Any], manager: TaskManager) -> list[Any]:
    """Tags replaced by their tasks, each of which can fail by itself; the order is kept and nothing is named twice."""
    expanded: list[Any] = []
    for task in tasks:
        entry = manager.task_index.get(task) if isinstance(task, str) else None
        members = sorted(entry.tags) if entry is not None and entry.kind is Kind.TAG else [task]
        expanded += [member for member in members if member not in expanded]
    return expanded


def _merge(merged: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    for part in _PER_TASK:
        if part in one:
            merged.setdefault(part, {}).update(one[part])
    return merged


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
