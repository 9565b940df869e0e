"""What a run changed, on its page and card: figures before and after, what was forgotten, answers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import Page, fill

from gpt_finetune.hub import write_card
from gpt_finetune.report import read_run, summary, write_report
from gpt_finetune.report.curves import panels_of
from gpt_finetune.report.page import questions

pytestmark = pytest.mark.drawn

FIRST = {"loss": 3.0, "perplexity": 20.1, "chrf": 12.0, "bleu": 0.0, "exact_match": 0.0, "stop_rate": 0.25}
LAST = {"loss": 2.0, "perplexity": 7.4, "chrf": 48.25, "bleu": 20.5, "exact_match": 0.5, "stop_rate": 1.0}
ROWS = [
    {"step": 0, "split": "eval", "answer_tokens": 64.0, "news_loss": 1.0, "news_bits_per_byte": 1.5, **FIRST},
    {"step": 1, "split": "train", "loss": 2.9, "tokens": 100},
    {"step": 9, "split": "eval", "answer_tokens": 11.5, "news_loss": 1.2, "news_bits_per_byte": 1.8, **LAST},
]
RECORD: dict[str, Any] = {
    "status": "finished",
    "figures": {"eval_loss": 2.0, "eval_tokens": 500, "answer_tokens": 11.5}
    | {key: value for key, value in LAST.items() if key != "loss"},
    "forgetting": {"news": {"before": {"bits_per_byte": 1.5}, "after": {"bits_per_byte": 1.8, "perplexity": 4.0}}},
}


def told(step: int, prompt: str, answer: str, stopped: bool = True, **more: Any) -> dict[str, Any]:
    row = {"step": step, "prompt": prompt, "reference": f"right {prompt}", "answer": answer}
    return {**row, "tokens": len(answer), "stopped": stopped, **more}


ANSWERS = [
    told(0, "春天？", "花花花", stopped=False),
    told(0, "a `b` | <c>", "x" * 64, stopped=False),
    told(5, "春天？", "between"),
    told(9, "春天？", "处处闻啼鸟"),
    told(9, "a `b` | <c>", "<script>alert()</script> hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567", reference="right"),
    told(9, "only at the end", "s"),
]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = fill(tmp_path / "tuned", RECORD, ROWS)
    lines = [json.dumps(row, ensure_ascii=False) for row in ANSWERS]
    (folder / "answers.jsonl").write_text("\n".join([*lines, '{"step": 9, "prom']), encoding="utf-8")
    return folder


def page(folder: Path) -> Page:
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_figures_before_and_after_stand_side_by_side(run_dir: Path) -> None:
    rows = {row.label: row for row in summary.changes(read_run(run_dir))}
    assert list(rows)[:3] == ["Validation loss", "Perplexity", "chrF"]
    assert (rows["chrF"].before, rows["chrF"].after, rows["chrF"].improved) == ("12.0", "48.2", True)
    assert (rows["Validation loss"].before, rows["Validation loss"].after) == ("3.000", "2.000")
    assert (rows["Ended by the model"].before, rows["Ended by the model"].after) == ("25.0%", "100.0%")
    assert rows["Validation loss"].improved is True
    assert rows["Length of an answer"].improved is None
    assert "Held-out tokens" not in rows
    shown = page(run_dir)
    assert "chrF12.048.2of 100" in [row.strip() for row in shown.under("table.changes").split("\n")]


def test_worse_is_not_called_better(run_dir: Path) -> None:
    (name, rows), *others = summary.forgetting(read_run(run_dir))
    assert (name, others) == ("news", [])
    assert [(row.label, row.before, row.after, row.improved) for row in rows] == [
        ("Bits per byte", "1.500", "1.800", False)
    ]
    html = (write_report(run_dir)).read_text(encoding="utf-8")
    assert 'class="count worse">1.800<' in html
    assert 'class="count better">48.2<' in html


def test_answers_beside_the_reference(run_dir: Path) -> None:
    first, second, third = questions(read_run(run_dir))
    assert (first.prompt, first.reference) == ("春天？", "right 春天？")
    assert [(reply.step, reply.text, reply.ending) for reply in first.replies] == [
        ("before training", "花花花", "cut by the limit after 3 tokens"),
        ("step 9", "处处闻啼鸟", "ended by the model after 5 tokens"),
    ]
    assert [reply.step for reply in second.replies] == ["step 9"]  # another reference: not the same question
    assert [(reply.step, reply.ending) for reply in third.replies] == [("step 9", "ended by the model after 1 token")]
    shown = page(run_dir)
    found = [text for path, text in shown.texts if "pre.answer" in path]
    assert found == ["花花花", "处处闻啼鸟", "<script>alert()</script> [redacted]", "s"]
    assert not [tag for tag, _ in shown.tags if tag == "script"]
    assert "1 unreadable line was left out of answers.jsonl" in shown.under("div.notes card")


def test_curves_of_answers_and_of_watched_data(run_dir: Path) -> None:
    assert [panel.title for panel in panels_of(read_run(run_dir))] == [
        "Loss",
        "chrF of the answers",
        "Answers that the model ended",
        "Watched: news",
    ]
    assert (run_dir / "curves.png").exists() is False
    assert "Watched: news" in [attrs.get("aria-label") for tag, attrs in page(run_dir).tags if tag == "svg"]


def test_the_card_says_it_too(run_dir: Path) -> None:
    text = write_card(run_dir).read_text(encoding="utf-8")
    assert "| chrF | 12.0 | 48.2 | of 100 |" in text
    assert "| news | Bits per byte | 1.500 | 1.800 |" in text
    assert "Model, before training (cut by the limit after 3 tokens):\n\n```text\n花花花\n```" in text
    assert "only at the end" not in text  # the first two are enough for a card
    assert "type: chrf" in text
    assert "type: answer_tokens" not in text


def test_a_run_cut_short_still_says_what_it_reached(run_dir: Path) -> None:
    (run_dir / "run.json").write_text('{"status": "running"}', encoding="utf-8")
    run = read_run(run_dir)
    assert run.figures["chrf"] == 48.25
    assert {row.label: row.after for row in summary.changes(run)}["chrF"] == "48.2"
    assert page(run_dir).under("div.replies")


def test_baselines_say_it_where_the_metrics_do_not(tmp_path: Path) -> None:
    before = {"eval_loss": 3.5, "eval_tokens": 500}
    run = read_run(fill(tmp_path / "r", RECORD | {"baselines": {"before training": before}}))
    assert [(row.label, row.before) for row in summary.changes(run)] == [("Validation loss", "3.500")]


@pytest.mark.parametrize("text", ["", "\n", "[]\n", '{"step": "x"}\n', '{"step": 3, "stopped": 4, "tokens": "many"}\n'])
def test_odd_answers_are_survived(tmp_path: Path, text: str) -> None:
    folder = fill(tmp_path / "r", {"forgetting": {"a": 3, "b": {"before": None, "after": [1]}}}, [])
    (folder / "answers.jsonl").write_text(text, encoding="utf-8")
    shown = page(folder)
    assert ("h2" in [tag for tag, _ in shown.tags]) and "Forgetting" not in [text for _, text in shown.texts]
    write_card(folder)


def test_a_run_that_asked_nothing_has_no_such_sections(tmp_path: Path) -> None:
    folder = fill(tmp_path / "r", {"figures": {"eval_loss": 2.0}}, [{"step": 3, "split": "eval", "loss": 2.0}])
    texts = [text for _, text in page(folder).texts]
    assert not {"Answers", "Before and after", "Forgetting"} & set(texts)
    assert "## Answers" not in write_card(folder).read_text(encoding="utf-8")
