"""Keep freed memory for the next large temporary instead of returning it to the system and faulting it in again.

glibc maps every block of more than some 100 kB on its own and unmaps it when it is freed. A training step on a CPU frees and allocates
tensors of megabytes hundreds of times, and each time the system hands out zeroed pages one fault at a time: a quarter of the Mesa op's
time where faults are dear, as on virtual machines (docs/log.md).
"""

from __future__ import annotations

import ctypes
import os
import platform

# mallopt's names for what is set, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Blocks up to this size are kept for the next one that asks, and no more than that much in all at the end of the heap.
_LARGEST_BLOCK, _LARGEST_REST = 2**30, 2**30


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for later tensors; returns whether it did.

    Does nothing with another C library, or where the environment has settings of its own (``MALLOC_..._``, ``GLIBC_TUNABLES``).
    """
    if platform.libc_ver()[0] != "glibc" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)) and bool(mallopt(_TRIM_THRESHOLD, _LARGEST_REST))
