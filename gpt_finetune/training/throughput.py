"""What the machine can do and did: measured ceilings, precision, threads, memory, tokens a second."""

from __future__ import annotations

import functools
import os
import resource
import sys
import time
from typing import Any

import psutil
import torch
from transformers import TrainerCallback


@functools.cache
def matmul_ceiling(device: str, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """Measure how many floating-point operations a second this device's matrix product reaches.

    Args:
        device: A torch device.
        dtype: Of both factors.
        size: Rows and columns.
        seconds: How long to measure; the best of the single products counts, so that a busy machine does not lower it.
    """
    size = size if device == "cpu" else 8 * size
    own = torch.Generator(device).manual_seed(0)  # training's random numbers stay as they are: dropout comes from them
    a, b = (torch.randn(size, size, device=device, dtype=dtype, generator=own) for _ in range(2))

    def once() -> float:
        start = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.accelerator.synchronize()
        return time.perf_counter() - start

    once()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, once())
    return 2.0 * size**3 / best


def resolve_precision(precision: str, device: str) -> str:
    """Return `float32` or `bfloat16`: what was asked for, or under `auto` whichever product is clearly faster here.

    A processor without bfloat16 instructions emulates them, up to ten times slower than float32; so this measures.
    """
    if precision != "auto":
        return precision
    fast = matmul_ceiling(device, torch.bfloat16) > 1.3 * matmul_ceiling(device, torch.float32)
    return "bfloat16" if fast else "float32"


def use_cpu_threads(threads: int | None) -> None:
    """Set how many threads this process computes with on the CPU.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 unless told otherwise, which leaves all but one core idle
    without a word. None undoes that: this machine's physical cores, shared among its processes. A number of threads
    that the environment gives otherwise stays.
    """
    launched = {"ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE"} & os.environ.keys()
    if threads is None and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = psutil.cpu_count(logical=False) or 1
        if hasattr(os, "sched_getaffinity"):  # not on macOS
            cores = min(cores, len(os.sched_getaffinity(0)))
        threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if threads is not None:
        torch.set_num_threads(threads)


def compute_dtype(args: Any) -> torch.dtype:
    """Return the precision that `TrainingArguments` make a training compute in."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def peak_memory_mb() -> float:
    """Return the most memory used so far, in MB: on the GPU if there is one, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Throughput(TrainerCallback):
    """Counts tokens and the time spent on training them, data loading included; evaluation and saving left out.

    Must be the last callback, so that what the others do at an evaluation is not counted.
    """

    def __init__(self) -> None:
        self.tokens = 0  # of all processes, those before a resume included
        self.seconds = 0.0
        self._start = 0  # tokens at the beginning of this process
        self._mark = (0, 0.0)
        self._since: float | None = None

    def count(self, tokens: int) -> None:
        """Add the tokens of one forward pass."""
        self.tokens += tokens

    def rate(self) -> float | None:
        """Return tokens a second since the last call, or None when no step has ended since."""
        tokens, seconds = self.tokens - self._mark[0], self.seconds - self._mark[1]
        self._mark = (self.tokens, self.seconds)
        return tokens / seconds if seconds > 0 else None

    def average(self) -> float | None:
        """Return tokens a second since the run was started or resumed."""
        return (self.tokens - self._start) / self.seconds if self.seconds > 0 else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock; go on counting where the checkpoint stopped."""
        self.tokens = self._start = state.num_input_tokens_seen
        self._mark = (self.tokens, self.seconds)
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time since the last step, or since what interrupted the steps."""
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now
        state.num_input_tokens_seen = self.tokens  # saved with each checkpoint

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what the evaluation took."""
        self._since = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave out what the saving took."""
        self._since = time.perf_counter()
