"""SIGTERM and Ctrl-C during training: noted when they come, acted on where a step ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# A launcher passes on to its processes what the terminal has sent them already: that is no second signal.
_SAME_S = 1.0


class Interrupted(SystemExit):
    """A signal ended the run; the exit code is the shell's own for it: 128 and the signal's number (143, 130).

    Args:
        number: The signal.
        said: What was left behind and how to go on.
        agreed: Whether every process ends with it, at the same step.
    """

    def __init__(self, number: int, said: str, *, agreed: bool = False) -> None:
        super().__init__(128 + number)
        self.name, self.said, self.agreed = signal.Signals(number).name, said, agreed

    def __str__(self) -> str:
        return f"{self.name}: {self.said}"


class Signals:
    """Notes SIGTERM and SIGINT while its block runs; the second one raises `Interrupted` on the spot.

    Nothing is caught outside the main thread, where Python hands over no signals.
    """

    def __init__(self) -> None:
        self.received = 0
        self._at = 0.0
        self._process = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self.received, self._process = 0, os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if os.getpid() != self._process:  # a loader's process, forked: ended by SIGTERM as ever, not by Ctrl-C
            if number == signal.SIGTERM:
                os._exit(128 + number)
        elif not self.received:
            self.received, self._at = number, now
        elif now - self._at > _SAME_S:
            raise Interrupted(number, "stopped at once, by a second signal; checkpoints saved before are whole")


class Agreement:
    """Lets processes that were launched together come to one number, the largest that any of them has.

    Over gloo, on the CPU: a reduction on the GPU would make each step wait for the last one.

    Args:
        processes: How many there are; one agrees with itself.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self._group: Any = None

    def __call__(self, number: int) -> int:
        """Return the largest number; every process must call."""
        if self.processes == 1:
            return number
        import torch
        from torch import distributed

        if self._group is None:
            same = distributed.get_backend() == "gloo"
            self._group = distributed.group.WORLD if same else distributed.new_group(backend="gloo")
        shared = torch.tensor(number)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self._group)
        return int(shared)
