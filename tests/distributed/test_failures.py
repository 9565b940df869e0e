"""What two real processes do when one of them cannot go on."""

from __future__ import annotations

import json
import time

import pytest
from launching import launch


@pytest.mark.slow
def test_a_rank_that_fails_on_its_own_row_stops_all(tmp_path):
    begin = time.monotonic()
    done = launch("cpu-2.yaml", "tests/distributed/failing.py", f"output_dir={tmp_path / 'run'}", timeout=120)
    assert done.returncode != 0
    assert done.stderr.count("error on process 1: rows.jsonl, row 10 = 7: there is no such label. Mend it.") == 1
    assert time.monotonic() - begin < 90
    receipt = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert receipt["status"] != "finished"


@pytest.mark.slow
def test_bad_input_is_said_once_by_two_processes(words, tmp_path):
    done = launch("cpu-2.yaml", "recipes/pretrain.py", *words(tmp_path / "bad", "model.preset=gpt9"))
    assert done.returncode != 0
    assert done.stderr.count("error: model.preset = 'gpt9'") == 1
    assert done.stderr.count("error on process") == 0
