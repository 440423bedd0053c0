"""Error, steps and cost of the solve by the precision of its products, in Triton's interpreter with operands rounded as on tensor cores.

    TRITON_INTERPRET=1 python benchmarks/kernels_precision.py [--dtype float32|bfloat16]

Prints the table of fla_mesa/ops/NOTES.md. Cost is that of one step, and of one fine residual, in bfloat16 matrix products (a tf32
product counts twice) per chunk row of 64 keys with K = 128; "ieee" products do not run on tensor cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interpreter import stub_driver

stub_driver.install()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from fla_mesa.ops import triton  # noqa: E402
from fla_mesa.ops.triton.plan import make_plan  # noqa: E402
from tests.ops.cases import INPUTS, Case, draw, relative_error, truth, upstream  # noqa: E402

# Passes over tensor cores per product, and what one counts.
PASSES = {"tf32": (1, 2), "bf16x3": (3, 1), "tf32x3": (3, 2)}
CHOICES = [
    ("ieee", False), ("tf32", False), ("tf32", True), ("bf16x3", False), ("bf16x3", True), ("tf32x3", False),
]  # fmt: skip


def cost(precision: str, exact_keys: bool, K: int = 128, chunk: int = 64) -> str:
    """Multiply-adds of one matrix-vector product per row, in thousands of bfloat16 ones."""
    if precision == "ieee":
        return "no tensor cores"
    passes, unit = PASSES[precision]
    key_passes = 2 if precision == "bf16x3" and exact_keys else passes
    return f"{(2 * chunk * K * key_passes + K * K * passes) * unit / 1000:.0f}k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    dtype = getattr(torch, parser.parse_args().dtype)
    np.seterr(all="ignore")
    case = Case(T=64, H=1, K=64, V=64, mean=1.0, gates=(1.0, 1.0), spread=1.0)
    x = {name: value.detach() for name, value in draw(case, dtype).items()}
    want, weights = truth(case, dtype), [w.float() for w in upstream(case)]
    print("| products | refined | tolerance | o | worst gradient | steps, mean (max) | cost of a step |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for precision, refine in CHOICES:
        plan = make_plan(case.K, PRECISION=precision, REFINE=refine, FINE="ieee" if precision == "ieee" else "tf32x3")
        for tolerance in (1e-4, 1e-6):
            options = {
                "cu_seqlens": None,
                "cu_seqlens_cpu": None,
                "max_steps": 100,
                "tolerance": tolerance,
                "plan": plan,
            }
            with stub_driver.rounded_dots():
                out = triton.chunk_forward(*x.values(), **options)
                gradients = triton.chunk_backward(*list(x.values())[1:], out.x, weights[0], *weights[1:], **options)
            worst = max(relative_error(d, want[f"d{n}"]) for n, d in zip(INPUTS, gradients, strict=True))
            steps = f"{out.iterations.float().mean():.1f} ({int(out.iterations.max())})"
            print(
                f"| {precision} | {'yes' if refine else 'no'} | {tolerance:.0e} | {relative_error(out.o, want['o']):.1e} "
                f"| {worst:.1e} | {steps} | {cost(precision, dtype == torch.bfloat16)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
