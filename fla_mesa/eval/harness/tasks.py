"""The tasks that can be asked for: lm-eval's, this package's files, entries made from the synthetic suites, and the user's own."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import lm_eval.tasks
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind, TaskIndex

from fla_mesa.data import synthetic
from fla_mesa.data.synthetic.own_haystack_niah import OwnHaystackNIAH
from fla_mesa.errors import UserError
from fla_mesa.eval.harness.paper_tasks import Config, paper_tasks
from fla_mesa.eval.harness.sequence_task import SuiteTask
from fla_mesa.eval.harness.text_tasks import needles

FILES = Path(__file__).parent / "yaml"


class Tasks(TaskManager):
    """lm-eval's index of tasks with this package's in it. The user's own come before any other of the same name.

    Args:
        include_path: The user's folders of task files.
        metadata: What tasks are told: --model_args and --metadata.
        include_defaults: Whether lm-eval's own tasks are indexed: thousands of files, which takes seconds.

    Raises:
        UserError: There is no such folder.
    """

    def __init__(
        self,
        include_path: Sequence[str | Path] = (),
        metadata: Mapping[str, object] | None = None,
        include_defaults: bool = True,
    ) -> None:
        if missing := [str(path) for path in include_path if not os.path.exists(path)]:
            raise UserError(f"--include_path: there is no {', '.join(missing)}")
        told = cast("dict[str, dict[str, object] | str]", dict(metadata or {}))
        super().__init__(include_path=[FILES, *include_path], include_defaults=include_defaults, metadata=told)
        theirs = Path(lm_eval.tasks.__file__).parent
        for name, config in our_tasks().items():
            entry, before = TaskIndex.entry_from_config(config), self.task_index.get(name)
            if entry and (before is None or before.yaml_path is None or before.yaml_path.is_relative_to(theirs)):
                self.task_index[name] = entry

    @classmethod
    def holding(
        cls, names: Sequence[str], include_path: Sequence[str | Path] = (), metadata: Mapping[str, object] | None = None
    ) -> Tasks:
        """An index in which these names are found if they exist, with lm-eval's own tasks only if they are needed for it."""
        ours = cls(include_path, metadata, include_defaults=False)
        return ours if all(map(ours._holds, names)) else cls(include_path, metadata)

    def _holds(self, name: str) -> bool:
        """Whether a name is in the index, and for a group all of its members."""
        entry = self.task_index.get(name)
        if entry is None or entry.kind is not Kind.GROUP:
            return entry is not None
        members = (entry.cfg or {}).get("task", [])
        return all(self._holds(member if isinstance(member, str) else str(member.get("task"))) for member in members)

    @property
    def all_tasks(self) -> list[str]:
        """All names: tasks, groups and tags."""
        return sorted(self.task_index)

    @property
    def all_groups(self) -> list[str]:
        return [name for name in self.all_tasks if self.task_index[name].kind is Kind.GROUP]

    @property
    def all_subtasks(self) -> list[str]:
        return [name for name in self.all_tasks if self.task_index[name].kind in (Kind.TASK, Kind.PY_TASK)]

    def find(self, names: Sequence[str]) -> list[str]:
        """What names mean, each once: a name of a task or group, a pattern of these, a tag, a file or a folder of task files.

        Raises:
            UserError: Nothing goes by one of these names.
        """
        found: list[str] = []
        missing: list[str] = []
        for name in names:
            if name in self.task_index and self.task_index[name].kind is Kind.TAG:
                matches = sorted(self.task_index[name].tags)
            elif name.endswith(".yaml"):
                matches = [str(file.absolute()) for file in sorted(Path(name).parent.glob(Path(name).name))]
            elif not (matches := self.match_tasks([name])) and Path(name).is_dir():
                matches = [str(file.absolute()) for file in sorted(Path(name).glob("*.yaml"))]
            found += matches
            missing += [] if matches else [name]
        if missing:
            raise UserError(f"Tasks not found: {', '.join(missing)}")
        return list(dict.fromkeys(found))

    def is_ours(self, task: str) -> bool:
        """Whether a task is one of this package."""
        entry = self.task_index.get(task)
        return entry is not None and (entry.yaml_path is None or entry.yaml_path.parent == FILES)


def our_tasks() -> dict[str, Config]:
    """Configurations, as lm-eval's task files hold them, of the tasks that are made rather than written."""
    recorded: Config = {"task": "recorded_suite", "class": SuiteTask, "metadata": {"version": 1, "suite": "recorded"}}
    return {"recorded_suite": recorded, **synthetic_tasks(), **_groups(), **paper_tasks()}


def synthetic_tasks() -> dict[str, Config]:
    """A task for each setting of each registered suite: 'regbench', 'mqar_64x4', 'own_haystack_niah_1'."""
    tasks: dict[str, Config] = {}
    for suite in map(synthetic.get, synthetic.suites()):
        first = suite.test[0][0]
        for name, spec in settings(suite).items():
            if isinstance(first, OwnHaystackNIAH):  # text, for a model with any tokenizer
                tasks[name] = _needle_task(name, first.variant)
            else:
                tasks[name] = {"task": name, "class": SuiteTask, "metadata": {"version": 1, "suite": spec}}
    return tasks


def settings(suite: synthetic.Suite) -> dict[str, str]:
    """The settings that a suite is tested at, by the name of their task: what makes each again."""
    name = suite.name.replace("-", "_")
    tested = [task for task, _ in suite.test]
    if len(tested) == 1:
        return {name: suite.name}
    every = [dataclasses.asdict(task) for task in tested]
    differ = [key for key in every[0] if len({str(values[key]) for values in every}) > 1]
    return {
        f"{name}_{task.setting}": f"{suite.name}:{','.join(f'{key}={values[key]}' for key in differ)}"
        for task, values in zip(tested, every, strict=True)
    }


def _groups() -> dict[str, Config]:
    """Suites that are tested at several settings, as groups with the mean of their tasks."""
    several = {suite.name.replace("-", "_"): settings(suite) for suite in map(synthetic.get, synthetic.suites())}
    mean = [{"metric": "acc", "weight_by_size": False}]
    return {
        name: {"group": name, "task": list(of), "aggregate_metric_list": mean, "metadata": {"version": 1}}
        for name, of in several.items()
        if len(of) > 1
    }


def _needle_task(name: str, variant: int) -> Config:
    """Needles in a haystack of text. `acc`: greedy generation would give the answer, all of it.

    ``--metadata length=4096`` sets the tokens of a document, ``samples=100`` their number.
    """
    return {
        "task": name,
        "custom_dataset": needles,
        "output_type": "loglikelihood",
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1, "variant": variant},
    }
