"""A process for one measurement, forked from this one: the imports are paid once, the memory is its own."""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from peers.measuring import Failed, Figures, peak_mb


def forked(measure: Callable[[], Figures]) -> Figures:
    """Return what a function says in a process forked for it, with `peak_mb`: the most memory it held beyond this one.

    This process must not compute anything itself before: threads do not live through a fork.

    Args:
        measure: Returns what JSON can hold.

    Raises:
        Failed: The process ended badly; what went wrong stands on its error output.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            figures = beyond_now(measure)
            with os.fdopen(writing, "w") as told:
                told.write(json.dumps(figures))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as told:
        said = told.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise Failed(f"its process ended with status {status}")
    return json.loads(said)


def milliseconds(act: Callable[[], object], passes: int) -> Figures:
    """Return the median of some passes behind a warm-up."""
    act()
    return {"milliseconds": 1000 * statistics.median(seconds_of(act) for _ in range(passes))}


def beyond_now(measure: Callable[[], Figures]) -> Figures:
    """Return what a function says, with `peak_mb`: the most memory that this process held beyond what it holds now."""
    clear_peak()
    before = peak_mb()
    figures = measure()
    return {"peak_mb": round(peak_mb() - before, 1), **figures}


def clear_peak() -> None:
    """Let this process's peak of memory begin anew, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def seconds_of(act: Callable[[], object]) -> float:
    """Return how long a call takes, in seconds."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start
