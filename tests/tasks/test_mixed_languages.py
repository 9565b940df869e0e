"""Texts of several languages and scripts, in one file and in one text: nothing of them is lost or taken for another."""

from __future__ import annotations

import numpy as np
import pytest

from gpt_finetune.metrics.words import is_unspaced
from gpt_finetune.tasks.answer_config import AnswerDataConfig, SpanConfig
from gpt_finetune.tasks.answering import prepare_answers
from gpt_finetune.tasks.baselines import run_baselines
from gpt_finetune.tasks.config import RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer

KIND = ["very good", "很好", "très bien", "очень хорошо", "とても良い", "good 很好 👍🏽"]
UNKIND = ["very bad", "很差", "très mauvais", "очень плохо", "とても悪い", "bad 很差 👎🏽"]
ROWS = [
    {"text": f"{i} {said}", "label": label}
    for label, side in (("好 good", KIND), ("bad", UNKIND))
    for said in side
    for i in range(4)
]


def test_texts_come_back_whole_and_labels_keep_their_names(prepare, save_rows):
    data = prepare(save_rows("rows.jsonl", *ROWS), packing=False)
    assert data.labels.names == ("bad", "好 good")
    assert data.ledger.total["examples"]["total"] == len(ROWS) == sum(map(len, data.texts.values()))
    written = {row.text for rows in data.texts.values() for row in rows}
    assert written == {row["text"] for row in ROWS}
    for i in range(len(data.train)):
        ids = data.train[i]["input_ids"].tolist()
        assert data.tokenizer.decode(ids, skip_special_tokens=True) in written


def test_equal_texts_of_other_unicode_forms_are_one(prepare, save_rows):
    twice = [{"text": "caf\u00e9 1", "label": "bad"}, {"text": "cafe\u0301 \uff11", "label": "bad"}]
    found = prepare(save_rows("rows.jsonl", *ROWS, *twice))
    assert found.ledger.total["examples"]["duplicate"] == 1


@pytest.mark.parametrize(("share", "by_character"), [(0.2, False), (0.9, True)])
def test_the_baseline_reads_characters_where_most_texts_have_no_spaces(share, by_character):
    spaced, unspaced = ("a good film", "a bad film"), ("这部电影很好", "这部电影很差")
    texts = [(unspaced if i < share * 40 else spaced)[i % 2] + str(i) for i in range(40)]
    assert is_unspaced(texts) == by_character
    labels = np.arange(40) % 2
    said = run_baselines("single_label_classification", texts, labels, texts)
    assert (said["TF-IDF + logistic regression"].predictions == labels).mean() > (0.95 if by_character else 0.75)


def test_an_answer_keeps_its_characters_whatever_stands_around_it(save_rows, make_tokenizer):
    context = "The café «北京» of Zoë 👩‍👩‍👧 opened in 1999年 — Москва said."
    answers = ["café", "北京", "Zoë", "👩‍👩‍👧", "1999年", "Москва"]
    rows = [{"question": f"{i}?", "context": context + str(i), "answers": [one]} for i, one in enumerate(answers)]
    file = save_rows("rows.jsonl", *rows)
    tokenizer = padded_tokenizer(make_tokenizer(), 256)
    config = AnswerDataConfig([RowSourceConfig(str(file))], validation_fraction=0.4)
    data = prepare_answers(config, tokenizer, SpanConfig())
    for side, windows in (("train", data.train.windows), ("validation", data.validation.windows)):
        asked = {row.target.question: row.target for row in data.texts[side]}
        assert len(windows) == len(asked) > 0
        for window in windows:
            begin, end = window.characters(window.start, window.end)
            assert any(one.answers[0] in one.context[begin:end] for one in asked.values())
            assert end - begin <= 9
