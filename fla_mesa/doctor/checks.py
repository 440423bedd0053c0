"""The checks of a back end. Each is a generator of findings, including one for what cannot be checked here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from fla_mesa.doctor import configurations, timing
from fla_mesa.doctor.truth import NAMES, POSITIONS, Truth, draw
from fla_mesa.ops import chunk_mesa_net, mesa_net_decoding_one_step
from fla_mesa.ops.backends import choose_backend

# Relative error allowed in every output and gradient: a unit of rounding for inputs of 16 bits, ten tolerances for float32.
BOUNDS = {"bfloat16": 8e-3, "float16": 8e-3, "float32": 1e-3}
# Scales of the incoming gradient; float16 holds no smaller one.
SCALES = {"bfloat16": (1.0, 1e-8), "float16": (1.0, 1e-3), "float32": (1.0, 1e-8)}
LARGEST = 1e30  # error that is written for one that is infinite or NaN, which JSON has not
# More elements than 32 bits count, in a batch of rows of so many tokens and heads; bytes of memory for each: inputs, output, solution,
# states before chunks, and what lies between.
ELEMENTS, ROW, BYTES = 2**31, (4096, 16), 30
OK, WRONG, FAILED, REFUSED, UNKNOWN = "ok", "wrong", "failed", "not taken", "not checked"


@dataclass(frozen=True)
class Subject:
    """The back end and the sizes to check.

    Attributes:
        backend: Name of the back end.
        device: "cuda" or "cpu".
        heads, sizes, dtypes: Of the user's model: H, each K = V, each type by name.
        tokens, length: B * T and T where time is taken.
        repeats: Runs of each configuration, which must agree in every bit.
        quick: Whether to look at one size, one type and few shapes.
    """

    backend: str
    device: str = "cuda"
    heads: int = 16
    sizes: tuple[int, ...] = (64, 128)
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    tokens: int = 32768
    length: int = 2048
    repeats: int = 3
    quick: bool = False


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        check: Its name.
        subject: What it looked at, such as "bfloat16, K = 64".
        status: One of those above.
        detail: In words.
        numbers: What was measured, by name.
    """

    check: str
    subject: str
    status: str
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict)

    asdict = asdict


def op_of(subject: Subject, **options: Any) -> Callable[..., Any]:
    """The op with this back end."""
    return functools.partial(chunk_mesa_net, backend=subject.backend, **options)


def why_not(subject: Subject, x: dict[str, Any]) -> str | None:
    """Why the back end does not support such inputs; None if it does."""
    try:
        choose_backend(subject.backend, "chunk", x)
    except ValueError as error:
        return str(error).split(". Use ")[0]
    return None


def judged(check: str, subject: str, errors: dict[str, float], bound: float) -> Finding:
    """A finding that says whether every error is within the bound, and the largest error."""
    worst = max(errors, key=errors.__getitem__)
    detail = f"{worst} off by {errors[worst]:.1e}, {bound:g} allowed"
    numbers = {"error": min(errors[worst], LARGEST)}
    return Finding(check, subject, OK if errors[worst] <= bound else WRONG, detail, numbers)


def truths(subject: Subject, dtype: str, K: int) -> Iterator[tuple[str, Truth]]:
    """Inputs of every shape with their reference results; few heads, because the reference is slow."""
    H = min(subject.heads, 1 if subject.quick else 2)
    make = functools.partial(draw, H=H, K=K, V=K, dtype=getattr(torch, dtype), device=subject.device)
    if subject.quick:
        yield "packed, with states", Truth.of(make(1, 70, states=3), (1, 63, 6))
        return
    yield "130 positions", Truth.of(make(2, 130))
    yield "packed, with states", Truth.of(make(1, 134, states=4), (1, 64, 65, 4))
    for T in (1, 63, 65):
        yield f"{T} positions, with states", Truth.of(make(1, T, states=1))


def accuracy(subject: Subject) -> Iterator[Finding]:
    """Compares every output and gradient with float64, for every size, dtype, shape and scale of the incoming gradient."""
    for dtype in subject.dtypes:
        for K in subject.sizes:
            about = f"{dtype}, K = {K}"
            reason = why_not(subject, draw(1, 1, 1, K, K, getattr(torch, dtype), subject.device))
            if reason is not None:
                yield Finding("accuracy", about, REFUSED, reason)
                continue
            for shape, truth in truths(subject, dtype, K):
                for scale in SCALES[dtype]:
                    errors = truth.errors(op_of(subject), scale)
                    yield judged("accuracy", f"{about}, {shape}, do {scale:g}", errors, BOUNDS[dtype])
            if not subject.quick:
                yield judged("strides", about, strided(truth).errors(op_of(subject)), BOUNDS[dtype])


def strided(truth: Truth) -> Truth:
    """The same inputs, non-contiguous and misaligned by at least two bytes."""

    def shifted(x: torch.Tensor) -> torch.Tensor:
        padded = torch.empty(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype, device=x.device)
        padded[..., 1:-2] = x
        return padded[..., 1:-2]

    return replace(truth, inputs={name: shifted(x) for name, x in truth.inputs.items()})


def taken(subject: Subject) -> tuple[str, Truth] | None:
    """One case that the back end supports, for checks that need only one."""
    for dtype in subject.dtypes:
        for K in subject.sizes:
            if why_not(subject, draw(1, 1, 1, K, K, getattr(torch, dtype), subject.device)) is None:
                states = Truth.of(draw(1, 70, 1, K, K, getattr(torch, dtype), subject.device, states=1))
                return dtype, states
    return None


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Names of the results that differ."""
    return [name for name in a if not torch.equal(a[name], b[name])]


def repeated(subject: Subject) -> Iterator[Finding]:
    """Two runs agree bit for bit."""
    case = taken(subject)
    if case is None:
        return
    differing = same_bits(case[1].run(op_of(subject)), case[1].run(op_of(subject)))
    yield Finding(
        "two runs",
        case[0],
        WRONG if differing else OK,
        ", ".join(differing) + " differ" if differing else "the same bits",
    )


def every_configuration(subject: Subject) -> Iterator[Finding]:
    """Each configuration that autotuning may choose is right and, repeated, gives the same bits."""
    case, found = taken(subject), configurations.tuners(subject.backend)
    if case is None or not found:
        return
    dtype, truth = case
    op = op_of(subject)
    with configurations.watched(found) as seen:
        truth.run(op)
    for name, configs in seen.items():
        for config in configs if not subject.quick else configs[:1]:
            about = f"{name}: {config}"
            try:
                with configurations.only(found[name], config):
                    runs = [truth.run(op) for _ in range(subject.repeats)]
            except Exception as error:
                # Autotuning passes over what does not fit; whatever else goes wrong would reach the user.
                fits = type(error).__name__ in ("OutOfResources", "CompileTimeAssertionFailure", "PTXASError")
                yield Finding("configurations", about, OK if fits else FAILED, f"{type(error).__name__}: {error}")
                continue
            differing = sorted({n for again in runs[1:] for n in same_bits(runs[0], again)})
            judgement = judged("configurations", about, truth.errors_of(runs[0]), BOUNDS[dtype])
            yield (
                replace(judgement, status=WRONG, detail=f"{', '.join(differing)} differ from run to run")
                if differing
                else judgement
            )


def poisoned(subject: Subject) -> Iterator[Finding]:
    """Results stay right when new memory is full of NaN, so nothing reads memory that was never written."""
    case = taken(subject)
    if case is None:
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # which also fills new memory
    try:
        errors = case[1].errors(op_of(subject))
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    yield judged("poisoned memory", case[0], errors, BOUNDS[case[0]])


def compiled(subject: Subject) -> Iterator[Finding]:
    """Results under torch.compile equal those without it."""
    case = taken(subject)
    if case is None:
        return
    function = torch.compile(op_of(subject), backend="inductor" if subject.device == "cuda" else "eager")
    yield judged("torch.compile", case[0], case[1].errors(function), BOUNDS[case[0]])


def cuda_graph(subject: Subject) -> Iterator[Finding]:
    """A captured graph, replayed on other inputs, gives the same results as a plain call, forward and backward."""
    case = taken(subject)
    if case is None:
        return
    if subject.device != "cuda":
        yield Finding("CUDA graph", case[0], UNKNOWN, "no GPU here")
        return
    if subject.backend == "pytorch":
        yield Finding(
            "CUDA graph", case[0], UNKNOWN, "it asks the GPU at each step whether to go on, which cannot be captured"
        )
        return
    leaves = [x.detach().clone().requires_grad_() for x in case[1].inputs.values()]
    do = case[1].weights[0].to(leaves[0].dtype)
    both = timing.with_backward(op_of(subject), leaves, do)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        leaves[2].mul_(2)  # the values
    graph.replay()
    differing = [i for i, (a, b) in enumerate(zip(captured, both(), strict=True)) if not torch.equal(a, b)]
    yield Finding(
        "CUDA graph",
        case[0],
        WRONG if differing else OK,
        f"gradients {differing} differ" if differing else "the same bits",
    )


def second_device(subject: Subject) -> Iterator[Finding]:
    """Results are right on a device other than the current one."""
    if subject.device != "cuda" or torch.cuda.device_count() < 2:
        yield Finding("second device", "", UNKNOWN, "there is none")
        return
    case = taken(subject)
    if case is None:
        return
    moved = Truth(
        {n: x.to("cuda:1") for n, x in case[1].inputs.items()}, case[1].lengths, [w.to("cuda:1") for w in case[1].weights],
        {n: x.to("cuda:1") for n, x in case[1].results.items()},
    )  # fmt: skip
    yield judged("second device", case[0], moved.errors(op_of(subject)), BOUNDS[case[0]])


def free_memory(subject: Subject) -> int:
    """Free bytes on the GPU; 0 without one."""
    return torch.cuda.mem_get_info()[0] if subject.device == "cuda" else 0


def large(subject: Subject) -> Iterator[Finding]:
    """Forward pass over more than 2^31 elements: the last row of the batch gives the same result as on its own."""
    case = taken(subject)
    if case is None:
        return
    K, (T, H) = case[1].inputs["q"].shape[-1], ROW
    B = ELEMENTS // (T * H * K) + 1
    needed = BYTES * B * T * H * K
    if subject.backend == "pytorch":
        yield Finding("2^31 elements", case[0], UNKNOWN, "it takes too long")
        return
    if (free := free_memory(subject)) < needed:
        why = f"needs {needed / 2**30:.0f} GiB of GPU memory, {free / 2**30:.0f} are free"
        yield Finding("2^31 elements", case[0], UNKNOWN, why)
        return
    one = draw(1, T, H, K, K, getattr(torch, case[0]), subject.device)
    inputs = {n: t for n, t in one.items() if t is not None}
    x = {n: t.expand(B, *t.shape[1:]).contiguous() if n in POSITIONS else t for n, t in inputs.items()}
    with torch.no_grad():
        alone, last = op_of(subject)(*inputs.values())[0][0], op_of(subject)(*x.values())[0][-1]
    equal = torch.equal(alone, last)
    yield Finding(
        "2^31 elements",
        case[0],
        OK if equal else WRONG,
        "the last row is what it is alone" if equal else "the last row is another than alone",
    )


def speed(subject: Subject) -> Iterator[Finding]:
    """Time and memory of the op and of a decoding step at the user's shape."""
    if subject.device != "cuda":
        yield Finding("speed", "", UNKNOWN, "no GPU here")
        return
    for dtype in subject.dtypes:
        for K in subject.sizes:
            x = draw(
                max(1, subject.tokens // subject.length),
                subject.length,
                subject.heads,
                K,
                K,
                getattr(torch, dtype),
                "cuda",
            )
            do, about = torch.randn_like(x["v"]), f"{dtype}, K = {K}"  # pyright: ignore[reportArgumentType]
            if subject.backend == "fla's ops":
                for name, (f, leaves) in timing.fla_ops(x).items():
                    yield Finding("speed", f"{about}, {name}", OK, "", timing.timed(f, leaves, do))
                continue
            if why_not(subject, x) is not None:
                continue
            leaves = timing.leaves_of(x, *NAMES[:6])
            yield Finding(
                "speed", about, OK, "", timing.timed(op_of(subject), leaves, do) | decoding(subject, dtype, K)
            )


def decoding(subject: Subject, dtype: str, K: int) -> dict[str, float]:
    """Milliseconds per step for 8 sequences."""
    x: dict[str, Any] = draw(8, 1, subject.heads, K, K, getattr(torch, dtype), "cuda", states=8)
    first = [x[n][:, 0] for n in ("q", "k", "v", "g")]
    step = functools.partial(
        mesa_net_decoding_one_step,
        *first,
        x["lamb"],
        x["beta"][:, 0],
        x["h_kk_init"],
        x["h_kv_init"],
        backend=subject.backend,
    )
    return {"decoding step of 8, ms": timing.measure(step).median}


CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "accuracy": accuracy,
    "two runs": repeated,
    "configurations": every_configuration,
    "poisoned memory": poisoned,
    "torch.compile": compiled,
    "CUDA graph": cuda_graph,
    "second device": second_device,
    "2^31 elements": large,
    "speed": speed,
}
