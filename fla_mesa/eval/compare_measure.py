"""What is measured of a trained model beside its validation loss; `compare` runs it in a process of its own.

RUN is a folder that `fla-mesa train` has finished; what the model was trained on and how is read there.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, PreTrainedModel

from fla_mesa.data import DataRequest, Splits, load_data, synthetic
from fla_mesa.models import zoo  # noqa: F401 (registers every family of the zoo with transformers)
from fla_mesa.train.folder import METRICS_FILE, write_json
from fla_mesa.train.progress import no_bars
from fla_mesa.train.recipe import evenly

EXTRAPOLATION = 4  # times the training length
BATCHES = (1, 8)
DECODED = 32  # tokens a sequence
REPEATS = 5


def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="measure", allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--position_tokens", type=int, default=131_072)
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args(argv)
    metrics = json.loads((given.run / METRICS_FILE).read_text())
    found: dict[str, Any] = {}
    if given.speed:
        found |= speed(given.run, metrics)
    if metrics["bits_per_byte"] is not None:  # text, of which longer blocks can be cut
        found |= loss_by_position(load(given.run, metrics), metrics, given.position_tokens)
    if "suite" in metrics["data"]:
        found["test"] = score(load(given.run, metrics), metrics)
    write_json(given.file, found)
    return 0


def _device() -> torch.device:
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _precision(metrics: dict[str, Any]) -> AbstractContextManager:
    """That of the training."""
    return torch.autocast(_device().type, dtype=torch.bfloat16) if metrics["settings"]["bf16"] else nullcontext()


def load(run: Path, metrics: dict[str, Any]) -> PreTrainedModel:
    """The trained model, ready to be evaluated."""
    with no_bars():
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(run)
    model.to(_device())  # pyright: ignore[reportArgumentType] (transformers' own typing)
    return model.eval()


# Quality


def validation_blocks(metrics: dict[str, Any], seq_len: int) -> Splits:
    """The data of the run, cut to blocks of `seq_len`."""
    settings = metrics["settings"]
    request = DataRequest(
        spec=settings["data"],
        validation=settings["validation"],
        config=settings["data_config"],
        text_column=settings["text_column"],
        tokenizer=settings["tokenizer"],
        seq_len=seq_len,
        seed=settings["seed"],
    )
    return load_data(request)


@torch.no_grad()
def loss_by_position(model: PreTrainedModel, metrics: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Mean loss of the token at each position of blocks that are ``EXTRAPOLATION`` times as long as those of the training.

    Returns:
        ``loss_by_position``: nats at positions 1 to L - 1; ``blocks``: over how many blocks.
    """
    length = EXTRAPOLATION * metrics["seq_len"]
    validation = validation_blocks(metrics, length).validation
    blocks = evenly(validation, max(1, tokens // length))
    rows = [blocks[i] for i in range(len(blocks))]  # pyright: ignore[reportArgumentType] (of known length)
    batch = max(1, metrics["settings"]["per_device_eval_batch_size"] // EXTRAPOLATION)
    nats = torch.zeros(length - 1, dtype=torch.float64)
    counts = torch.zeros(length - 1, dtype=torch.float64)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        ids, labels = (torch.stack([row[name] for row in part]).to(_device()) for name in ("input_ids", "labels"))
        with _precision(metrics):
            logits = model(ids, use_cache=False).logits
        for row in range(len(part)):  # a row at a time: float32 logits of long blocks are large
            losses = F.cross_entropy(logits[row, :-1].float(), labels[row, 1:], reduction="none")
            nats += losses.double().cpu()
            counts += (labels[row, 1:] >= 0).double().cpu()
    return {"loss_by_position": (nats / counts.clamp(min=1)).tolist(), "blocks": len(rows)}


@torch.no_grad()
def score(model: PreTrainedModel, metrics: dict[str, Any]) -> dict[str, float]:
    """The suite's own score on its test split: see :meth:`fla_mesa.data.synthetic.Suite.metric`."""
    suite = synthetic.get(metrics["data"]["suite"])
    data, batch = suite.generate("test"), metrics["settings"]["per_device_eval_batch_size"]
    widest = max(rows["input_ids"].shape[1] for _, rows in data)
    predictions = []
    for _, rows in data:
        ids = torch.from_numpy(rows["input_ids"])
        for part in ids.split(batch):
            with _precision(metrics):
                greedy = model(part.to(_device()), use_cache=False).logits.argmax(-1)
            predictions.append(F.pad(greedy.cpu(), (0, widest - greedy.shape[1])))
    return suite.metric("test", torch.cat(predictions).numpy(), data)


# Speed and memory


def speed(run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second in prefill and decoding, the peak memory of a training step, the size of the state of one sequence.

    Returns:
        ``prefill_tokens_per_second``, ``decode_tokens_per_second``: by batch size, medians of ``REPEATS``;
        ``training_peak_bytes``: of the accelerator, or what the process grew by on a CPU; ``state_bytes``: by length.
    """
    length, vocabulary = metrics["seq_len"], 256
    generator = torch.Generator().manual_seed(0)

    def ids(batch: int, tokens: int) -> torch.Tensor:
        return torch.randint(0, vocabulary, (batch, tokens), generator=generator).to(_device())

    before = _memory_in_use()
    model = load(run, metrics)
    vocabulary = model.config.vocab_size
    with _precision(metrics):
        peak = _peak_of_a_step(model, ids(metrics["settings"]["per_device_train_batch_size"], length), before)
        found: dict[str, Any] = {"training_peak_bytes": peak}
        model.eval()
        with torch.no_grad():
            prefill_speed, decoding_speed = {}, {}
            for batch in BATCHES:
                prompt = ids(batch, length)
                prefill_speed[str(batch)] = batch * length / _seconds(lambda prompt=prompt: prefill(model, prompt))
                decoding_speed[str(batch)] = _decoding_speed(model, prompt)
            found |= {"prefill_tokens_per_second": prefill_speed, "decode_tokens_per_second": decoding_speed}
            lengths = (length, EXTRAPOLATION * length)
            found["state_bytes"] = {str(n): size_of(prefill(model, ids(1, n))[1]) for n in lengths}
    return found


def prefill(model: PreTrainedModel, prompt: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """The next tokens `[B, 1]` and the cache by the name under which the model takes it back; logits of the last position only."""
    out = model.base_model(prompt, use_cache=True)
    head = model.get_output_embeddings()
    assert head is not None
    name = "past_key_values" if getattr(out, "past_key_values", None) is not None else "cache_params"
    return head(out.last_hidden_state[:, -1:]).argmax(-1), {name: getattr(out, name)}


def _decoding_speed(model: PreTrainedModel, prompt: torch.Tensor) -> float:
    token, cache = prefill(model, prompt)

    def decode() -> None:
        nonlocal token
        for _ in range(DECODED):
            token = model(token, use_cache=True, **cache).logits[:, -1:].argmax(-1)

    return len(prompt) * DECODED / _seconds(decode)


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _seconds(work: Callable[[], Any]) -> float:
    """Median over ``REPEATS``, after one that warms up."""
    times = []
    for _ in range(REPEATS + 1):
        _synchronize()
        begin = time.perf_counter()
        work()
        _synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _memory_in_use() -> int:
    """Bytes that this process holds now, from where its largest is counted anew; on an accelerator 0, as the model comes first there."""
    if torch.accelerator.is_available():
        return 0
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _largest_memory() -> int:
    """Most bytes that this process, or the accelerator, has held so far."""
    if torch.accelerator.is_available():
        return torch.accelerator.max_memory_allocated()
    try:  # getrusage would count what the process held that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    except (OSError, IndexError):
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else 1024 * largest


def _peak_of_a_step(model: PreTrainedModel, ids: torch.Tensor, before: int) -> int:
    """Bytes of a step with AdamW: weights, gradients, moments, activations. To be asked before anything else has run."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    for _ in range(2):  # the second has moments and activations at once
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    _synchronize()
    return _largest_memory() - before


def size_of(value: Any) -> int:
    """Bytes of all tensors in a cache, whatever it is made of."""
    seen: dict[int, int] = {}
    visited: set[int] = set()

    def visit(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            seen[id(item)] = item.numel() * item.element_size()
            return
        if id(item) in visited or isinstance(item, (str, bytes, int, float, type, torch.dtype, torch.device)):
            return
        visited.add(id(item))
        if isinstance(item, dict):
            children = list(item.values())
        elif isinstance(item, (list, tuple, set)):
            children = list(item)
        else:
            children = (
                [child for name, child in vars(item).items() if name != "config"] if hasattr(item, "__dict__") else []
            )
        for child in children:
            visit(child)

    visit(value)
    return sum(seen.values())
