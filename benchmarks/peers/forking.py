"""A process for one measurement, forked from this one: the imports are paid once, the memory is its own."""

from __future__ import annotations

import json
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from peers.measuring import Failed, Figures, arguments, in_turns, machine, medians, peak_mb, write


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


def compare(
    name: str,
    what: str,
    one: Callable[[str, tuple[int, ...], str], Figures],
    ways: Iterable[str],
    sizes: Mapping[str, Iterable[tuple[int, ...]]],
) -> None:
    """Measure two ways turn by turn in both precisions, print medians and ratios, and write them down.

    Args:
        name: Of the result file.
        what: Is measured, for `--help`.
        one: Measures a way at a shape in a precision, in this process.
        ways: Ours, and what it is compared with.
        sizes: Shapes by name; `models` is what is measured unless the command line says otherwise.
    """
    parser = arguments(what, rounds=3)
    parser.add_argument("--size", choices=sizes, default="models")
    given = parser.parse_args()
    ours, other = ways
    report: Figures = {**machine(), "rounds": given.rounds}
    for precision in ("bfloat16", "float32"):
        for shape in sizes[given.size]:
            acts = {way: partial(forked, partial(one, way, shape, precision)) for way in (ours, other)}
            found = {way: medians(runs, 2) for way, runs in in_turns(acts, given.rounds).items()}
            times = found[other]["milliseconds"] / found[ours]["milliseconds"]
            named = f"{precision}, {' x '.join(f'{size:,}' for size in shape)}"
            report[named] = {**found, "times_faster": round(times, 2)}
    write(name, report, given.results)


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
