"""Errors of MesaNet's gradients in fla's own kernels, and in this package's, against float64, by the size of the incoming gradient.

    python benchmarks/fla_gradients.py [--out FILE]

The loss of a language model is a mean over tokens, so that the gradient that comes in at a position shrinks as the batch grows. fla adds
1e-5 to both denominators of its conjugate gradients, which is nothing beside residuals of size 1 and everything beside small ones.

fla's Triton kernels run in Triton's interpreter on the CPU, products rounded to what tensor cores read; so do this
package's, "fla" (fla's kernels behind powers of two) and "triton". "pytorch" is what runs without a GPU. By default one head of 32, 128
positions, 30 steps at most, gates from 0.9 to 1, unit keys and queries. Some minutes on one core.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before fla is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SCALES = (1.0, 1e-2, 1e-4, 1e-6, 1e-8)
STEPS = 30


def main() -> int:
    """Print the table, and write it where `--out` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="sizes of the incoming gradient")
    parser.add_argument("--positions", type=int, default=128)
    parser.add_argument("--width", type=int, default=32, help="key and value size of the head")
    arguments = parser.parse_args()

    import numpy as np
    import torch
    from fla.ops.mesa_net import chunk_mesa_net as released

    from fla_mesa import interpreter
    from fla_mesa.markdown import table
    from fla_mesa.ops import chunk_mesa_net, naive_mesa_net_exact
    from fla_mesa.provenance import commit, device_name, versions
    from fla_mesa.testing.cases import Case, draw, relative_error, upstream

    interpreter.mend_loops()
    case = Case(T=arguments.positions, H=1, K=arguments.width, V=arguments.width, initial=False)
    names = ("q", "k", "v", "g", "beta", "lamb")
    do = upstream(case)[0]

    def gradients(op, x, scale=1.0):
        """By name, divided by the size of the incoming gradient again."""
        o = op(*(x[name] for name in names))
        found = torch.autograd.grad(o, [x[name] for name in names], (scale * do).to(o.dtype))
        return {f"d{name}": gradient.double() / scale for name, gradient in zip(names, found, strict=True)}

    def exact(q, k, v, g, beta, lamb):
        return naive_mesa_net_exact(q, k, v, g, lamb, beta)[0]

    ops = {"fla 0.6.0, released": lambda *x: released(*x, max_CG_iteration=STEPS)[0]}
    for backend in ("fla", "triton", "pytorch"):
        ops[f'fla_mesa, "{backend}"'] = lambda *x, backend=backend: chunk_mesa_net(
            *x, max_CG_iteration=STEPS, backend=backend
        )[0]
    parts = []
    for dtype in (torch.float32, torch.bfloat16):
        drawn = {name: value for name, value in draw(case).items() if value is not None}
        # As a layer hands them over under mixed precision: gates and ridge in float32.
        x = {name: value.detach().to(dtype if name in "qkv" else torch.float32) for name, value in drawn.items()}
        want = gradients(exact, {name: value.double().requires_grad_() for name, value in x.items()})
        rows = []
        for op, compute in ops.items():
            if dtype == torch.float32 and op == 'fla_mesa, "fla"':
                continue  # it takes 16 bits
            for scale in arguments.scales:
                # A step of the iteration divides in every row, by 0 in those that are solved, and takes the quotient in the others alone;
                # a GPU does so without a word, NumPy warns.
                with interpreter.rounded_dots(), np.errstate(divide="ignore", invalid="ignore"):
                    found = gradients(
                        compute, {name: value.clone().requires_grad_() for name, value in x.items()}, scale
                    )
                off = [f"{relative_error(found[name], value):.1e}" for name, value in want.items()]
                rows.append([op, f"{scale:g}", *off])
                print(rows[-1], file=sys.stderr, flush=True)
        parts.append(
            f"q, k and v in {str(dtype).removeprefix('torch.')}:\n\n{table(['op', 'incoming', *want], rows, left=1)}"
        )
    facts = ", ".join(f"{name} {version}" for name, version in versions().items())
    head = (
        "Relative error of each gradient against float64, by the size of the incoming gradient: Triton's interpreter,"
    )
    head += f" one head of {case.K}, {case.T} positions, at most {STEPS} steps, `python benchmarks/fla_gradients.py`."
    text = "\n\n".join([head, *parts, f"Commit {commit()}, {device_name(torch.device('cpu'))}, {facts}."]) + "\n"
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
