"""Real processes killed, stopped and resumed: what goes on is the run that was never stopped, to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from reliability import record_survival
from support import ROOT


def measure(folder: Path, inside: int, outside: int, stopped: int) -> dict[str, Any]:
    """Run `surviving.py`, which forks one process a kill, and return its figures."""
    command = [sys.executable, str(Path(__file__).with_name("surviving.py")), str(folder)]
    done = subprocess.run(
        [*command, *map(str, (inside, outside, stopped))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def hold(figures: dict[str, Any], inside: int, stopped: int) -> None:
    """Check that each promise was kept each time."""
    kills, damage, stops = figures["kills"], figures["damage"], figures["stops"]
    assert kills["inside_a_save"] == inside
    assert kills["torn_staging"] > 0
    assert kills["resumed"] == kills["identical"] == kills["kills"] == kills["tried"]
    assert kills["lost"] == 0
    assert damage["cases"] == 4 * damage["files"] >= 40
    assert damage["found_and_named"] == damage["fell_back"] == damage["cases"]
    assert stops["exit_codes_right"] == stops["identical"] == stops["signals"] == stopped
    assert stops["second_signals"] == stops["second_identical"] == max(1, stopped // 10)
    together = figures["together"]
    assert together["both_stopped"] == together["identical"] == together["signals"] == max(1, stopped // 5)


@pytest.mark.slow
def test_killed_stopped_and_damaged_runs_go_on_as_if_nothing_had_been(tmp_path):
    hold(measure(tmp_path, 6, 2, 2), inside=6, stopped=2)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_hundred_kills_and_fifty_signals(tmp_path):
    figures = measure(tmp_path, 60, 40, 50)
    hold(figures, inside=60, stopped=50)
    record_survival(figures)
