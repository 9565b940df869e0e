"""Where a process's memory comes from: buffers in large pages, and freed ones kept for the next step.

A training step on a CPU asks for the same buffers as the one before. Those that went back to the system in between are
cleared anew, page by page. None of this changes a number. Imports no torch, which reads its part when it is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # torch: take what is larger than 2 MB in such pages
# Whoever has set one of these has chosen already; so has who names a threshold among glibc's tunables.
CHOICES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "LD_PRELOAD")
# glibc's malloc.h. What is larger than this is a map of its own and goes back when freed, in large pages cheap to have
# again: kept with all else, such buffers would make a heap of holes, 100 MB more in a step of 30 M parameters.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 8 * 2**20
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, in large pages if torch is yet to be imported.

    Returns:
        Whether the C library heard it: glibc does, unless the environment has chosen otherwise.
    """
    chosen = any(name in os.environ for name in CHOICES) or "threshold" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault(LARGE_PAGES, "1")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    return bool(set_option(_MMAP_THRESHOLD, _LARGEST) and set_option(_TRIM_THRESHOLD, _NEVER))
