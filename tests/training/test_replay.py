"""recipes/replay.py: steps of a past run made again, equal to the last bit, or told where they part."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal

import pytest
from support import ROOT, load_recipe

from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.training import replay as replaying
from gpt_finetune.training.callbacks import MetricsWriter
from gpt_finetune.training.replay import Outcome, Past, read_past, replay
from gpt_finetune.training.run import GUESTS, _resumed

RECIPE = load_recipe("replay")
RECIPES = ROOT / "recipes"


def start(*words):
    return run(RECIPE.main, RECIPE.ReplayConfig, [str(word) for word in words])


def content(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def change(path, **values):
    record = json.loads(path.read_text(encoding="utf-8"))
    for name, value in values.items():
        section, _, leaf = name.rpartition("__")
        (record[section] if section else record)[leaf] = value
    path.write_text(json.dumps(record), encoding="utf-8")


def test_a_run_replays_from_the_checkpoint_before(finished, tmp_path, capsys):
    before = content(finished)
    start("--run", finished, "--first", 5, "--output_dir", tmp_path / "again")
    assert content(finished) == before
    assert GUESTS == []
    told = json.loads((tmp_path / "again" / "replay.json").read_text(encoding="utf-8"))
    assert told["same"] is told["weights"] is True
    assert (told["first"], told["last"], told["begun_from"]) == (5, 6, 3)
    assert told["compared"] >= 7  # loss, norm and rate of two steps, and an evaluation
    # somebody may be at work on the code while the tests run
    assert set(told["differing"]) <= {"environment.commit", "environment.code"}
    said = capsys.readouterr().out
    assert "steps 5 to 6, made again from checkpoint-3" in said
    assert "equal to the last bit" in said
    assert json.loads((tmp_path / "again" / "run.json").read_text(encoding="utf-8"))["status"] == "replayed"
    with pytest.raises(SystemExit) as caught:  # not replaced unasked
        start("--run", finished, "--output_dir", tmp_path / "again")
    assert caught.value.code == 2


def test_where_two_runs_part_is_told(finished, tmp_path, capsys):
    """A past run that another version made: its weight decay, its packages and a part of its data were others."""
    past = tmp_path / "past"
    shutil.copytree(finished, past)
    config = past / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert "beta2: 0.95" in text
    config.write_text(text.replace("beta2: 0.95", "beta2: 0.5"), encoding="utf-8")
    change(past / "run.json", environment__torch="1.0", data__fingerprint="another")
    with (past / "checkpoint-3" / "optimizer.pt").open("ab") as file:
        file.write(b"x")  # damaged: the replay begins at the start
    with pytest.raises(SystemExit) as caught:
        start("--run", past, "--last", 5, "--output_dir", tmp_path / "again")
    assert caught.value.code == 1
    told = json.loads((tmp_path / "again" / "replay.json").read_text(encoding="utf-8"))
    assert (told["begun_from"], told["same"], told["weights"]) == (0, False, None)
    assert 1 < told["parted_at"] <= 5
    assert {"environment.torch", "data.fingerprint"} <= set(told["differing"])
    said = capsys.readouterr().out
    assert f"they part at step {told['parted_at']}: " in said
    assert "differs: environment.torch: '1.0' then" in said


@pytest.mark.long
@pytest.mark.parametrize("first", [1, 4])
def test_a_run_that_was_stopped_and_resumed_replays(words, tmp_path, monkeypatch, first):
    """Its log has a line out of turn, and means that begin there."""
    recipe = load_recipe("pretrain")
    log, folder = MetricsWriter.on_log, tmp_path / "stopped"
    more = ["train.log_steps=2", "train.save_steps=null", "train.save_total_limit=9", "train.eval_steps=4"]

    def stopping(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs, **kwargs)
        if state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(MetricsWriter, "on_log", stopping)
    with pytest.raises(SystemExit):
        run(recipe.main, recipe.PretrainConfig, [*words(folder), *more])
    monkeypatch.setattr(MetricsWriter, "on_log", log)
    run(recipe.main, recipe.PretrainConfig, [*words(folder), *more, "--resume"])
    past = read_past(folder)
    assert past.receipt["resumed_from"] == [3]
    assert [step for step, split in past.rows if split == "train"] == [1, 2, 3, 4, 6]
    outcome = replay(past, RECIPES, tmp_path / "again", first)
    assert (outcome.parted, outcome.begun_from) == (None, first - 1)
    assert outcome.compared >= 5


def rows(losses, split="train"):
    return {(step, split): {"step": step, "split": split, "loss": loss} for step, loss in losses.items()}


def compare(then, now, first=1, last=99, begun_from=0, resumed=()):
    outcome = Outcome(first, last, begun_from)
    folder = ROOT
    replaying._compare_rows(
        Past(folder, {"resumed_from": [*resumed]}, rows(then)),
        Past(folder, {"resumed_from": [begun_from] if begun_from else []}, rows(now)),
        outcome,
    )
    return outcome


def test_only_means_over_the_same_steps_are_compared():
    then = {1: 5.0, 10: 4.0, 20: 3.0, 30: 2.0}
    assert compare(then, then).compared == 4
    assert compare(then, {1: 5.0, 10: 4.5, 20: 3.0, 30: 2.0}).parted_at == 10
    # begun at 15: the replay's mean at 20 is over five steps, the past one's over ten
    found = compare(then, {20: 3.3, 30: 2.0}, first=16, begun_from=15)
    assert (found.compared, found.parted) == (1, None)
    # the past run itself was resumed there
    assert compare(then, {20: 3.3, 30: 2.0}, first=16, begun_from=15, resumed=[15]).parted_at == 20
    # and later on, where the replay runs through
    assert compare(then, {1: 5.0, 10: 4.0, 20: 3.3, 30: 2.0}, resumed=[15]).parted is None
    # where a signal has stopped it, it was logged, and the replay runs through
    assert compare({**then, 15: 3.5}, {1: 5.0, 10: 4.0, 20: 3.3, 30: 2.0}, resumed=[15]).parted is None
    assert compare({**then, 15: 3.5}, {1: 5.0, 10: 4.0, 20: 3.3, 30: 2.0}).parted_at == 15
    found = compare(then, {1: 5.0, 10: 4.0})
    assert found.parted == "they part at step 20: it was not logged again"
    said = compare(then, {1: 5.0, 10: 4.5}).parted
    assert said.endswith("loss 4.0 then, 4.5 now (+0.5); the steps before 10 since 1 are in no log")


def test_the_receipt_says_where_a_run_was_resumed(tmp_path):
    assert _resumed(tmp_path, 4) == [4]
    (tmp_path / "run.json").write_text('{"resumed_from": [2, 6]}', encoding="utf-8")
    assert _resumed(tmp_path, 4) == [2, 4]
    (tmp_path / "run.json").write_text("[", encoding="utf-8")
    assert _resumed(tmp_path, 4) == [4]


def test_what_cannot_be_replayed(finished, tmp_path):
    with pytest.raises(InputError, match=r"holds no run\.json"):
        read_past(tmp_path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        shutil.copy(finished / name, copy)
    past = read_past(copy)
    with pytest.raises(InputError, match="logged steps 1 to 6"):
        replay(past, RECIPES, tmp_path / "x", 1, 7)
    for name, problem in (("zero_shot", "does not train"), ("sorcery", "there is none")):
        past.receipt["recipe"] = name
        with pytest.raises(InputError, match=problem):
            replay(past, RECIPES, tmp_path / "x", 1)
    for output in (copy, copy / "inside", tmp_path):
        with pytest.raises(InputError, match="stays as it is"):
            RECIPE.make_room(RECIPE.ReplayConfig(run=str(copy), output_dir=str(output)))
    change(copy / "run.json", environment__processes=2)
    with pytest.raises(InputError, match="trained by 2 processes"):
        read_past(copy)
    (copy / "metrics.jsonl").unlink()
    (copy / "fold-1").mkdir()
    with pytest.raises(InputError, match=r"logged no step.*fold-1"):
        read_past(copy)


@pytest.mark.parametrize("name", ["pretrain", "finetune", "classify", "tag", "answer", "choose", "seq2seq"])
def test_every_recipe_that_trains_can_be_loaded(name):
    assert callable(replaying.load_recipe(RECIPES, name).main)
