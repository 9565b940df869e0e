"""Two processes that share a model's state, one of them killed: what goes on is the run that was never stopped."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from reliability import record
from support import ROOT

INSIDE, OUTSIDE = 10, 2
ENGINES = {"fsdp2-cpu-2": "torch", "deepspeed-zero2": "deepspeed", "deepspeed-zero3": "deepspeed"}


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return what runs `sharding.py`, which forks two processes a kill, once an engine."""

    @cache
    def run(engine: str) -> dict[str, Any]:
        if importlib.util.find_spec(ENGINES[engine]) is None:
            pytest.skip(f"{ENGINES[engine]} is not installed")
        command = [sys.executable, str(Path(__file__).with_name("sharding.py")), str(tmp_path_factory.mktemp(engine))]
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "checkpoints")))
        done = subprocess.run(
            [*command, engine, str(INSIDE), str(OUTSIDE)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "DS_ACCELERATOR": "cpu"},
            timeout=1500,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        print(engine, found)
        return found

    return run


@pytest.mark.long
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_process_loses_nothing(figures, engine):
    kills = figures(engine)["kills"]
    how = f"`kill -9` of one of two processes, {kills['tried']} times, {kills['inside_a_save']} of them inside a save"
    figure = f"{kills['resumed']} of {kills['tried']} resumed, {kills['identical']} bit-identical"
    record(engine, f"A killed process loses nothing of a model that several share ({engine})", how, figure)
    assert all(kills["points_in_the_saves"])  # of either process
    assert kills["tried"] == INSIDE + OUTSIDE
    assert kills["inside_a_save"] == INSIDE
    assert kills["torn_staging"] > 0
    assert kills["lost"] == 0
    assert kills["resumed"] == kills["identical"] == kills["tried"]


@pytest.mark.long
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("case", ["2 to 1", "1 to 2"])
def test_shards_are_cut_anew(figures, case):
    found = figures("fsdp2-cpu-2")["reshards"][case]
    assert found["weights_identical"]
    assert found["losses_apart"] < 1e-6
    assert {"config.json", "model.safetensors"} <= set(found["files"])
    assert not [name for name in found["files"] if "fsdp" in name]


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_shards_are_refused_as_what_is_saved(figures):
    assert figures("fsdp2-cpu-2")["shards_refused"]
