"""The C library's allocator, for steps on a CPU."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_ON_HEAP = 32 * 2**20
"""Larger tensors, such as the gradient of a large item table, are still given back when they are freed."""
KEPT = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of freed tensors for the next step of this process.

    Otherwise it returns the memory, and the next tensor's first write to each page asks the system for it again: at a
    hidden size of 231, some 90,000 times a step, a tenth of its time. Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_ON_HEAP)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)
