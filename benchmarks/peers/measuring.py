"""Measuring in turns: fresh processes, medians, peak memory, the machine's own ceilings, a result file.

Imports nothing but the standard library before a function needs torch, so that any environment can run it.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Figures = dict[str, Any]

# What a process can be started with. Numerics stay; only where memory comes from differs.
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "plain": {},
    "large pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},  # glibc 2.35 or newer, Linux
    "torch's large pages": {"THP_MEM_ALLOC_ENABLE": "1"},  # only what torch allocates, from 2 MB on
    # what `gpt_finetune.allocation` does for each recipe
    "kept memory": {
        "BENCHMARK_KEEPS_MEMORY": "1",
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0",
    },
}
if "BENCHMARK_KEEPS_MEMORY" in os.environ:
    from gpt_finetune.allocation import keep_memory

    keep_memory()


class Failed(RuntimeError):
    """A measurement's process ended badly; holds the end of what it said."""


def arguments(description: str, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes.

    Args:
        description: The first line of `--help`.
        rounds: How often each way has its turn, unless told otherwise.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each way has its turn")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    return parser


def fresh(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Figures:
    """Run a command whose last line of output is JSON, and return that.

    Args:
        command: Words of the command.
        environment: Variables to set besides this process's own.

    Raises:
        Failed: It ended with another code than 0, or said no JSON.
    """
    around = {**os.environ, **(environment or {})}
    done = subprocess.run(list(command), env=around, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines or not lines[-1].startswith("{"):
        raise Failed("\n".join((done.stderr or done.stdout).strip().splitlines()[-8:]))
    return json.loads(lines[-1])


def in_turns(ways: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Measure every way once a round; a way that fails is said to, and left out from then on.

    Each round begins with another way: what went before may leave a processor slower, or faster.
    """
    measured: dict[str, list[Figures]] = {name: [] for name in ways}
    for turn in range(rounds):
        order = list(measured)
        begin = turn % max(1, len(order))
        for name in order[begin:] + order[:begin]:
            start = time.perf_counter()
            try:
                measured[name].append(ways[name]())
            except Failed as error:
                print(f"left out: {name}\n{error}", file=sys.stderr)
                del measured[name]
                continue
            took = time.perf_counter() - start
            print(f"round {turn + 1}, {name}: {json.dumps(measured[name][-1])} ({took:.0f} s)", file=sys.stderr)
    return measured


def medians(rows: Sequence[Figures], digits: int = 4) -> Figures:
    """Return each figure's median over the rounds."""
    return {key: round(statistics.median(row[key] for row in rows), digits) for key in rows[0]}


def on_each_source(script: str, given: argparse.Namespace, ways: Sequence[str]) -> dict[str, Figures]:
    """Measure ways on sources of text in turns, each time in a fresh process of the script; return medians.

    A way that failed, as where a batch does not fit, is missing; the first one is ours, and must not. All but the last
    way, which is a peer's, keep their memory as our recipes do.

    Args:
        script: Its file; `--one SOURCE WAY` measures.
        given: Its arguments: size, precision, steps, sources, rounds.
        ways: Names of the ways.
    """
    words = [sys.executable, script, "--size", given.size, "--precision", given.precision]
    words += ["--steps", str(given.steps), "--one"]

    def turn(source: str, way: str) -> Callable[[], Figures]:
        environment = ENVIRONMENTS["plain" if way == ways[-1] else "kept memory"]
        return lambda: fresh([*words, source, way], environment)

    runs = in_turns({f"{source}: {way}": turn(source, way) for source in given.sources for way in ways}, given.rounds)
    for source in given.sources:
        if f"{source}: {ways[0]}" not in runs:
            raise SystemExit(f"error: {source}: {ways[0]} failed, with which all others are compared")
    return {
        source: {way: medians(rows) for way in ways if (rows := runs.get(f"{source}: {way}"))}
        for source in given.sources
    }


def peak_mb() -> float:
    """Return the most memory that this process held so far, in MB.

    Linux counts it anew for each program that is started; `ru_maxrss` would begin with the parent's size.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine(note: str = "") -> Figures:
    """Say when, on what and with which versions was measured."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    parts = [_processor(), f"{cores()} cores", versions, *([note] if note else [])]
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": ", ".join(parts),
        "command": f"PYTHONPATH=. python {shlex.join([f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])}",
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")
    kinds = [kind for kind in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {kind} " in text]
    return f"{name or platform.machine()} ({', '.join(kinds) or 'no AVX2'})"


def write(name: str, report: Figures, folder: Path) -> Path:
    """Write a result file, and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    return file


def ceilings(tokens: int, width: int, vocabulary: int, precision: str, matmul: str = "highest") -> Figures:
    """Measure what this machine's products reach at a model's shapes, and how fast it copies.

    Args:
        tokens: Of a step.
        width: Of the model.
        vocabulary: Token ids; the head is measured on 1024 tokens at once.
        precision: float32 or bfloat16.
        matmul: As `torch.set_float32_matmul_precision` takes it.
    """
    import torch

    torch.set_float32_matmul_precision(matmul)
    dtype = getattr(torch, precision)
    shapes = [(tokens, width, 3 * width), (tokens, width, 4 * width), (tokens, 4 * width, width)]
    shapes.append((min(tokens, 1024), width, vocabulary))
    flops = seconds = 0.0
    for rows, inner, columns in shapes:
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        seconds += best_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        flops += 2.0 * rows * inner * columns
    source = torch.zeros(2**26)  # 256 MB, more than any cache holds
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / best_of(lambda: target.copy_(source))
    return {"gflops": flops / seconds / 1e9, "copy_gb_per_second": copied / 1e9}


def best_of(act: Callable[[], Any], seconds: float = 0.3, least: int = 3) -> float:
    """Return the shortest time that an action took; a busy machine does not lower it for long."""
    act()
    best, count, end = float("inf"), 0, time.perf_counter() + seconds
    while count < least or time.perf_counter() < end:
        start = time.perf_counter()
        act()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best
