"""lm-eval tasks over sequences of token ids: the test splits of the synthetic suites, and loss by position on held-out text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, cast

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import Task
from lm_eval.config.task import TaskConfig
from lm_eval.filters import build_filter_ensemble

from fla_mesa.data import synthetic
from fla_mesa.data.documents import STDLIB, blocks_of_each
from fla_mesa.errors import UserError
from fla_mesa.eval.harness.text_tasks import number
from fla_mesa.eval.measure.quality import position_ranges
from fla_mesa.models.checkpoint import recorded_suite, tokenizer_for

Document = dict[str, Any]  # "input_ids", and what a task's scoring needs


class SequenceTask(Task, ABC):
    """A task over token ids, each document answered by one request of :class:`~fla_mesa.eval.harness.model.FlaMesaLM`.

    Args:
        config: What the task's entry says plus lm-eval's metadata (``--metadata`` and ``--model_args``).
    """

    VERSION = 1
    # The method of FlaMesaLM to call. lm-eval calls whatever method a request names, though its types list only its own.
    REQUEST: ClassVar[Any]

    def __init__(self, config: dict[str, Any]) -> None:
        # Not Task's own, which downloads a data set and warns about the settings of generation.
        self.settings: dict[str, object] = dict(config.get("metadata") or {})
        self._config = TaskConfig(task=config["task"], output_type=self.REQUEST, num_fewshot=0, metadata=self.settings)
        self._instances = None
        self._filters = [build_filter_ensemble("none", [("take_first", None)])]
        self.fewshot_rnd = None
        self._docs = self.make_docs()

    @abstractmethod
    def make_docs(self) -> list[Document]:
        """The documents, all of them."""

    @abstractmethod
    def metrics(self) -> dict[str, bool]:
        """Names of the metrics; whether higher is better."""

    def has_training_docs(self) -> bool:
        return False

    def has_validation_docs(self) -> bool:
        return False

    def has_test_docs(self) -> bool:
        return True

    def test_docs(self) -> list[Document]:
        return self._docs

    def doc_to_text(self, doc: Document) -> str:
        return " ".join(map(str, doc["input_ids"]))

    def doc_to_target(self, doc: Document) -> str:
        return ""

    def fewshot_context(self, doc: Document, num_fewshot: int = 0, **_: object) -> str:
        """The sequence itself. lm-eval passes its prompt settings, none of which applies to bare token ids.

        Raises:
            UserError: Examples were asked for.
        """
        if num_fewshot:
            raise UserError(
                f"{self.config.task}: num_fewshot must be 0, got {num_fewshot}: a sequence of ids has no examples before it"
            )
        return self.doc_to_text(doc)

    def construct_requests(
        self, doc: Document, ctx: str, *, metadata: tuple[str | None, int | None, int | None], **_: object
    ) -> Instance:
        return Instance(self.REQUEST, doc, arguments=(ctx,), idx=0, metadata=metadata)

    def aggregation(self) -> dict[str, Callable[[Sequence[float]], float]]:
        return dict.fromkeys(self.metrics(), mean)

    def higher_is_better(self) -> dict[str, bool]:
        return self.metrics()


class SuiteTask(SequenceTask):
    """The test split of a synthetic suite; ``acc`` is the suite's own score, averaged over the sequences.

    The entry's ``metadata: suite:`` names it. A checkpoint that learnt the same suite with other parameters (a smaller vocabulary,
    say), and records so in its tokenizer, is asked with those; what the entry fixes comes first. One that learnt another suite, or
    text, is not asked: its ids mean something else.
    """

    REQUEST = OUTPUT_TYPE = cast(Any, "greedy_next_tokens")

    def make_docs(self) -> list[Document]:
        suite = synthetic.get(self.spec())
        docs: list[Document] = []
        self._tasks = [task for task, _ in suite.segments("test")]
        for which, (_, rows) in enumerate(suite.generate("test")):
            n = len(rows["labels"])
            docs += [{key: column[i].tolist() for key, column in rows.items()} | {"which": which} for i in range(n)]
        return docs

    def spec(self) -> str:
        """The suite to ask: the entry's settings over those that the checkpoint learnt, if it learnt this suite.

        Raises:
            UserError: The checkpoint learnt another suite, or none.
        """
        wanted = str(self.settings["suite"])
        recorded = recorded_suite(self.settings.get("pretrained"))
        if wanted == "recorded":
            if recorded is None:
                raise UserError(
                    "this task is the suite that the checkpoint was trained on, but its tokenizer records none"
                )
            return recorded
        if recorded is not None:
            merged = synthetic.merge_specs(recorded, wanted)
            if merged is None:
                raise UserError(f"the checkpoint was trained on another suite, {recorded}")
            return merged
        if not self.settings.get("any_checkpoint"):
            raise UserError(
                "the checkpoint's tokenizer records no synthetic suite, so its ids mean something else; "
                "pass --metadata any_checkpoint=True to ask it nevertheless"
            )
        return wanted

    def process_results(self, doc: Document, results: list[list[int]]) -> dict[str, float]:
        rows = {key: np.array([value]) for key, value in doc.items() if key != "which"}
        return {"acc": float(self._tasks[doc["which"]].scores(np.array([results[0]]), rows)[0])}

    def metrics(self) -> dict[str, bool]:
        return {"acc": True}


class LossByPosition(SequenceTask):
    """Mean loss in nats per token on held-out text, in all and by position in the context.

    Settings (``--metadata``): text, see :func:`fla_mesa.data.documents.read_documents` (stdlib); positions, the length of the blocks (512);
    tokenizer, if not the checkpoint's. The text is cut into blocks of that many tokens, each read from an empty state.
    """

    REQUEST = OUTPUT_TYPE = cast(Any, "next_token_losses")

    def make_docs(self) -> list[Document]:
        positions = number(self.settings, "positions", 512, 2, f"{self.config.task}")
        self._ranges = position_ranges(positions)
        tokenizer = tokenizer_for(self.settings, "loss by position")
        blocks = blocks_of_each(self.settings.get("text", STDLIB), tokenizer, positions)
        return [{"input_ids": block} for block in blocks]

    def process_results(self, doc: Document, results: list[list[float]]) -> dict[str, float]:
        losses = np.array(results[0])  # of the tokens at positions 1, 2, ...
        by_position = {f"loss_{a}_{b - 1}": float(losses[a - 1 : b - 1].mean()) for a, b in self._ranges}
        return {"loss": float(losses.mean()), **by_position}

    def metrics(self) -> dict[str, bool]:
        return {"loss": False, **{f"loss_{a}_{b - 1}": False for a, b in self._ranges}}
