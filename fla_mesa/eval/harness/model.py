"""The model that lm-eval runs: its HFLM for checkpoints of every architecture, with the solver's settings and two more requests."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, cast

import fla.models  # noqa: F401 (registers flash-linear-attention's architectures with transformers)
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM as _HFLM  # its registration decorator hides its type from type checkers
from tqdm import tqdm
from transformers import PreTrainedConfig

import fla_mesa  # noqa: F401 (registers this package's family, and the CPU back end where there is no accelerator)
from fla_mesa.errors import UserError, check_integer, mistakes_of
from fla_mesa.eval.harness.cut import new_tokens, tokens
from fla_mesa.eval.measure.quality import token_losses
from fla_mesa.layers.solver import set_solver
from fla_mesa.models.checkpoint import adapted_model, check_checkpoint, merged, most_positions, tokenizer_of
from fla_mesa.ops.backends import check_backend

HFLM: Any = _HFLM

# The context where none is asked for: lm-eval's own default, the same for every model. A configuration is not asked, as those of some
# architectures say what the model was trained on and others say nothing.
CONTEXT = 2048

# What HFLM hands on to `from_pretrained`, as far as it is of use for causal language models.
_FOR_FROM_PRETRAINED = ("attn_implementation", "device_map", "load_in_4bit", "load_in_8bit", "bnb_4bit_compute_dtype")


class FlaMesaLM(HFLM):
    """lm-eval's HFLM, for this package's checkpoints and any other that transformers loads.

    Args (``--model_args name=value,...``), besides all of HFLM's:
        cg_tolerance: For MesaNet: relative residual at which a position's solve stops, in place of the checkpoint's.
        backend: For MesaNet: back end of its op, such as "pytorch" or "exact". (HFLM's argument of this name is always "causal".)
        max_cg_steps: For MesaNet: most conjugate-gradient steps, in prefill and in decoding, in place of the checkpoint's.
        max_length: Tokens that an input and its answer may have together (2048). Longer inputs are cut on the left, and counted in the
            results; if it is given, they are an error, unless ``truncation=True`` is given as well.

    `pretrained` may be the folder of a PEFT adapter, which is merged into the model that it names.

    Raises:
        ValueError: `pretrained` is no checkpoint, an argument is unknown or out of range, or solver settings meet another architecture.
    """

    def __init__(
        self,
        pretrained: Any,
        cg_tolerance: float | None = None,
        max_cg_steps: int | None = None,
        backend: str | None = None,
        **arguments: Any,
    ) -> None:
        known = [name for name in inspect.signature(HFLM.__init__).parameters if name not in ("self", "kwargs")]
        known += [*_FOR_FROM_PRETRAINED, "cg_tolerance", "max_cg_steps", "backend"]
        for name in arguments:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise UserError(f"unknown model argument {name!r}.{hint} Allowed: {', '.join(known)}")
        if isinstance(pretrained, str):
            check_checkpoint(pretrained)
            pretrained, arguments = _with_adapter(pretrained, arguments)
        with mistakes_of(ValueError):
            check_backend(backend)
        check_dtype(arguments.get("dtype"))
        wanted, truncation = arguments.pop("max_length", None), bool(arguments.pop("truncation", False))
        check_context(wanted)
        # HFLM's own truncation would have the tokenizer cut at its own length, and on the right.
        super().__init__(pretrained, backend="causal", **arguments, max_length=wanted or CONTEXT)
        self._refuses_longer = wanted is not None and not truncation
        check_positions(self.config, self.max_length)
        set_solver(self.model, max_cg_steps=max_cg_steps, cg_tolerance=cg_tolerance, backend=backend)

    def _create_model(self, *args: object, peft: str | None = None, **kwargs: object) -> None:
        super()._create_model(*args, peft=peft, **kwargs)
        if peft:
            self._model = merged(self._model)

    # Too long

    def _check_length(self, tokens: int, what: str, *, may_be_cut: bool = True) -> None:
        if self._refuses_longer and tokens > self.max_length:
            cut = ", or pass truncation=True to cut it on the left" if may_be_cut else ""
            raise UserError(
                f"{what} of {tokens} tokens is longer than max_length={self.max_length}; raise max_length{cut}"
            )

    def _loglikelihood_tokens(self, requests: list, *args: object, **kwargs: object) -> list[tuple[float, bool]]:
        for _, context, continuation in requests:
            self._check_length(len(context) + len(continuation) - 1, "an input")
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request.

        Raises:
            UserError: An answer leaves no room for an input, or an input is too long for a model that refuses longer ones.
        """
        for request in requests:
            context, settings = cast("tuple[str, dict]", request.args)
            new = new_tokens(self, settings)
            if self._refuses_longer:
                self._check_length(
                    tokens(self, context, at_most=self.max_length - new) + new, "an input and its answer"
                )
            if new >= self.max_length:
                raise UserError(
                    f"an answer of {new} tokens (max_gen_toks) leaves no room for an input in max_length={self.max_length}; "
                    f"raise max_length, or pass --gen_kwargs max_gen_toks=N"
                )
        return super().generate_until(requests, disable_tqdm)

    # Requests of this package's tasks: over sequences of token ids, written as text ('17 4 250') to fit lm-eval's records

    def greedy_next_tokens(self, requests: list[Instance], disable_tqdm: bool = False) -> list[list[int]]:
        """For each sequence of L ids, the most likely next token after every position, L ids."""
        return cast(
            "list[list[int]]", self._over_sequences(requests, disable_tqdm, lambda logits, _: logits.argmax(dim=-1))
        )

    def next_token_losses(self, requests: list[Instance], disable_tqdm: bool = False) -> list[list[float]]:
        """For each sequence of L ids, the negative log-likelihood in nats of each but the first given those before it, L - 1 numbers."""
        return self._over_sequences(requests, disable_tqdm, token_losses)

    @torch.no_grad()
    def _over_sequences(
        self,
        requests: list[Instance],
        disable_tqdm: bool,
        reduce: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> list[list[float]]:
        sequences = [[int(token) for token in request.args[0].split()] for request in requests]
        rows = self.model.config.vocab_size
        for ids in sequences:
            self._check_length(len(ids), "a sequence", may_be_cut=False)
            if max(ids) >= rows:
                raise UserError(
                    f"the task needs token id {max(ids)}, but the model has {rows} of them (0 to {rows - 1}): it was trained on another "
                    f"suite or tokenizer"
                )
        found: dict[int, list[float]] = {}
        batches = list(self._batches(sequences))
        for batch in tqdm(batches, disable=disable_tqdm or self.rank != 0, desc="Running sequences"):
            ids = torch.tensor([sequences[i] for i in batch], device=self.device)
            found |= zip(batch, reduce(self._model_call(ids), ids).tolist(), strict=True)
        return [found[i] for i in range(len(sequences))]

    def _batches(self, sequences: list[list[int]]) -> Iterator[list[int]]:
        """Indices of sequences of one length in batches, longest first, so that memory runs out at once or never."""
        size = self._detect_batch_size() if self.batch_size == "auto" else int(self.batch_size)
        order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
        for _, group in itertools.groupby(order, key=lambda i: len(sequences[i])):
            of_one_length = list(group)
            yield from (of_one_length[start : start + size] for start in range(0, len(of_one_length), size))


def check_context(max_length: object) -> None:
    """Raise UserError for a context length that is none; None stands for the default."""
    if max_length is not None:
        check_integer("max_length", max_length, 2)


def check_positions(config: PreTrainedConfig, max_length: int | None) -> None:
    """Check that a model has as many positions as the context (by default :data:`CONTEXT`).

    Raises:
        UserError: It has fewer.
    """
    positions, length = most_positions(config), max_length or CONTEXT
    if positions is not None and positions < length:
        raise UserError(
            f"a {config.model_type!r} with {positions} positions cannot read {length} tokens; the context is one for all models of a "
            f"table: pass --model_args max_length={positions},truncation=True"
        )


def check_dtype(dtype: object) -> None:
    """Check that a name is a dtype of PyTorch.

    Raises:
        UserError: It is not.
    """
    if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"dtype: allowed are auto, float32, bfloat16, float16, float64; got {dtype!r}")


def _with_adapter(pretrained: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A checkpoint and its model's arguments as HFLM takes them: an adapter apart from what it changes."""
    base = adapted_model(pretrained)
    if base is None:
        return pretrained, arguments
    if arguments.get("peft"):
        raise UserError(f"peft: {pretrained!r} is an adapter itself; got {arguments['peft']!r} as well")
    return base, {"tokenizer": tokenizer_of(pretrained), **arguments, "peft": pretrained}
