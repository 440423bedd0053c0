"""The Mesa op on a CPU: is it right, and then how fast?

    python benchmarks/op_cpu.py [--write]

Everything is measured in one run, in turns, so that other load on the machine hits all alike; what counts is the ratios:

* forward + backward against autograd through ``fla.ops.mesa_net.naive.naive_mesa_net_CG`` with 30 steps;
* against the rate of this machine's batched matrix product, on the floating-point operations that the algorithm needs;
* time per token at T = 16,384 against T = 1,024; peak memory against T.

Nothing is timed unless outputs and gradients agree with the float64 reference to 1e-3. ``--write`` puts the table into
``benchmarks/results``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import circumstances, in_turns, ratios, seconds, spread, write

from fla_mesa.ops import chunk_mesa_net, naive_mesa_net_exact
from fla_mesa.ops.pytorch.segments import CHUNK_SIZE

HEADS, K, V, STEPS = 2, 64, 64, 30
NAMES = ("q", "k", "v", "g", "beta", "lamb")


def draw(batch: int, length: int) -> dict[str, torch.Tensor]:
    """Inputs ``[B, T, H, ...]`` with unit keys and forget gates from 0.9 to 1."""
    torch.manual_seed(0)
    x = {
        "q": F.normalize(torch.randn(batch, length, HEADS, K), dim=-1),
        "k": F.normalize(torch.randn(batch, length, HEADS, K), dim=-1),
        "v": torch.randn(batch, length, HEADS, V),
        "g": torch.empty(batch, length, HEADS).uniform_(0.9, 1).log(),
        "beta": torch.rand(batch, length, HEADS),
        "lamb": torch.ones(HEADS, K),
    }
    return {name: value.requires_grad_() for name, value in x.items()}


def gradients(forward: Callable[..., torch.Tensor], x: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Output and the gradients of its mean square: a training step's share of the op."""
    o = forward(**x)
    return o.detach(), *torch.autograd.grad(o.square().mean(), list(x.values()))


def ours(**x: torch.Tensor) -> torch.Tensor:
    """The op with its default tolerance."""
    return chunk_mesa_net(**x, backend="pytorch")[0]


def naive(**x: torch.Tensor) -> torch.Tensor:
    """fla's own PyTorch reference: 30 steps, differentiated by autograd."""
    from fla.ops.mesa_net.naive import naive_mesa_net_CG

    return naive_mesa_net_CG(
        x["q"], x["k"], x["v"], x["g"], x["lamb"], x["beta"], chunk_size=64, max_CG_iteration=STEPS
    )[0]


def exact(**x: torch.Tensor) -> torch.Tensor:
    """The definition in float64."""
    return naive_mesa_net_exact(x["q"], x["k"], x["v"], x["g"], x["lamb"], x["beta"])[0]


def gate() -> float:
    """The worst relative error of output and gradients; the benchmark ends here if it is above 1e-3."""
    x = draw(1, 300)
    got, want = gradients(ours, x), gradients(exact, x)
    worst = max(float((a.double() - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))
    if worst > 1e-3:
        sys.exit(f"not right, so not timed: relative error {worst:.1e} > 1e-3")
    return worst


def needed_flops(batch: int, length: int) -> float:
    """Multiplications and additions that one forward and backward pass needs, with the steps that each tile really takes.

    A tile of C positions goes on until its slowest row has converged, so a tile's steps are the most of its rows'. Products of a C x C
    triangle are counted whole, as the algorithm multiplies full matrices.
    """
    C = CHUNK_SIZE
    x = draw(batch, length)
    with torch.no_grad():
        *_, stats = chunk_mesa_net(**x, return_stats=True, backend="pytorch")
        forward_steps = tile_steps(stats.iterations)
    backward_steps = (
        forward_steps  # the second system has the same matrix; its right-hand side takes as many (measured: within 5 %)
    )
    step = 4 * C * K + 2 * K * K
    states = 2 * K * (K + V)  # H and G of the next tile
    output = 2 * C * K + 2 * C * V + 2 * K * V
    forward = states + forward_steps * step + output
    inside = 2 * C * V + 2 * C * K + 2 * K * V  # dx
    inside += backward_steps * step + 4 * 2 * C * K + 2 * C * V  # x.k, y.k, dv, two halves of dk
    through = 4 * 2 * K * (K + V)  # da, the adjoint's update, and dk, dv through the state
    return batch * length * HEADS * (forward + states + inside + through)


def tile_steps(iterations: torch.Tensor) -> float:
    """Mean over tiles of the steps of its slowest position; iterations ``[B, T, H]``."""
    tiles = F.pad(iterations, (0, 0, 0, -iterations.shape[1] % CHUNK_SIZE)).unflatten(1, (-1, CHUNK_SIZE))
    return tiles.amax(2).float().mean().item()


def product_flops_per_second(repeats: int = 20) -> float:
    """This machine's batched matrix product at the size of the op's own: 64 products of 64 x 64 x 64."""
    a, b = torch.randn(2, 64, 64, 64)
    out = torch.empty_like(a)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.bmm(a, b, out=out)
    return repeats * 2 * 64**4 / (time.perf_counter() - start)


def peak_bytes(length: int) -> int:
    """Most resident memory during forward + backward at B = 1, above that of a process that has done it at T = 64 (Linux)."""
    code = (
        "import pathlib, re, sys; sys.path.insert(0, sys.argv[2]); import op_cpu\n"
        "kib = lambda key: int(re.search(key + r':\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text()).group(1))\n"
        "op_cpu.gradients(op_cpu.ours, op_cpu.draw(1, 64))\n"
        "before = kib('VmRSS'); pathlib.Path('/proc/self/clear_refs').write_text('5')\n"
        "op_cpu.gradients(op_cpu.ours, op_cpu.draw(1, int(sys.argv[1])))\n"
        "print(kib('VmHWM') - before)"
    )
    command = [sys.executable, "-c", code, str(length), str(Path(__file__).parent)]
    return 1024 * int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


KINDS = {
    "matrix products": ("aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
    "sums over channels or positions": ("aten::sum", "aten::amax", "aten::any", "aten::cumsum"),
    "copies": ("aten::copy_", "aten::cat", "aten::index", "aten::_index_put_impl_", "aten::fill_"),
    "Python and dispatch": ("_ChunkMesaNet", "_ChunkMesaNetBackward"),
}


def where_time_goes(batch: int, length: int, repeats: int = 5) -> str:
    """Shares of the wall time by kind of operation, largest first; what is not named is elementwise."""
    from torch.profiler import ProfilerActivity, profile

    x = draw(batch, length)
    gradients(ours, x)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            gradients(ours, x)
    kinds = {name: kind for kind, names in KINDS.items() for name in names}
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kinds.get(event.key, "elementwise")
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(spent.values())
    return ", ".join(f"{kind} {value / total:.0%}" for kind, value in sorted(spent.items(), key=lambda pair: -pair[1]))


def measure(rounds: int) -> list[tuple[str, str, str]]:
    """Rows of the table: what, measured, aim."""
    rows = [("worst relative error against float64 (T 300)", f"{gate():.1e}", "<= 1e-3")]
    for length in (256, 2048):
        x = draw(8, length)
        flops = needed_flops(8, length)
        calls = {
            "ours": lambda x=x: seconds(lambda: gradients(ours, x)),
            "product": product_flops_per_second,
            "naive": lambda x=x: seconds(lambda: gradients(naive, x)),
        }
        got = in_turns(calls, rounds)
        speedups = ratios(got["naive"], got["ours"])
        shares = [flops / a / p for a, p in zip(got["ours"], got["product"], strict=True)]
        rows += [
            (f"B 8, T {length}: times faster than naive CG, {STEPS} steps", spread(speedups), ">= 8"),
            (f"B 8, T {length}: share of the batched product's rate", spread(shares), ">= 0.5"),
            (f"B 8, T {length}: milliseconds", f"{1e3 * statistics.median(got['ours']):.0f}", ""),
            (f"B 8, T {length}: where the time goes (under a profiler)", where_time_goes(8, length), ""),
        ]
    inputs = {length: draw(1, length) for length in (1024, 16384)}
    calls = {
        "short": lambda: seconds(lambda: [gradients(ours, inputs[1024]) for _ in range(16)]),
        "long": lambda: seconds(lambda: gradients(ours, inputs[16384])),
    }
    got = in_turns(calls, rounds)
    per_token_ratios = ratios(got["long"], got["short"])
    rows.append(("B 1: time per token at T 16384 over that at T 1024", spread(per_token_ratios), "<= 1.1"))
    memory = {length: peak_bytes(length) for length in (8192, 16384, 32768)}
    per_token = ", ".join(f"T {length}: {size / length / 1024:.1f} KiB" for length, size in memory.items())
    rows.append(("B 1: peak memory per token", per_token, "constant"))
    return rows


def table(rows: list[tuple[str, str, str]]) -> str:
    """Markdown."""
    lines = ["| measured | value: median (range) | aim |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {a} | {b} | {c} |" for a, b, c in rows])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/op_cpu_<date>.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = f"# The Mesa op on a CPU\n\n{circumstances()}\nH 2, K = V = 64, forward + backward, {options.rounds} rounds in turns.\n\n"
    text += table(measure(options.rounds)) + "\n"
    print(text)
    if options.write:
        write("op", text)


if __name__ == "__main__":
    main()
