"""Where a process's memory comes from: freed buffers kept for the next step, in large pages.

A training step on a CPU asks for the same buffers as the one before. Those that went back to the system in between are
cleared anew, page by page. Where their sizes change from step to step, holes remain that nothing fits into, and more of
them with each step; they go back from time to time. None of this changes a number. Imports no torch: a heap is laid out
before it is used.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

# Whoever has set one of these has chosen already; so has who names a threshold among glibc's tunables.
CHOICES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_MMAP_MAX_",
    "LD_PRELOAD",
    "THP_MEM_ALLOC_ENABLE",  # torch's own large pages, whose alignment makes a heap of holes that grows with each step
)
# glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = -1
_LARGEST = 32 * 2**20  # the most that glibc allows: what is larger is a map of its own and goes back when freed
_MAPS = 65536  # glibc's default
_LARGE_PAGE, _MADV_HUGEPAGE = 2 * 2**20, 14


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, in large pages where the system gives them to whoever asks.

    Returns:
        Whether the C library heard it: glibc does, unless the environment has chosen otherwise.
    """
    chosen = any(name in os.environ for name in CHOICES) or "threshold" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not libc.mallopt(_TRIM_THRESHOLD, _NEVER):
        return False
    _ask_for_large_pages()
    return bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST))


def return_holes() -> bool:
    """Give the memory of all that is free back to the system, wherever in the heap it lies.

    Returns:
        Whether anything went back.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


@functools.cache  # once a process: each time more would make a heap larger than what may be forked
def _ask_for_large_pages() -> None:
    """Grow the heap over half as many addresses as there is memory, none of it touched, and mark them for large pages.

    Where the system promises no more than it has, that would be a promise, and nothing is done.
    """
    if _promises_are_kept():
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    libc.mallopt(_MMAP_MAX, 0)  # from the heap, whatever its size
    while size > _LARGEST:
        if place := libc.malloc(size):
            first = -(-place // _LARGE_PAGE) * _LARGE_PAGE
            libc.madvise(first, (place + size - first) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)
            libc.free(place)
            break
        size //= 2  # a limit on addresses
    libc.mallopt(_MMAP_MAX, _MAPS)


def _promises_are_kept() -> bool:
    """Tell whether the system refuses memory that it could not give to all who have asked (vm.overcommit_memory)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False
