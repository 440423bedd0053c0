"""The model that lm-eval runs: its HFLM for checkpoints of every architecture, with the solver's settings and two more requests."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import fla.models  # noqa: F401 (registers flash-linear-attention's architectures with transformers)
import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM as _HFLM  # its registration decorator hides its type from type checkers
from tqdm import tqdm

import fla_mesa  # noqa: F401 (registers this package's family, and the CPU back end where there is no accelerator)
from fla_mesa.eval.checkpoint import check_checkpoint
from fla_mesa.eval.solver import set_solver

HFLM: Any = _HFLM

# What HFLM hands on to `from_pretrained`, as far as it is of use for causal language models.
_FOR_FROM_PRETRAINED = ("attn_implementation", "device_map", "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype")


class FlaMesaLM(HFLM):
    """lm-eval's HFLM, for this package's checkpoints and any other that transformers loads.

    Args (``--model_args name=value,...``), besides all of HFLM's:
        cg_tolerance: For MesaNet: relative residual at which a position's solve stops, in place of the checkpoint's.
        max_cg_steps: For MesaNet: most conjugate-gradient steps, in prefill and in decoding, in place of the checkpoint's.
        max_length: As in HFLM. If it is given, an input longer than it is an error; pass ``truncation=True`` to cut on the left.

    Raises:
        ValueError: `pretrained` is no checkpoint, an argument is unknown or out of range, or solver settings meet another architecture.
    """

    def __init__(
        self,
        pretrained: Any,
        cg_tolerance: float | None = None,
        max_cg_steps: int | None = None,
        **arguments: Any,
    ) -> None:
        known = [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
        known += [*_FOR_FROM_PRETRAINED, "cg_tolerance", "max_cg_steps"]
        for name in arguments:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"unknown model argument {name!r}.{hint} Allowed: {', '.join(known)}")
        if isinstance(pretrained, str):
            check_checkpoint(pretrained)
        super().__init__(pretrained, **{"backend": "causal", **arguments})
        set_solver(self.model, max_cg_steps=max_cg_steps, cg_tolerance=cg_tolerance)

    # Too long

    def _check_length(self, tokens: int, what: str) -> None:
        if self._max_length and not self.truncation and tokens > self._max_length:
            raise ValueError(
                f"{what} of {tokens} tokens is longer than max_length={self._max_length}; raise max_length, or pass truncation=True "
                f"to cut it on the left"
            )

    def _loglikelihood_tokens(self, requests: list, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            self._check_length(len(context) + len(continuation) - 1, "an input")
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        if self._max_length and not self.truncation:
            for request in requests:
                context, settings = cast("tuple[str, dict]", request.args)
                new = settings.get("max_gen_toks", self.max_gen_toks)
                self._check_length(len(self.tok_encode(context)) + new, "an input and its answer")
        return super().generate_until(requests, disable_tqdm)

    # Requests of this package's tasks: over sequences of token ids, written as text ('17 4 250') to fit lm-eval's records

    def greedy_next_tokens(self, requests: list[Instance], disable_tqdm: bool = False) -> list[list[int]]:
        """For each sequence of L ids, the most likely next token after every position, L ids."""
        return self._over_sequences(requests, disable_tqdm, lambda logits, ids: logits.argmax(dim=-1))

    def next_token_losses(self, requests: list[Instance], disable_tqdm: bool = False) -> list[list[float]]:
        """For each sequence of L ids, the negative log-likelihood in nats of each but the first given those before it, L - 1 numbers."""

        def losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(
                len(ids), -1
            )

        return self._over_sequences(requests, disable_tqdm, losses)

    @torch.no_grad()
    def _over_sequences(
        self,
        requests: list[Instance],
        disable_tqdm: bool,
        reduce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> list[list[Any]]:
        sequences = [[int(token) for token in request.args[0].split()] for request in requests]
        rows = self.model.config.vocab_size
        for ids in sequences:
            self._check_length(len(ids), "a sequence")
            if max(ids) >= rows:
                raise ValueError(
                    f"the task needs token id {max(ids)}, but the model has {rows} of them (0 to {rows - 1}): it was trained on another "
                    f"suite or tokenizer"
                )
        results: list[list[Any]] = [[] for _ in sequences]
        progress = tqdm(total=len(sequences), disable=disable_tqdm or self.rank != 0, desc="Running sequences")
        for batch in self._batches(sequences):
            width = max(len(sequences[i]) for i in batch)
            # Padding stands on the right, where a causal model's earlier positions cannot see it.
            ids = torch.tensor([sequences[i] + [0] * (width - len(sequences[i])) for i in batch], device=self.device)
            reduced = reduce(self._model_call(ids), ids)
            cut = width - reduced.shape[1]
            for i, row in zip(batch, reduced.tolist(), strict=True):
                results[i] = row[: len(sequences[i]) - cut]
            progress.update(len(batch))
        progress.close()
        return results

    def _batches(self, sequences: list[list[int]]) -> Iterator[list[int]]:
        """Indices of sequences in batches, longest first, so that a batch is of like lengths and memory runs out at once or never."""
        size = self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size)
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        for start in range(0, len(order), size):
            yield order[start : start + size]
