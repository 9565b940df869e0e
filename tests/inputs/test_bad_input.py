"""Every kind of bad input is one line that names where it stands, and no step is trained on it."""

from __future__ import annotations

import json

import pytest
from bad_inputs import CASES, LONG, Case, lines
from reliability import record

# What a run that is refused after its folder was claimed leaves there: what it was asked to do, and that it failed.
DOCUMENTED = {"config.yaml", "run.json"}


NAMES = [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_one_line_before_the_first_step(name, start, base, tmp_path, monkeypatch, capsys):
    from gpt_finetune.training.reliable import ReliableTrainer

    def step(*args, **kwargs):
        pytest.fail("a step was trained on it")

    monkeypatch.setattr(ReliableTrainer, "training_step", step)
    case: Case = CASES[name]
    files = dict(case.files)
    if case.rows is not None:
        files["rows.jsonl"] = lines(case.rows) if isinstance(case.rows, list) else case.rows
    for file, content in files.items():
        if callable(content):
            content(tmp_path / file, base)
        else:
            (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = case.words
    given = {"predict": ("input.path={folder}/rows.jsonl",), "generate": ()}
    if not any(word.startswith("data.sources") for word in words):
        words = (*given.get(case.recipe, ("data.sources=[{path: {folder}/rows.jsonl}]",)), *words)
    with pytest.raises(SystemExit) as caught:
        start(case.recipe, *words)
    assert caught.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1, said
    assert said[0] == f"error: {caught.value.__context__}", "it is longer than a line"
    for part in case.said:
        assert part.replace("{folder}", str(tmp_path)) in said[0], said[0]
    left = {path.name for path in (tmp_path / "run").rglob("*")} if (tmp_path / "run").exists() else set()
    assert left <= DOCUMENTED
    if left:
        assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["status"] == "failed"


@pytest.mark.long
def test_the_kinds_are_counted():
    """Each is a test of its own; the page says how many there are."""
    how = "files, rows, labels, tokenizers, configurations, models, disks; each a test"
    record("inputs", "Bad input is one line before the first step", how, f"{len(CASES)} kinds")
    assert len(CASES) >= 100
