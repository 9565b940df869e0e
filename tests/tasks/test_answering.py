"""Questions with answers in a text: offsets, windows, the best spans, no answer, and rows that are refused."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest

from gpt_finetune import metrics
from gpt_finetune.errors import InputError
from gpt_finetune.metrics.answers import score_answers
from gpt_finetune.tasks.answer_config import AnswerDataConfig, SpanConfig
from gpt_finetune.tasks.answer_judging import first_sentence, longest_phrase
from gpt_finetune.tasks.answering import prepare_answers
from gpt_finetune.tasks.config import RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer
from gpt_finetune.tasks.spans import PairEncoder, SpanCollator, SpanRows, Window, best_spans, decide, read_row

LIFE = "曾致堯（九四七～一○一二），字正臣，撫州南豐（今屬江西）人。"
TEXT = "Saginaw: a town in east central Michigan on an arm of Lake Huron"


@pytest.fixture
def tokenizer(make_tokenizer):
    return padded_tokenizer(make_tokenizer(), 64)


@pytest.fixture
def prepare(tokenizer, tmp_path):
    """Return a maker of prepared rows: of rows, with further fields of the section."""

    def make(rows, **fields):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        fields = {"max_length": 64, "question_length": 24, "overlap": 16, "validation_fraction": 0.5, **fields}
        config = AnswerDataConfig(sources=[RowSourceConfig(str(file))], **fields)
        return prepare_answers(config, tokenizer, SpanConfig())

    return make


def ask(context=TEXT, answers=("Michigan",), start=None, question="Where is it?", **more):
    start = [context.index(answer) for answer in answers] if start is None else start
    return {"question": question, "context": context, "answers": list(answers), "start": start, **more}


OTHER = ask("Lima: a city in Peru", ["Peru"])
OTHERS = [ask(f"{name}: a city in Peru", ["Peru"]) for name in ("Lima", "Ica", "Puno", "Piura", "Tacna")]


def told(data):
    """Return what the windows say are the answers, by question and context."""
    found = {}
    for side, rows in data.texts.items():
        for row, window in zip(rows, getattr(data, side).windows, strict=True):
            place = window.characters(window.start, window.end) if window.has_answer else (0, 0)
            found[row.target.question, row.target.context] = row.target.context[slice(*place)].strip()
    return found


@pytest.mark.parametrize(("context", "answer"), [(TEXT, "Michigan"), (TEXT, "Saginaw"), (TEXT, "Lake Huron")])
def test_a_window_marks_the_answer_by_columns(tokenizer, context, answer):
    encoder = PairEncoder(tokenizer, 160, 24, 16)
    (row,) = encoder.tokenize(["Where?"], [context])
    begin = context.index(answer)
    (window,) = encoder.windows(row, [(begin, begin + len(answer))])
    first, last = window.bounds
    assert tokenizer.decode(window.ids[:first]) == "Where?\n"
    assert tokenizer.decode(window.ids[first:last]) == context
    assert window.ids[-1] == tokenizer.eos_token_id
    assert len(window.ids) == last + 1
    assert tokenizer.decode(window.ids[window.start : window.end + 1]).strip() == answer
    assert context[slice(*window.characters(window.start, window.end))].strip() == answer


def test_characters_of_several_tokens_are_found_whole(tokenizer):
    encoder = PairEncoder(tokenizer, 160, 24, 16)
    (row,) = encoder.tokenize(["字什麽？"], [LIFE])
    assert len(row.context) > len(LIFE)  # bytes, of which several make a character
    begin = LIFE.index("撫州南豐")
    (window,) = encoder.windows(row, [(begin, begin + 4)])
    assert LIFE[slice(*window.characters(window.start, window.end))] == "撫州南豐"
    assert tokenizer.decode(window.ids[window.start : window.end + 1]) == "撫州南豐"


def test_an_answer_over_the_edge_of_a_window_stands_whole_in_its_neighbour(tokenizer):
    encoder = PairEncoder(tokenizer, 40, 24, 12)
    (row,) = encoder.tokenize(["Where?"], [TEXT])
    room = 40 - len(row.question) - 1
    edge = int(row.offsets[room - 1, 1])  # the first window's last character
    begin = edge - 3
    made = encoder.windows(row, [(begin, edge + 3)])
    assert not made[0].has_answer
    assert (made[0].start, made[0].end) == (made[0].bounds[1],) * 2
    assert made[1].has_answer
    assert all(len(window.ids) <= 40 for window in made)
    covered = set().union(*(range(w.offsets[0, 0], w.offsets[-1, 1]) for w in made))
    assert covered == set(range(len(TEXT)))
    said = TEXT[slice(*made[1].characters(made[1].start, made[1].end))]
    assert TEXT[begin : edge + 3] in said


def test_the_best_spans_are_those_of_brute_force():
    generator = np.random.default_rng(0)
    for length, most, n in ((9, 3, 5), (4, 9, 20), (1, 1, 2)):
        start, end = generator.normal(size=(2, length + 3))
        found = best_spans(start, end, (2, 2 + length), SpanConfig(most, n))
        pairs = [
            (i, j, start[i] + end[j]) for i, j in itertools.product(range(2, 2 + length), repeat=2) if i <= j < i + most
        ]
        expected = sorted(pairs, key=lambda pair: -pair[2])[:n]
        np.testing.assert_allclose(found, np.array(expected), rtol=1e-12)
    assert best_spans(start, end, (2, 2), SpanConfig()).shape == (0, 3)


def window(bounds, offsets):
    return Window(np.zeros(bounds[1] + 1, np.int32), bounds, np.array(offsets), bounds[1], bounds[1])


def test_the_window_that_is_surest_answers_and_none_does_below_the_threshold():
    config, context = SpanConfig(2, 3), "ab cd"
    one, two = window((1, 3), [(0, 1), (1, 2)]), window((1, 3), [(2, 4), (4, 5)])
    unsure = read_row(np.array([0, 1, 0, 5.0]), np.array([0, 0, 1, 5.0]), (1, 3), (3, 3), config)
    sure = read_row(np.array([0, 9, 0, 0.0]), np.array([0, 0, 9, 0.0]), (1, 3), (1, 2), config)
    said = decide(context, [(one, unsure), (two, sure)], config)
    assert (said.answer, said.start, said.end) == ("cd", 3, 5)  # without the space in front
    assert said.score > 0.99
    assert said.n_best[0]["answer"] == "cd"
    assert len({(each["start"], each["end"]) for each in said.n_best}) == len(said.n_best) == 3
    none = decide(context, [(one, unsure)], config)
    assert (none.answer, none.start) == ("", None)
    assert none.n_best
    assert none.score == pytest.approx(float(np.exp(unsure[0, 2])))
    assert decide(context, [(two, sure)], SpanConfig(2, 3, threshold=50)).answer == ""
    assert decide(context, [(one, unsure)], SpanConfig(2, 3, threshold=-50)).answer == "ab"


def test_padding_and_neighbours_change_nothing(tokenizer):
    encoder = PairEncoder(tokenizer, 64, 24, 16)
    rows = SpanRows([w for row in encoder.tokenize(["a?", "where?"], ["b", "c d"]) for w in encoder.windows(row)], True)
    batch = SpanCollator(0, 64)([rows[0], rows[1]])
    assert batch["attention_mask"].sum(-1).tolist() == [len(w.ids) for w in rows.windows]
    assert batch["end_positions"].tolist() == [len(w.ids) - 1 for w in rows.windows]
    assert batch["bounds"].tolist() == [list(w.bounds) for w in rows.windows]
    assert batch["numbers"].tolist() == [0, 1]


def test_forms_of_answers_mean_the_same(prepare):
    nested = {"question": "Where is it?", "context": TEXT} | {
        "answers": {"text": ["Michigan"], "answer_start": [TEXT.index("Michigan")]}
    }
    single = {"question": "Where?", "context": TEXT, "answers": "Michigan", "start": TEXT.index("Michigan")}
    plain = {"question": "And where?", "context": TEXT, "answers": ["Michigan"]}
    nothing = {"question": "Who?", "context": TEXT, "answers": None}
    said = told(prepare([nested, single, plain, nothing, *OTHERS], max_length=160))
    assert [said[q, TEXT] for q in ("Where is it?", "Where?", "And where?")] == ["Michigan"] * 3
    assert said["Who?", TEXT] == ""


def test_questions_on_one_text_are_on_one_side(prepare):
    rows = [ask(f"{name} is in {name}land", [f"{name}land"], question=q) for name in "abcdefgh" for q in ("a?", "b?")]
    data = prepare(rows, max_length=160)
    sides = [{row.target.context for row in data.texts[side]} for side in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert len(data.texts["validation"]) == 8
    assert len(data.asked) == len(data.references) == 8


def test_answers_at_a_wrong_place_are_moved_or_dropped_and_counted(prepare):
    moved = prepare([ask(start=[3]), OTHER], max_length=160)
    assert moved.facts["moved_answers"] == 1
    assert told(moved)["Where is it?", TEXT] == "Michigan"
    rows = [ask(answers=["Ohio"], start=[0], question="Which?"), ask(), *OTHERS]
    dropped = prepare(rows, max_length=160, on_missing="drop")
    assert dropped.ledger.total["examples"]["not_in_text"] == 1
    assert ("Which?", TEXT) not in told(dropped)


def test_windows_without_the_answer_teach_that_there_is_none_or_nothing(prepare):
    long = " ".join(f"word{i}" for i in range(40)) + " Peru " + " ".join(f"word{i}" for i in range(40, 60))
    rows = [ask(long, ["Peru"]), ask(f"{long}.", ["Peru"])]
    taught, skipped = (prepare(rows, other_windows=way) for way in ("no_answer", "skip"))
    assert len(taught.train) > len(skipped.train) > 0
    assert all(window.has_answer for window in skipped.train.windows)
    assert sum(window.has_answer for window in taught.train.windows) == len(skipped.train)
    assert len(taught.validation) == len(skipped.validation)
    assert taught.facts["windowed_texts"] == 2


def test_the_fingerprint_knows_where_answers_stand(prepare):
    same = [prepare([ask(), OTHER], max_length=160).fingerprint for _ in range(2)]
    assert same[0] == same[1] != prepare([ask(answers=["town"]), OTHER], max_length=160).fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ask(answers=["Ohio"], start=[0]), r"rows\.jsonl:1 = 'Ohio': it does not stand in the context"),
        (ask(answers=["a"], start=[0]), r"it stands several times, but not at 0"),
        (ask(question=" "), r"rows\.jsonl:1, question = ' ': the text is empty"),
        (ask(context="", answers=[]), r"rows\.jsonl:1, context = '': the text is empty"),
        ({"context": TEXT, "answers": []}, "no column 'question', which data.question_column names"),
        (ask(answers=[""]), "it is no answer, or an empty one"),
        (ask(answers=[], start=[4]), "where each of 0 answers begins"),
        (ask(start=["9"]), "where each of 1 answers begins"),
        ({**ask(), "answers": 7}, "the answers are int, not a list of texts"),
        ({**ask(), "answers": {"texts": []}}, "a mapping without 'text'"),
        ({**ask(), "question": 7}, "the text is int, not text"),
    ],
)
def test_bad_rows_are_refused_by_name(prepare, row, message):
    with pytest.raises(InputError, match=message):
        prepare([row, OTHER])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 30}, r"data\.max_length = 30: .* leave no room below 45"),
        ({"question_length": 0}, r"data\.question_length = 0"),
        ({"context_column": "question"}, r"data\.context_column = 'question': data\.question_column names the same"),
        ({"strict": True, "question_length": 2}, r"data\.strict=true"),
    ],
)
def test_bad_fields_are_refused(prepare, fields, message):
    with pytest.raises(InputError, match=message):
        prepare([ask(), OTHER], **fields)
    with pytest.raises(InputError, match=r"spans\.n_best = 0"):
        SpanConfig(n_best=0)
    with pytest.raises(InputError, match="no training row has an answer"):
        prepare([ask(answers=[]), ask(OTHER["context"], [])])


def test_answers_are_scored_as_squad_scores_them():
    predictions = ["The  Lake", "big lake", "撫州", "", "x", "", "the"]
    references = [["lake!"], ["the lake", "sea"], ["撫州南豐"], [], [], ["y"], ["the"]]
    scores = score_answers(predictions, references)
    assert scores[:, 0].tolist() == [1, 0, 0, 1, 0, 0, 1]
    np.testing.assert_allclose(scores[:, 1], [1, 2 / 3, 2 / 3, 1, 0, 0, 1])
    assert scores[:, 2].tolist() == [1, 1, 1, 1, 0, 0, 1]
    found = metrics.load("answers").compute(predictions=predictions, references=references)
    assert found == pytest.approx({"exact_match": 3 / 7, "token_f1": scores[:, 1].mean(), "no_answer_accuracy": 5 / 7})


def test_exact_match_and_f1_agree_with_those_of_single_texts():
    chance, words = random.Random(0), ["a", "lake", "sea", "the", "Big"]
    texts = [" ".join(chance.choices(words, k=chance.randint(1, 3))) + " x" for _ in range(40)]
    right = texts[20:] + texts[:20]
    theirs = metrics.load("token_f1").compute(predictions=texts, references=right)["token_f1"]
    assert score_answers(texts, [[text] for text in right])[:, 1].mean() == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("context", "sentence", "phrase"),
    [
        ("A dog barks. It is loud.", "A dog barks.", "dog barks"),
        (TEXT, TEXT, "east central Michigan"),
        (LIFE, LIFE, "撫州南豐"),
        ("Pi is 3.14 here! No?", "Pi is 3.14 here!", "Pi"),
        ("…", "…", ""),
    ],
)
def test_answers_without_a_model(context, sentence, phrase):
    assert first_sentence(context) == sentence
    assert longest_phrase(context) == phrase
