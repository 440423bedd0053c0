"""The command ``fla-mesa doctor``.

Each back end is examined by a worker process of its own, since a wrong kernel may end the process that launches it. Workers keep what
autotuning chooses in a folder that is thrown away: choices made for a check's few tokens must not serve a training.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fla_mesa.commands import command
from fla_mesa.doctor import report
from fla_mesa.doctor.checks import FAILED, Finding, Subject
from fla_mesa.doctor.worker import FLA_OPS
from fla_mesa.errors import UserError
from fla_mesa.json_files import write_json

BACKENDS = ("fla", "triton", "pytorch")
PACKAGES = ("torch", "triton", "flash-linear-attention", "transformers", "fla_mesa")
# Without a GPU kernels run in an interpreter, where a second on a GPU is an hour.
WITHOUT_GPU = {"heads": 1, "sizes": (32,), "dtypes": ("bfloat16",), "repeats": 2, "quick": True, "device": "cpu"}


def environment() -> dict[str, Any]:
    """Machine and versions."""
    import torch

    from fla_mesa.ops import gpu

    found: dict[str, Any] = {"machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    if not torch.cuda.is_available():
        return found | {
            "GPU": "none: kernels run in Triton's interpreter, at small sizes; speed and races cannot be seen there"
        }
    device = torch.device("cuda", 0)
    kind = gpu.of(device)
    assert kind is not None
    gets = gpu.treatment(kind)
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    found["GPU"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}, {total:.0f} GiB, {kind}"
    found["CUDA"] = torch.version.cuda or f"none, ROCm {torch.version.hip}"
    return found | ({"kernels": gets.why_no_kernels} if gets.why_no_kernels else {})


def run_worker(subject: Subject, minutes: float) -> list[dict[str, Any]]:
    """Findings about one back end, including an abnormal end of its process."""
    with tempfile.TemporaryDirectory() as cache:
        variables = os.environ | {"TRITON_CACHE_DIR": cache, "FLA_CACHE_RESULTS": "0"}
        if subject.device == "cpu" and subject.backend != "pytorch":
            variables["TRITON_INTERPRET"] = "1"
        line = [sys.executable, "-W", "ignore", "-m", "fla_mesa.doctor.worker", json.dumps(vars(subject))]
        ended, errors = "", ""
        try:
            done = subprocess.run(
                line, env=variables, capture_output=True, text=True, timeout=60 * minutes, check=False
            )
            output, errors = done.stdout, done.stderr
            if done.returncode:
                ended = f"its process ended with {done.returncode}: {' '.join(errors.split()[-20:])}"
        except subprocess.TimeoutExpired as error:
            raw = error.stdout or b""
            output = raw.decode() if isinstance(raw, bytes) else raw
            ended = f"not done after {minutes:g} minutes"
    lines = [json.loads(x) for x in output.splitlines() if x.startswith("{")]
    begun = [x["begins"] for x in lines if "begins" in x]
    findings = [x for x in lines if "check" in x]
    if ended:
        findings.append(Finding(begun[-1] if begun else "start", "", FAILED, ended).asdict())
    return findings


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses and checks the command's flags.

    Raises:
        UserError: A value is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="fla-mesa doctor",
        description="Check every back end of the op on this machine, time them, and recommend one. Prints a table and writes a JSON file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--backends", default=",".join(BACKENDS), help="comma-separated back ends (default: %(default)s)"
    )
    parser.add_argument("--heads", type=int, default=16, help="number of heads in your model (default: %(default)s)")
    parser.add_argument("--sizes", default="64,128", help="comma-separated head sizes, K = V (default: %(default)s)")
    parser.add_argument(
        "--dtypes",
        default="bfloat16,float32",
        help="comma-separated, from bfloat16, float16 and float32 (default: %(default)s)",
    )
    parser.add_argument("--tokens", type=int, default=32768, help="tokens per batch in timings (default: %(default)s)")
    parser.add_argument(
        "--length", type=int, default=2048, help="tokens per sequence in timings (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs per configuration (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="time limit per back end (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("doctor.json"), help="JSON file to write (default: %(default)s)"
    )
    given = parser.parse_args(argv)
    given.backends, given.dtypes = given.backends.split(","), tuple(given.dtypes.split(","))
    for name, allowed in (("backends", BACKENDS), ("dtypes", ("bfloat16", "float16", "float32"))):
        if unknown := [x for x in getattr(given, name) if x not in allowed]:
            raise UserError(f"--{name} must be among {', '.join(allowed)}; got {', '.join(unknown)}")
    try:
        given.sizes = tuple(int(size) for size in given.sizes.split(","))
    except ValueError:
        raise UserError(f"--sizes must be comma-separated integers; got {given.sizes!r}") from None
    for name in ("heads", "tokens", "length", "repeats", "minutes"):
        if getattr(given, name) <= 0:
            raise UserError(f"--{name} must be above 0; got {getattr(given, name)}")
    if min(given.sizes) < 1:
        raise UserError(f"--sizes must be 1 or more; got {min(given.sizes)}")
    return given


@command("doctor")
def main(argv: list[str]) -> int:
    """Runs the command; returns its exit code: 0, or 1 if a back end was found wrong."""
    given = parse(argv)
    surroundings = environment()
    asked = {n: getattr(given, n) for n in ("heads", "sizes", "dtypes", "tokens", "length", "repeats")}
    on_gpu = not surroundings["GPU"].startswith("none")
    found: report.Findings = {}
    for name in (*given.backends, *([FLA_OPS] if on_gpu else ())):
        print(f"{name} ...", file=sys.stderr, flush=True)
        subject = Subject(name, **asked | ({} if on_gpu else WITHOUT_GPU))
        found[name] = run_worker(subject, given.minutes)
    print(report.text(surroundings, found))
    write_json(given.output, {"environment": surroundings, "asked": asked, "findings": found})
    print(f"\nall findings: {given.output}")
    return 1 if any(f["status"] in report.BAD for each in found.values() for f in each) else 0
