"""Tests that run Triton kernels in Triton's interpreter: `TRITON_INTERPRET=1 pytest tests/interpreter`.

Triton reads that variable when a kernel is defined, so these tests need a process of their own; a run without it
leaves them out.
"""

import os

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["*.py"]

if INTERPRETED:
    import numpy as np

    from fla_mesa import interpreter

    # Masked divisions are computed before they are masked; numpy would warn where a GPU is silent.
    np.seterr(all="ignore")

    @pytest.fixture(autouse=True)
    def _mended_loops() -> None:
        """Modules may be imported by any test, so fla's loops are mended before each."""
        interpreter.mend_loops()
