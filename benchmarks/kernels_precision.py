"""Error, steps and cost of the solve by the precision of its products, in Triton's interpreter with operands rounded as on tensor cores.

    TRITON_INTERPRET=1 python benchmarks/kernels_precision.py [--dtype float32|bfloat16] [--size 64] [--mean 1] [--least_gate 1]

Prints the table of docs/kernels.md. "float16 rounds" is what solves 16-bit inputs, the others the float32 iteration in the precision named;
it solves float32 inputs in bf16x3, refined in tf32x3. Products of a tile, forward, are those of the iteration and, after the plus sign, of
new residuals. Cost is theirs for one position, in thousands of multiply-adds of 16 bits (one of tf32 counts twice) at chunks of 64 keys;
"ieee" does not run on tensor cores.
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
from fla_mesa.ops.triton.plan import SOLVE_CONFIGS, plan_iteration, plan_rounds, solve_configs  # noqa: E402
from fla_mesa.testing.cases import INPUTS, Case, draw, relative_error, truth, upstream  # noqa: E402

# Passes over tensor cores per product, and what one counts.
PASSES = {"bf16": (1, 1), "tf32": (1, 2), "bf16x3": (3, 1), "tf32x3": (3, 2)}
# PRECISION, and FINE where refined. FINE "bf16x3" is not what the kernels are tested with (docs/kernels.md says why).
CHOICES = [
    ("fp16", "halves"), ("ieee", None), ("tf32", None), ("tf32", "tf32x3"), ("tf32x3", None), ("bf16x3", None),
    ("bf16x3", "tf32x3"), ("bf16x3", "bf16x3"), ("bf16", "tf32x3"),
]  # fmt: skip


def cost(precision: str, exact_keys: bool, resident: bool, K: int, chunk: int = 64) -> float:
    """Multiply-adds of one matrix-vector product per row, in thousands of bfloat16 ones; NaN without tensor cores.

    Where keys are bfloat16, a float32 operand meets them in two parts, or in three where it is to lose nothing; resident keys of tf32x3
    are float32.
    """
    if precision == "ieee":
        return float("nan")
    if precision == "fp16":
        return (2 * chunk * K + K * K) / 1000
    if precision == "halves":
        return (5 * chunk * K + 2 * K * K) / 1000
    passes, unit = PASSES[precision]
    keys = passes * unit
    if exact_keys and (precision == "bf16x3" or (precision == "tf32x3" and not resident)):
        keys = 2 if precision == "bf16x3" else 3
    return (2 * chunk * K * keys + K * K * passes * unit) / 1000


class Products:
    """Counts the products of the solves that run while it is entered: [of the iteration, of new residuals]."""

    COUNTED = (
        (kernels_precise, "apply_resident", 0), (kernels_precise, "attend", 1),
        (kernels_solve, "apply_half", 0), (kernels_solve, "apply_halves", 1),
    )  # fmt: skip

    def __enter__(self) -> Products:
        self.counts = [0, 0]
        self.functions = [getattr(module, name) for module, name, _ in self.COUNTED]
        for (module, name, kind), function in zip(self.COUNTED, self.functions, strict=True):

            def counted(*arguments, kind=kind, function=function):
                self.counts[kind] += 1
                return function(*arguments)

            setattr(module, name, counted)
        return self

    def __exit__(self, *_) -> None:
        for (module, name, _), function in zip(self.COUNTED, self.functions, strict=True):
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
    for precision, fine in CHOICES:
        for tolerance in (1e-4, 1e-6):
            if precision == "fp16":
                plan = plan_rounds(case.K, tolerance)
            else:
                FINE = "ieee" if precision == "ieee" else fine or "tf32x3"
                plan = plan_iteration(case.K, PRECISION=precision, REFINE=fine is not None, FINE=FINE)
            rows = solve_configs(SOLVE_CONFIGS, {"k": x["k"]}, **plan._asdict())[0].kwargs["BR"]
            options = {
                "cu_seqlens": None,
                "cu_seqlens_cpu": None,
                "max_steps": 100,
                "tolerance": tolerance,
                "plan": plan,
            }
            with interpreter.rounded_dots():
                with Products() as products:
                    out = triton.chunk_forward(*x.values(), **options)
                gradients = triton.chunk_backward(*list(x.values())[1:], out.x, weights[0], *weights[1:], **options)
            worst = max(relative_error(d, want[f"d{n}"]) for n, d in zip(INPUTS, gradients, strict=True))
            steps = f"{out.iterations.float().mean():.1f} ({int(out.iterations.max())})"
            each = [count / (case.T / rows) for count in products.counts]
            total = each[0] * cost(precision, exact, True, case.K)
            if fine:
                total += each[1] * cost(fine, exact, False, case.K)
            print(
                f"| {'**float16 rounds**' if precision == 'fp16' else precision} | {fine or 'none'} | {tolerance:.0e} "
                f"| {relative_error(out.o, want['o']):.1e} | {worst:.1e} | {steps} | {each[0]:g} + {each[1] if fine else 0:g} "
                f"| {'–' if precision == 'ieee' else f'{total:.0f}k'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
