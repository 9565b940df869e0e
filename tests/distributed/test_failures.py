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
    assert done.stderr.count("Traceback") <= 1  # the launcher's own
    receipt = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert receipt["status"] != "finished"


@pytest.mark.slow
def test_bad_input_is_said_once_by_two_processes(words, tmp_path):
    done = launch("cpu-2.yaml", "recipes/pretrain.py", *words(tmp_path / "bad", "model.preset=gpt9"))
    assert done.returncode != 0
    assert done.stderr.count("error: model.preset = 'gpt9'") == 1
    assert done.stderr.count("error on process") == 0


GONE = "error: accelerate launch = 'process 0 of 2': another process has ended, hangs or is out of reach: "


@pytest.mark.long
@pytest.mark.parametrize(("how", "said"), [("killed", ""), ("hang", "Timed out waiting 8000ms")])
def test_a_rank_that_is_killed_or_hangs_stops_all_in_time(tmp_path, how, said):
    begin = time.monotonic()
    given = [f"output_dir={tmp_path / 'run'}", f"how={how}", "timeout=8"]
    done = launch("cpu-2.yaml", "tests/distributed/failing.py", *given, timeout=200)
    assert done.returncode != 0
    print(f"{how}: {time.monotonic() - begin:.0f} s, imports included")
    assert time.monotonic() - begin < 180  # the launcher gives who hangs half a minute before it kills
    if how == "killed":  # who is left may be ended before it has noticed
        assert "SIGKILL" in done.stderr or "-9" in done.stderr
    else:
        assert GONE + said in done.stderr
        receipt = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
        assert receipt["status"] == "failed"
        assert "train.trainer.ddp_timeout" in receipt["error"]
