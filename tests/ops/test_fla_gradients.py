"""`benchmarks/fla_gradients.py` on a small head: which gradients are right at which size of the incoming one."""

import os
import re
import subprocess
import sys

from tests.project import ROOT


def test_released_gradients_go_wrong_with_their_size_and_these_do_not(tmp_path):
    """In a process of its own, as Triton reads TRITON_INTERPRET when a kernel is defined; warnings of NumPy fail it."""
    table = tmp_path / "table.md"
    script = [str(ROOT / "benchmarks/fla_gradients.py"), "--scales", "1", "1e-6", "--positions", "40", "--width", "16"]
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", *script, "--out", str(table)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    text = table.read_text()
    assert "one head of 16, 40 positions" in text and text.strip() in done.stdout
    parts = re.split(r"q, k and v in (\w+):", text)
    for dtype, part, right in (("float32", parts[2], 1e-3), ("bfloat16", parts[4], 1e-2)):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines() if line.startswith("|")]
        errors = {(op, scale): max(map(float, found)) for op, scale, *found in rows[2:]}
        ours = [op for op in dict.fromkeys(op for op, _ in errors) if op.startswith("fla_mesa")]
        assert len(ours) == (2 if dtype == "float32" else 3)
        for op in ours:
            assert max(errors[op, "1"], errors[op, "1e-06"]) < right, (dtype, op, errors)
        assert errors["fla 0.6.0, released", "1"] < 0.1 < errors["fla 0.6.0, released", "1e-06"], (dtype, errors)
