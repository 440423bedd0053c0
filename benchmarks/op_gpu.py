"""Speed of the op on a GPU, beside fla's ops, gated by correctness.

    python benchmarks/op_gpu.py [--tokens 32768] [--lengths 2048 ... 65536] [--heads 16] [--sizes 64 128] [--out FILE]

1. Gate: o, states and every gradient of this op (float32) against the definition in float64, at upstream scales 1 and 1e-12. Where
   it is red, nothing is timed and the exit status is 1.
2. Errors of this op and of fla's at their defaults, bfloat16 inputs, at upstream scales 1 and 1e-4.
3. Ceilings of this device in this run: copy (GB/s) and bfloat16 matrix product (TFLOP/s).
4. Forward + backward, and forward alone, bfloat16, of this op and of fla's chunk_mesa_net (with 30 steps, and with as many as this
   op takes on average), chunk_gated_delta_rule, chunk_gla and chunk_kda, on the same q, k, v.
5. The decoding step against fla's.
6. Bits: two runs must agree exactly.

Times are medians with the 20th and 80th percentile; "share" is the part of the matrix-product ceiling that the flops of the algorithm
reach at that time (for decoding, of the copy ceiling that the bytes of the states reach). Needs a CUDA GPU; says so where there is none.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fla_mesa.doctor.timing import fla_ops, leaves_of, measure, with_backward
from fla_mesa.doctor.truth import NAMES, Truth, draw

CHUNK = 64
BOUND = {1e-4: 1e-3, 1e-6: 1e-4}  # tolerance of the solver -> relative error allowed in every output and gradient


def gate(
    op: Callable[..., Any], device: str, *, T: int = 130, H: int = 2, sizes: tuple[int, ...] = (64, 128)
) -> dict[str, float]:
    """Relative error of each output and gradient over its bound: the worst over sizes, tolerances and scales. Green is <= 1."""
    worst: dict[str, float] = {}
    for size in sizes:
        truth = Truth.of(draw(1, T, H, size, size, torch.float32, device, states=1))
        for tolerance, bound in BOUND.items():
            for scale in (1.0, 1e-12):
                errors = truth.errors(op, scale, max_CG_iteration=100, cg_tolerance=tolerance)
                worst = {name: max(worst.get(name, 0.0), error / bound) for name, error in errors.items()}
    return worst


def is_green(worst: dict[str, float]) -> bool:
    """Whether everything is within its bound."""
    return all(error <= 1 for error in worst.values())


def mesa_flops(tokens: int, H: int, K: int, V: int, steps: float) -> float:
    """Forward: the states, one matrix-vector product a step, and the output; half of the scores of a chunk are masked but computed."""
    states = 2 * K * (K + V)
    product = 4 * CHUNK * K + 2 * K * K
    output = 2 * CHUNK * (K + V) + 2 * K * V
    return tokens * H * (states + steps * product + output)


def ceilings(device: str) -> tuple[float, float]:
    """Bytes a second of a copy, and flops a second of a bfloat16 matrix product, on this device now."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() / (measure(lambda: target.copy_(source)).median * 1e-3)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    return copy, 2 * 8192**3 / (measure(lambda: a @ a).median * 1e-3)


def rivals(x: dict[str, Any], mean_steps: int) -> dict[str, tuple[Callable[..., Any], list[torch.Tensor]]]:
    """Each op by name, with the leaves it takes: this op first, then fla's."""
    from fla.ops.kda import chunk_kda
    from fla.ops.mesa_net import chunk_mesa_net as fla_mesa_net

    from fla_mesa.ops import chunk_mesa_net

    theirs = fla_ops(x)
    by_channel = theirs["fla gla"][1][-1]
    fewer = functools.partial(fla_mesa_net, max_CG_iteration=mean_steps)
    kda = [*leaves_of(x, "q", "k", "v"), by_channel.detach().clone().requires_grad_(), *leaves_of(x, "beta")]
    return {
        "fla_mesa, triton": (functools.partial(chunk_mesa_net, backend="triton"), leaves_of(x, *NAMES[:6])),
        "fla_mesa, fla": (functools.partial(chunk_mesa_net, backend="fla"), leaves_of(x, *NAMES[:6])),
        f"fla_mesa, fla, {mean_steps} steps": (
            functools.partial(chunk_mesa_net, backend="fla", max_CG_iteration=mean_steps),
            leaves_of(x, *NAMES[:6]),
        ),
        **theirs,
        f"fla mesa_net, {mean_steps} steps": (fewer, leaves_of(x, *NAMES[:6])),
        "fla kda": (chunk_kda, kda),
    }


def error_rows(sizes: list[int], device: str, T: int = 512, H: int = 2) -> list[str]:
    """Table of the errors of the back ends and of fla's op at their defaults, bfloat16 inputs, against float64 on the same inputs."""
    from fla.ops.mesa_net import chunk_mesa_net as fla_mesa_net

    from fla_mesa.ops import chunk_mesa_net

    rows = ["| op | K = V | incoming gradient | error of o | worst gradient |", "| --- | --- | --- | --- | --- |"]
    for size in sizes:
        truth = Truth.of(draw(1, T, H, size, size, torch.bfloat16, device))
        for scale in (1.0, 1e-4):
            by = {b: functools.partial(chunk_mesa_net, backend=b) for b in ("triton", "fla")}
            for name, op in (("triton", by["triton"]), ("fla", by["fla"]), ("fla's op, 30 steps", fla_mesa_net)):
                errors = truth.errors(op, scale)
                gradient = max((n for n in errors if n.startswith("d")), key=errors.__getitem__)
                rows.append(
                    f"| {name} | {size} | {scale:g} | {errors['o']:.1e} | {errors[gradient]:.1e} ({gradient}) |"
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def chunk_rows(tokens: int, lengths: list[int], H: int, sizes: list[int], flops: float) -> list[str]:
    """Table of the ops over sequences."""
    from fla_mesa.ops import chunk_mesa_net

    rows = [
        "| op | T | K = V | steps, mean | forward ms (p20-p80) | forward + backward ms | tokens/s | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for K in sizes:
        for T in lengths:
            x = draw(max(1, tokens // T), T, H, K, K, torch.bfloat16, "cuda")
            stats = chunk_mesa_net(*(x[n] for n in NAMES[:6]), return_stats=True, backend="triton")[3]
            steps = float(stats.iterations.float().mean())
            do = torch.randn_like(x["v"])
            for name, (f, leaves) in rivals(x, max(1, round(steps))).items():
                forward = measure(functools.partial(f, *[t.detach() for t in leaves]))
                both = measure(with_backward(f, leaves, do))
                count = x["q"].shape[0] * T
                share, shown = "", ""
                if name == "fla_mesa, triton":
                    share = f"{mesa_flops(count, H, K, K, steps) / (forward.median * 1e-3) / flops:.1%} (forward)"
                    shown = f"{steps:.1f} (max {int(stats.iterations.max())})"
                rows.append(
                    f"| {name} | {T} | {K} | {shown} | {forward} | {both} | {count / both.median * 1e3:,.0f} | {share} |"
                )
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def step_rows(batches: list[int], H: int, sizes: list[int], copy: float) -> list[str]:
    """Table of the decoding step."""
    from fla.ops.mesa_net import mesa_net_decoding_one_step as fla_step

    from fla_mesa.ops import mesa_net_decoding_one_step

    rows = [
        "| decoding step | batch | K = V | ms (p20-p80) | share of copy |",
        "| --- | --- | --- | --- | --- |",
    ]
    for K in sizes:
        for B in batches:
            x = draw(B, 1, H, K, K, torch.bfloat16, "cuda", states=B)
            args = [x[n][:, 0] for n in ("q", "k", "v", "g")] + [
                x["lamb"],
                x["beta"][:, 0],
                x["h_kk_init"],
                x["h_kv_init"],
            ]
            moved = 4 * B * H * K * K * 4  # both states read and written, float32
            ours = functools.partial(mesa_net_decoding_one_step, backend="triton")
            for name, f in (("fla_mesa", ours), ("fla", fla_step)):
                time = measure(functools.partial(f, *args))
                rows.append(f"| {name} | {B} | {K} | {time} | {moved / (time.median * 1e-3) / copy:.1%} |")
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def same_bits(H: int, K: int) -> bool:
    """Whether two runs, forward and backward, agree exactly."""
    from fla_mesa.ops import chunk_mesa_net

    x = draw(2, 1000, H, K, K, torch.bfloat16, "cuda")
    leaves = [x[n].detach().requires_grad_() for n in NAMES[:6]]

    def once() -> tuple[torch.Tensor, ...]:
        o = chunk_mesa_net(*leaves, backend="triton")[0]
        return (o, *torch.autograd.grad(o, leaves, torch.ones_like(o)))

    return all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768, help="B x T")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="K = V")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64], help="of the decoding step")
    parser.add_argument("--out", type=Path, help="Markdown file; benchmarks/results/op_<device>_<date>.md if left out")
    args = parser.parse_args(arguments)
    for name in ("tokens", "heads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    for name in ("lengths", "sizes", "batches"):
        if min(getattr(args, name)) < 1:
            parser.error(f"--{name} must be at least 1; got {getattr(args, name)}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    if not torch.cuda.is_available():
        print("op_gpu.py needs a CUDA GPU, and PyTorch sees none here. On a machine without one, run", file=sys.stderr)
        print("benchmarks/kernels_static.py for registers, spills and shared memory instead.", file=sys.stderr)
        return 2
    from fla_mesa.ops import chunk_mesa_net

    torch.backends.cuda.matmul.allow_tf32 = False
    worst = gate(functools.partial(chunk_mesa_net, backend="triton"), "cuda")
    if not is_green(worst):
        print("correctness gate is red, nothing was timed; error over bound:", file=sys.stderr)
        print(*(f"  {n}: {e:.2g}" for n, e in worst.items()), sep="\n", file=sys.stderr)
        return 1
    copy, flops = ceilings("cuda")
    device = torch.cuda.get_device_name()
    date = datetime.date.today().isoformat()
    versions = ", ".join(f"{n} {version(n)}" for n in ("torch", "triton", "flash-linear-attention"))
    lines = [
        f"# The op on {device}, {date}",
        "",
        f"{versions}. Ceilings in this run: copy {copy / 1e9:,.0f} GB/s, bfloat16 matrix product {flops / 1e12:,.0f} TFLOP/s.",
        f"Correctness gate: green (worst error {max(worst.values()):.0%} of its bound).",
        f"Two runs agree in every bit: {'yes' if same_bits(args.heads, max(args.sizes)) else 'NO'}.",
        f"B x T = {args.tokens}, {args.heads} heads, bfloat16.",
        "",
        *error_rows(args.sizes, "cuda"),
        "",
        *chunk_rows(args.tokens, args.lengths, args.heads, args.sizes, flops),
        "",
        *step_rows(args.batches, args.heads, args.sizes, copy),
    ]
    out = args.out or Path(__file__).parent / "results" / f"op_{device.replace(' ', '-')}_{date}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
