"""Two hosts on one machine: network namespaces that a virtual cable joins, with one file system."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support import ROOT

ADDRESSES = ("10.77.0.1", "10.77.0.2")
PORT = "cable"  # the network card of either host


class NoHosts(Exception):
    """This machine does not let us make network namespaces."""


class Hosts:
    """Two hosts and the cable between them, for as long as the block runs; whatever runs on them is killed at its end.

    Args:
        rate: What the cable carries, as tc has it: slow enough to be cut while something is on the way.

    Raises:
        NoHosts: No `ip`, not root, or a kernel without what it takes.
    """

    def __init__(self, rate: str) -> None:
        self.names = [f"host{rank}-{os.getpid()}" for rank in range(2)]
        self.rate = rate
        self.started: list[subprocess.Popen] = []

    def __enter__(self) -> Hosts:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            a, b = self.names
            _ip("link", "add", PORT, "netns", a, "type", "veth", "peer", "name", PORT, "netns", b)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", PORT)
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", PORT, "up")
                _call("tc", "-n", name, "qdisc", "add", "dev", PORT, "root", "tbf", "rate", self.rate, *_QUEUE)
        except NoHosts:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for rank in range(2):
            self.kill(rank)
        for process in self.started:
            process.wait(30)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def start(self, rank: int, said: Path, script: str, *words: str, launcher: Sequence[str] = ()) -> subprocess.Popen:
        """Run on one host what docs/distributed.md says to run on each.

        Args:
            rank: Which host.
            said: A file for what it prints.
            script: Path below the repository's root.
            *words: The script's command line.
            launcher: More of the launcher's.
        """
        command = ["ip", "netns", "exec", self.names[rank], sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(ROOT / "configs" / "accelerate" / "multi-node.yaml")]
        command += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)]
        command += ["--main_process_ip", ADDRESSES[0], *launcher, str(ROOT / script), *words]
        variables = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "GLOO_SOCKET_IFNAME": PORT}
        with said.open("w") as file:
            started = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, **variables})
        self.started.append(started)
        return started

    def cut(self) -> None:
        """Pull the cable out: nothing arrives any more, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", PORT, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _ip("-n", self.names[1], "link", "set", PORT, "up")

    def kill(self, rank: int) -> None:
        """Kill all that runs on a host."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[rank]], capture_output=True, text=True)
        for process in listed.stdout.split():
            os.kill(int(process), signal.SIGKILL)


_QUEUE = ("burst", "32k", "latency", "400ms")


def _ip(*words: str) -> None:
    _call("ip", *words)


def _call(*words: str) -> Any:
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        raise NoHosts(f"there is no {words[0]}") from None
    if done.returncode:
        raise NoHosts(f"{' '.join(words)}: {done.stderr.strip()}")
