"""The C library is told to keep memory, unless the user has told it something."""

import platform
import subprocess
import sys

import pytest

from fla_mesa.cpu import allocator
from fla_mesa.cpu.allocator import keep_freed_memory

FAULTS = """
import resource, runpy, sys, torch
kept = runpy.run_path(sys.argv[1])["keep_freed_memory"]()  # by its path: the package would take five times as long to import
x = torch.ones(2**21)
def step():
    for _ in range(20): x + x
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it does nothing with another C library")
def test_temporaries_cause_no_page_faults():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, allocator.__file__], capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    assert kept == "True" and int(faults) < 2000  # 20 temporaries of 8 MiB are 40,960 pages


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_environment_says_comes_first(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert keep_freed_memory() is False
