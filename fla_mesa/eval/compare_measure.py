"""What is measured of a trained model beside its validation loss; `compare` runs it in a process of its own.

RUN is a folder that `fla-mesa train` has finished; what the model was trained on and how is read there.
"""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from fla_mesa.commands import command
from fla_mesa.data import DataRequest, Splits, load_data, synthetic
from fla_mesa.eval.measure import quality
from fla_mesa.eval.measure.speed import median_seconds, peak_memory, prefill, training_step
from fla_mesa.json_files import read_json, write_json
from fla_mesa.models import zoo  # noqa: F401 (registers every family of the zoo with transformers)
from fla_mesa.train.folder import METRICS_FILE
from fla_mesa.train.progress import no_bars
from fla_mesa.train.recipe import evenly

EXTRAPOLATION = 4  # times the training length
BATCHES = (1, 8)
DECODED = 32  # tokens a sequence


@command("compare: measuring")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="measure", allow_abbrev=False)
    parser.add_argument("run", type=Path)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--position_tokens", type=int, default=131_072)
    parser.add_argument("--speed", action="store_true")
    given = parser.parse_args(argv)
    metrics = read_json(given.run / METRICS_FILE)
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
    )
    return load_data(request)


def loss_by_position(model: PreTrainedModel, metrics: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Mean loss of the token at each position of blocks that are ``EXTRAPOLATION`` times as long as those of the training.

    Returns:
        ``loss_by_position``: nats at positions 1 to L - 1; ``blocks``: over how many blocks.
    """
    length = EXTRAPOLATION * metrics["seq_len"]
    validation = validation_blocks(metrics, length).validation
    blocks = evenly(validation, max(1, tokens // length))
    rows = [blocks[i] for i in range(len(blocks))]  # pyright: ignore[reportArgumentType] (of known length)
    ids, labels = (torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels"))
    batch = max(1, metrics["settings"]["per_device_eval_batch_size"] // EXTRAPOLATION)
    with _precision(metrics):
        losses = quality.loss_by_position(model, ids, labels, batch)
    return {"loss_by_position": losses.curve, "blocks": len(rows)}


def score(model: PreTrainedModel, metrics: dict[str, Any]) -> dict[str, float]:
    """The suite's own score on its test split."""
    data = synthetic.get(metrics["data"]["suite"]).generate("test")
    with _precision(metrics):
        return quality.score(model, data, metrics["settings"]["per_device_eval_batch_size"])


# Speed and memory


def speed(run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second in prefill and decoding, the peak memory of a training step, the size of the state of one sequence.

    Returns:
        ``prefill_tokens_per_second``, ``decode_tokens_per_second``: by batch size, medians;
        ``training_peak_bytes``: of the accelerator, or what the process grew by on a CPU; ``state_bytes``: by length.
    """
    length, generator = metrics["seq_len"], torch.Generator().manual_seed(0)

    def ids(batch: int, tokens: int) -> torch.Tensor:
        return torch.randint(0, model.config.vocab_size, (batch, tokens), generator=generator).to(_device())

    with _precision(metrics):
        with peak_memory() as peak:
            model = load(run, metrics)
            training_step(model, ids(metrics["settings"]["per_device_train_batch_size"], length))
        reads, writes = {}, {}
        for batch in BATCHES:
            prompt = ids(batch, length)
            reads[str(batch)] = batch * length / median_seconds(lambda prompt=prompt: prefill(model, prompt))
            continued = prefill(model, prompt)
            writes[str(batch)] = batch * DECODED / median_seconds(lambda continued=continued: continued.decode(DECODED))
        lengths = (length, EXTRAPOLATION * length)
        states = {str(n): prefill(model, ids(1, n)).state_bytes() for n in lengths}
    return {
        "training_peak_bytes": peak.grown,
        "prefill_tokens_per_second": reads,
        "decode_tokens_per_second": writes,
        "state_bytes": states,
    }
