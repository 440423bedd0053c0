"""Error, steps and cost of the solve by the precision of its products, in Triton's interpreter with operands rounded as on tensor cores.

    TRITON_INTERPRET=1 python benchmarks/kernels_precision.py [--dtype float32|bfloat16] [--size 64] [--mean 1] [--least_gate 1]

"float16" is the solve of 16-bit inputs (bfloat16 alone), the others the float32 iteration in the precision named, its residual computed
anew in tf32x3. Products of a tile, forward, are those of the iteration and, after the plus sign, of new residuals. Cost is theirs for one
position, in thousands of multiply-adds of 16 bits (one of tf32 counts twice) at chunks of 64 keys; "ieee" does not run on tensor cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fla_mesa import interpreter

interpreter.install()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from fla_mesa.ops import triton  # noqa: E402
from fla_mesa.ops.triton import kernels_precise, kernels_solve  # noqa: E402
from fla_mesa.ops.triton.plan import make_plan  # noqa: E402
from fla_mesa.testing.cases import INPUTS, Case, draw, relative_error, truth, upstream  # noqa: E402

# Passes over tensor cores per product, and what one counts.
PASSES = {"tf32": (1, 2), "bf16x3": (3, 1), "tf32x3": (3, 2)}
CHOICES = ["float16", "ieee", "tf32", "bf16x3", "tf32x3"]


def cost(precision: str, exact_keys: bool, K: int, chunk: int = 64) -> float:
    """Multiply-adds of one matrix-vector product per row, in thousands of bfloat16 ones; NaN without tensor cores.

    Where keys are bfloat16, a float32 operand meets them in two parts, or in three where it is to lose nothing.
    """
    if precision == "ieee":
        return float("nan")
    if precision == "float16":
        return (2 * chunk * K + K * K) / 1000
    if precision == "halves":
        return (3 * chunk * K + 2 * K * K) / 1000
    passes, unit = PASSES[precision]
    keys = passes * unit
    if exact_keys and precision in ("bf16x3", "tf32x3"):
        keys = 2 if precision == "bf16x3" else 3
    return (2 * chunk * K * keys + K * K * passes * unit) / 1000


class Products:
    """Counts the products of the solves that run while it is entered: [of the iteration, of new residuals]."""

    def __init__(self, fine: str) -> None:
        self.counts, self.fine = [0, 0], fine

    def __enter__(self) -> Products:
        places = ((kernels_precise, "attend"), (kernels_solve, "apply_half"), (kernels_solve, "apply_halves"))
        self.functions = [(module, name, getattr(module, name)) for module, name in places]
        for module, name, function in self.functions:

            def counted(*arguments, name=name, function=function):
                self.counts[name == "apply_halves" or arguments[-1] == self.fine] += 1
                return function(*arguments)

            setattr(module, name, counted)
        return self

    def __exit__(self, *_) -> None:
        for module, name, function in self.functions:
            setattr(module, name, function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--size", type=int, default=64, help="K = V")
    parser.add_argument(
        "--mean", type=float, default=1.0, help="of the keys, over their spread: the larger, the worse conditioned"
    )
    parser.add_argument("--least_gate", type=float, default=1.0, help="forget gates are drawn between this and 1")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    np.seterr(all="ignore")
    case = Case(
        T=64,
        H=1,
        K=arguments.size,
        V=arguments.size,
        mean=arguments.mean,
        gates=(arguments.least_gate, 1.0),
        spread=1.0,
    )
    x = {name: value.detach() for name, value in draw(case, dtype).items()}
    want, weights = truth(case, dtype), [w.float() for w in upstream(case)]
    weights[0] = weights[0].to(dtype)
    print("| products | new residual | tolerance | o | worst gradient | steps, mean (max) | products a tile | cost |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    exact = dtype == torch.bfloat16
    for precision in CHOICES if exact else CHOICES[1:]:
        for tolerance in (1e-3, 1e-4, 1e-6) if precision != "float16" else (1e-3,):
            plan = make_plan(case.K, dtype if precision == "float16" else torch.float32, tolerance)
            if precision != "float16":
                plan = plan._replace(PRECISION=precision)
            options = {
                "cu_seqlens": None,
                "cu_seqlens_cpu": None,
                "max_steps": 100,
                "tolerance": tolerance,
                "plan": plan,
            }
            with interpreter.rounded_dots():
                with Products(plan.FINE) as products:
                    out = triton.chunk_forward(*x.values(), **options)
                gradients = triton.chunk_backward(*list(x.values())[1:], out.x, weights[0], *weights[1:], **options)
            worst = max(relative_error(d, want[f"d{n}"]) for n, d in zip(INPUTS, gradients, strict=True))
            steps = f"{out.iterations.float().mean():.1f} ({int(out.iterations.max())})"
            each = [count / (case.T / plan.BR) for count in products.counts]
            fine = "halves" if plan.HALF else plan.FINE
            total = each[0] * cost(precision, exact, case.K) + each[1] * cost(fine, exact, case.K)
            print(
                f"| {precision} | {fine} | {tolerance:.0e} | {relative_error(out.o, want['o']):.1e} | {worst:.1e} | {steps} "
                f"| {each[0]:g} + {each[1]:g} | {'–' if precision == 'ieee' else f'{total:.0f}k'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
