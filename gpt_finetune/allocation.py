"""Where a process's memory comes from: freed buffers kept for the next step, in large pages, and joined again.

A training step on a CPU asks for the same buffers as the one before. Those that went back to the system in between are
cleared anew, page by page; those that are kept must fit when they are asked for again. Where their sizes change from
step to step, holes remain that nothing fits into, and more of them with each step; they go back from time to time. A
checkpoint's file goes once its weights have been copied. None of this changes a number. Imports no torch: a heap is
laid out before it is used.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

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
# The most that glibc allows. What is larger is a map of its own, and goes back when freed, unless the heap has room.
_LARGEST = 32 * 2**20
_MAPS = 65536  # glibc's default
_LARGE_PAGE, _MADV_HUGEPAGE = 2 * 2**20, 14
# glibc's caches of small pieces, which it reads when a program begins and never after.
TUNABLES = {"glibc.malloc.tcache_count": "0", "glibc.malloc.mxfast": "0"}
_kept = False  # whether this process keeps what it frees
_end = 0  # of the addresses that its heap was laid out over


def start_anew() -> None:
    """Start this program once more, as the same process, with a heap in which freed buffers join.

    torch asks for addresses that 64 divides. glibc takes 96 bytes more and cuts off what is too much; its caches hand
    such pieces to small objects, and while one of these lives, the buffer before it, freed, is too short for the next
    of its own size. Holes then take as much again as what is in use. Without the caches pieces join what lies
    beside them at once.

    Does nothing where there is no glibc, where the environment has chosen otherwise or has been told already, and where
    torch is there, since a program that has begun to work loses nothing.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    chosen = any(name in os.environ for name in CHOICES) or any(name in given for name in TUNABLES)
    begun = "torch" in sys.modules or sys.gettrace() is not None  # a debugger would begin anew, too
    if chosen or begun or not sys.executable or not _is_glibc():
        return
    told = ":".join([*([given] if given else []), *(f"{name}={value}" for name, value in TUNABLES.items())])
    sys.stdout.flush()
    sys.stderr.flush()
    # Python finds its environment by its own name, and what the user typed may be found elsewhere on the path
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "GLIBC_TUNABLES": told})


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, in large pages where the system gives them to whoever asks.

    Returns:
        Whether the C library heard it: glibc does, unless the environment has chosen otherwise.
    """
    global _kept, _end
    chosen = any(name in os.environ for name in CHOICES) or "threshold" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not libc.mallopt(_TRIM_THRESHOLD, _NEVER):
        return False
    if not _end and not _promises_are_kept():  # once: each time more would make a heap larger than what may be forked
        _end = _lay_out(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    _kept = bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST))
    return _kept


def return_holes() -> bool:
    """Give the memory of all that is free back to the system, wherever in the heap it lies, if this process keeps it.

    Returns:
        Whether anything went back.
    """
    if not _kept:
        return False
    libc = ctypes.CDLL(None)
    returned = bool(libc.malloc_trim(0))
    if _end:  # the heap's end went back, too, and with it the mark on what would come there
        libc.sbrk.restype, libc.sbrk.argtypes = ctypes.c_void_p, [ctypes.c_ssize_t]
        _lay_out(libc, _end - (libc.sbrk(0) or _end))
    return returned


def release_file(model: nn.Module) -> int:
    """Copy those weights that still lie in a checkpoint's file, if a tenth of the model or more no longer does.

    What is read as it stands lies in the file, mapped, and costs nothing more. But the file is mapped whole for as long
    as any tensor lies in it: where some were turned or rounded on their way, the others would hold all of it in memory.

    Args:
        model: On the CPU; weights elsewhere, and those that are more than a tensor, are left as they are.

    Returns:
        Bytes copied.
    """
    weights = [given for given in (*model.parameters(), *model.buffers()) if given.device.type == "cpu"]
    weights = [given for given in weights if type(given.data).__name__ == "Tensor"]
    lying = [given for given in weights if not given.untyped_storage().resizable()]  # as what torch has allocated is
    size = sum(given.nbytes for given in lying)
    if size > 0.9 * sum(given.nbytes for given in weights):
        return 0
    for given in lying:
        given.data = given.data.clone()
    return size


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, OSError, ValueError):  # Windows, macOS, musl
        return False


def _lay_out(libc: ctypes.CDLL, size: int) -> int:
    """Grow the heap over so many addresses, untouched, and mark them for large pages; return their end, or 0."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    end = 0
    libc.mallopt(_MMAP_MAX, 0)  # from the heap, whatever its size
    while size > _LARGEST and not end:
        if place := libc.malloc(size):
            first = -(-place // _LARGE_PAGE) * _LARGE_PAGE
            libc.madvise(first, (place + size - first) // _LARGE_PAGE * _LARGE_PAGE, _MADV_HUGEPAGE)
            libc.free(place)
            end = place + size
        size //= 2  # a limit on addresses
    libc.mallopt(_MMAP_MAX, _MAPS)
    return end


def _promises_are_kept() -> bool:
    """Tell whether the system refuses memory that it could not give to all who have asked (vm.overcommit_memory)."""
    try:
        return Path("/proc/sys/vm/overcommit_memory").read_text(encoding="ascii").strip() == "2"
    except OSError:
        return False
