"""Rows of a task: what is read, dropped, held out, refused; and that the books balance."""

from __future__ import annotations

import gzip
import json

import pytest

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import ClassifyDataConfig, JudgeConfig, RowSourceConfig

FEW = [{"text": f"text {i}", "label": "yes" if i % 3 else "no"} for i in range(40)]


def texts(prepared, side):
    return {row.text for row in prepared.texts[side]}


def test_duplicates_and_contradictions_go_and_are_counted(prepare, save_rows):
    rows = [
        *FEW,
        {"text": " TEXT   1", "label": "yes"},  # spaces and case apart, a text that was there
        {"text": "ｔｅｘｔ 2", "label": "yes"},  # full-width letters
        {"text": "torn", "label": "yes"},
        {"text": "Torn", "label": "no"},
        {"text": "torn", "label": "yes"},
    ]
    found = prepare(save_rows("a.jsonl", *rows))
    counts = found.ledger.total["examples"]
    assert counts["total"] == 45
    assert (counts["duplicate"], counts["contradictory"], counts["dropped"]) == (2, 3, 5)
    assert counts["train"] + counts["validation"] == 40
    assert not {"torn", "Torn"} & (texts(found, "train") | texts(found, "validation"))
    tokens = found.ledger.total["tokens"]
    assert tokens["total"] == tokens["trained"] + tokens["validation"] + tokens["dropped"]


def test_no_text_is_on_both_sides_even_where_duplicates_stay(prepare, save_rows):
    rows = [{**row, "text": row["text"].upper() if copy else row["text"]} for row in FEW for copy in range(2)]
    found = prepare(save_rows("a.jsonl", *rows), deduplicate=False, validation_fraction=0.3)
    train, held_out = ({text.lower() for text in texts(found, side)} for side in ("train", "validation"))
    assert len(train) == 28
    assert len(held_out) == 12
    assert not train & held_out
    assert found.ledger.total["examples"]["train"] == 56


def test_the_split_depends_on_texts_and_seed_only(prepare, save_rows):
    first = prepare(save_rows("a.jsonl", *FEW))
    turned = prepare(save_rows("b.jsonl", *reversed(FEW)))
    assert texts(first, "validation") == texts(turned, "validation")
    assert len(texts(first, "validation")) == 4
    assert texts(prepare(save_rows("a.jsonl", *FEW), seed=1), "validation") != texts(first, "validation")


def test_folds_part_the_texts(prepare, save_rows):
    file = save_rows("a.jsonl", *FEW)
    parts = [texts(prepare(file, folds=4, fold=fold), "validation") for fold in range(4)]
    assert sum(map(len, parts)) == len(FEW)
    assert set().union(*parts) == {row["text"] for row in FEW}


def test_training_rows_that_are_held_out_go_and_are_counted(prepare, save_rows):
    train, test = save_rows("train.jsonl", *FEW), save_rows("test.jsonl", *FEW[:5], {"text": "new", "label": "no"})
    found = prepare(train, validation=[test])
    assert found.ledger.total["examples"]["held_out"] == 5
    assert len(texts(found, "train")) == 35
    assert "new" in texts(found, "validation")
    assert found.ledger.to_dict()["sources"][0]["examples"] == {"total": 6, "validation": 6}


def test_labels_are_sorted_whatever_they_are(prepare, save_rows):
    def named(*values, **fields):
        rows = [{"text": f"text {i}", "label": values[i % len(values)]} for i in range(20)]
        return prepare(save_rows("a.jsonl", *rows), **fields)

    assert named("b", "a", " b ").labels.names == ("a", "b")
    assert named(10, 9, 2).labels.names == ("2", "9", "10")
    assert named(True, False).labels.names == ("False", "True")
    several = named(["b", "a"], [], ["c"])
    assert several.labels.names == ("a", "b", "c")
    assert several.labels.problem == "multi_label_classification"
    assert sorted(several.targets["train"].sum(1).tolist())[-1] == 2
    numbers = named(0.5, 1, "2.5", problem_type="regression", label_column="label")
    assert set(numbers.targets["train"].ravel().tolist()) <= {0.5, 1.0, 2.5}


@pytest.mark.parametrize("suffix", ["jsonl.gz", "json", "csv", "tsv", "parquet"])
def test_every_format(prepare, save_rows, tmp_path, suffix):
    file = tmp_path / f"rows.{suffix}"
    lines = [f"{row['text']},{row['label']}\n".replace(",", "\t" if suffix == "tsv" else ",") for row in FEW]
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(FEW), file)
    elif suffix == "json":
        file.write_text(json.dumps(FEW))
    elif suffix == "jsonl.gz":
        file.write_bytes(gzip.compress(save_rows("plain.jsonl", *FEW).read_bytes()))
    else:
        file.write_text(("text\tlabel\n" if suffix == "tsv" else "text,label\n") + "".join(lines))
    assert prepare(file).fingerprint == prepare(save_rows("same.jsonl", *FEW)).fingerprint


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": " \n", "label": "no"}], r"a\.jsonl:1 = ' \\n': the text is empty"),
        ([{"text": 5, "label": "no"}], r"a\.jsonl:1 = 5: the text is int"),
        ([{"texts": "a", "label": "no"}], r"a\.jsonl:1.*no column 'text'.*Did you mean 'texts'"),
        ([{"text": "a", "lable": "no"}], r"a\.jsonl:1.*no column 'label'.*Did you mean 'lable'"),
        ([{"text": "a", "label": None}], r"a\.jsonl:1 = None: the label is NoneType"),
        ([{"text": "a", "label": ""}], r"a\.jsonl:1 = '': the label is empty"),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": 1}],
            r"a\.jsonl:2 = 1: the label is an integer, and that",
        ),
        ([{"text": "a", "label": 1}, {"text": "b", "label": True}], r"a\.jsonl:2 = True: the label is a boolean"),
        ([{"text": "a", "label": 0.5}], r"a\.jsonl:1 = 0\.5.*problem_type=regression"),
        ([{"text": "a", "label": ["x"]}, {"text": "b", "label": "x"}], r"a\.jsonl:2 = 'x': the label is no list"),
        ([{"text": f"{i}", "label": "x"} for i in range(30)], r"all training rows have one label"),
        (["only a text"], r"a\.jsonl:1 = 'only a text': the row has no columns"),
        ([{"text": "a", "label": "x"}, {"text": "A", "label": "y"}], r"no text is left to train on: 2 contradictory"),
    ],
)
def test_bad_rows_are_named(prepare, save_rows, rows, message):
    with pytest.raises(InputError, match=message):
        prepare(save_rows("a.jsonl", *rows))


def test_an_unknown_label_at_evaluation_is_named(prepare, save_rows):
    held_out = save_rows("test.jsonl", {"text": "new", "label": "yess"})
    with pytest.raises(InputError, match=r"test\.jsonl:1 = 'yess': no training row has.*'yes'"):
        prepare(save_rows("a.jsonl", *FEW), validation=[held_out])


def test_numbers_must_be_numbers(prepare, save_rows):
    for bad in ("much", True, None, float("nan")):
        with pytest.raises(InputError, match=r"a\.jsonl:1.*the label is no number"):
            prepare(save_rows("a.jsonl", {"text": "a", "label": bad}), problem_type="regression")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation_fraction": 0}, r"data\.validation_fraction = 0"),
        ({"folds": 1}, r"data\.folds = 1"),
        ({"folds": 3, "fold": 3}, r"data\.fold = 3.*Give 0 to 2"),
        ({"fold": 1}, r"data\.fold = 1.*Set data\.folds"),
        ({"label_column": "text"}, r"data\.label_column = 'text'"),
        ({"max_length": 0}, r"data\.max_length = 0"),
        ({"seed": -1}, r"data\.seed = -1"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(InputError, match=message):
        ClassifyDataConfig([RowSourceConfig("a.jsonl")], **fields).validate()


def test_bad_sections():
    with pytest.raises(InputError, match=r"data\.sources"):
        ClassifyDataConfig().validate()
    for path in ("", "embedded:python", "package:name"):
        with pytest.raises(InputError, match=r"data\.sources\[0\]\.path"):
            ClassifyDataConfig([RowSourceConfig(path)]).validate()
    with pytest.raises(InputError, match=r"judge\.metric = 'acuracy'.*'accuracy'"):
        JudgeConfig(metric="acuracy")
    with pytest.raises(InputError, match=r"judge\.metric = 'mse'"):
        JudgeConfig(metric="mse").chosen("single_label_classification")
    with pytest.raises(InputError, match=r"judge\.class_weights"):
        JudgeConfig(class_weights="balanced").chosen("regression")
