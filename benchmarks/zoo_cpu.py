"""Every architecture of the zoo on a CPU: a training step against Llama's of the same size, and a token in decoding.

    python benchmarks/zoo_cpu.py [--write]

Size tiny (hidden 128, 4 layers, heads of 64, bytes), batch 8, 256 tokens, forward + backward + AdamW in float32, as released and in
transformers' Llama with the same depth, width, MLP and tied embeddings. All in one process, in turns: what counts is the ratios.
Nothing is timed unless a model's decoding token by token gives the logits of one full forward to 1e-4. ``--write`` puts the
table into ``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from fla.models import LinearAttentionConfig
from timing import circumstances, in_turns, ratios, seconds, spread, write
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from fla_mesa.eval.measure.speed import prefill
from fla_mesa.models import zoo

BATCH, LENGTH, VOCABULARY, DECODED = 8, 256, 257, 32
BASE, RIVAL = "Llama (transformers)", "gated_deltanet"


def configurations(names: list[str]) -> dict[str, PreTrainedConfig]:
    """Those of the zoo, fla's plain linear attention, which is not in it, and Llama's."""
    shape = zoo.SIZES["tiny"]
    frame = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    own = {
        BASE: LlamaConfig(num_attention_heads=shape.num_heads, **frame),
        "linear_attn": LinearAttentionConfig(num_heads=shape.num_heads, **frame),
    }
    tokens = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * LENGTH}
    tokens |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return own | {name: zoo.build_config(name, "tiny", **tokens) for name in names}


def make(config: PreTrainedConfig) -> PreTrainedModel:
    """The same weights in every run."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def decoding_error(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """The largest difference of logits between decoding `ids` `[1, T]` token by token and one forward pass."""
    model.eval()
    whole = model(ids, use_cache=False).logits
    cache = prefill(model, ids[:, :1]).cache
    steps = [model(ids[:, t : t + 1], use_cache=True, **cache).logits for t in range(1, ids.shape[1])]
    model.train()
    return float((torch.cat(steps, 1) - whole[:, 1:]).abs().max())


def trainer_step(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], float]:
    """Seconds of one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step() -> None:
        model(ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return lambda: seconds(step)


def decoder(model: PreTrainedModel, ids: torch.Tensor) -> Callable[[], float]:
    """Seconds a token, after the prompt `ids`."""

    @torch.no_grad()
    def run() -> float:
        model.eval()
        continued = prefill(model, ids)
        spent = seconds(lambda: continued.decode(DECODED))
        model.train()
        return spent / DECODED

    return run


def share_of_op(step: Callable[[], float]) -> float:
    """Of a step of MesaNet, the time inside its op, forward and backward."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    total = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    own = sum(event.self_cpu_time_total for event in profiler.key_averages())
    return (total["_ChunkMesaNet"] + total["_ChunkMesaNetBackward"]) / own


def remarks(steps: dict[str, list[float]], tokens: dict[str, list[float]], op: float | None) -> list[str]:
    """What was aimed at and what was reached."""

    def median(of: dict[str, list[float]], name: str, base: str) -> float:
        return statistics.median(ratios(of[name], of[base]))

    slow = {name: median(steps, name, BASE) for name in steps}
    above = ", ".join(f"{name} ({ratio:.2f})" for name, ratio in slow.items() if ratio > 1.5)
    lines = [f"Aim: no step longer than 1.5 of {BASE}'s. Above it: {above or 'none'}."]
    if op is not None and RIVAL in steps:
        lines += [
            f"Aim: mesanet's step at most 1.1 of {RIVAL}'s ({median(steps, 'mesanet', RIVAL):.2f}), its token at most 1.15 "
            f"({median(tokens, 'mesanet', RIVAL):.2f}). The op takes {op:.0%} of mesanet's step; where its time goes is in the results of "
            "`benchmarks/op_cpu.py`, what was tried in `docs/log.md`."
        ]
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(zoo.RELEASED), help="comma-separated names of the zoo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/zoo_cpu_<date>.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = {name: make(config) for name, config in configurations(options.models.split(",")).items()}
    ids = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    errors = {name: decoding_error(model, ids[:1, :80]) for name, model in models.items()}
    if wrong := {name: error for name, error in errors.items() if error > 1e-4}:
        sys.exit(f"not right, so not timed: decoding differs from one forward pass by more than 1e-4: {wrong}")

    trainers = {name: trainer_step(model, ids) for name, model in models.items()}
    steps = in_turns(trainers, options.rounds)
    tokens = in_turns({name: decoder(model, ids[:1]) for name, model in models.items()}, options.rounds)
    lines = [
        "# The zoo on a CPU",
        "",
        circumstances(),
        f"Size tiny, batch {BATCH}, {LENGTH} tokens, {options.rounds} rounds in turns; median (range) over rounds. Decoding: batch 1 after "
        f"{LENGTH} tokens.",
        "",
        f"| model | step, ms | step over {BASE}'s | step over {RIVAL}'s | token, ms | token over {RIVAL}'s | decode error |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rival = RIVAL if RIVAL in models else BASE
    for name in models:
        cells = [
            f"{1e3 * statistics.median(steps[name]):.0f}",
            spread(ratios(steps[name], steps[BASE])),
            spread(ratios(steps[name], steps[rival])),
            f"{1e3 * statistics.median(tokens[name]):.1f}",
            spread(ratios(tokens[name], tokens[rival])),
            f"{errors[name]:.0e}",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    op = share_of_op(trainers["mesanet"]) if "mesanet" in trainers else None
    text = "\n".join([*lines, "", *remarks(steps, tokens, op)]) + "\n"
    print(text)
    if options.write:
        write("zoo", text)


if __name__ == "__main__":
    main()
