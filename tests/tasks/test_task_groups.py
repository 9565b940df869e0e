"""Rows of one group are on one side of the split, and no text is on both."""

from __future__ import annotations

import pytest

from gpt_finetune.errors import InputError

ROWS = [{"text": f"text {i}", "label": "yes" if i % 3 else "no", "author": f"a{i // 4}"} for i in range(80)]


def sides(prepared, file_rows):
    authors = {row["text"]: row["author"] for row in file_rows}
    return [{authors[row.text] for row in prepared.texts[side]} for side in ("train", "validation")]


@pytest.mark.parametrize("fields", [{"validation_fraction": 0.25}, {"folds": 4, "fold": 1}])
def test_a_group_is_on_one_side(prepare, save_rows, fields):
    found = prepare(save_rows("a.jsonl", *ROWS), group_column="author", **fields)
    train, held_out = sides(found, ROWS)
    assert held_out
    assert not train & held_out
    assert len(train | held_out) == 20
    if "folds" not in fields:
        assert len(found.texts["validation"]) == 20
    without = prepare(save_rows("a.jsonl", *ROWS), **fields)
    assert set.intersection(*sides(without, ROWS))  # what the column is for


def test_folds_part_the_groups(prepare, save_rows):
    file = save_rows("a.jsonl", *ROWS)
    parts = [sides(prepare(file, group_column="author", folds=3, fold=fold), ROWS)[1] for fold in range(3)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 20


def test_a_text_of_two_groups_is_on_one_side(prepare, save_rows):
    rows = [{**row, "author": f"{row['author']}-{copy}"} for row in ROWS for copy in "xy"]
    for deduplicate in (True, False):
        found = prepare(
            save_rows("a.jsonl", *rows), group_column="author", deduplicate=deduplicate, validation_fraction=0.3
        )
        train, held_out = ({row.text for row in found.texts[side]} for side in ("train", "validation"))
        assert not train & held_out
        assert found.ledger.total["examples"]["held_out"] > 0


def test_groups_of_held_out_files_are_not_trained_on(prepare, save_rows):
    test = save_rows("test.jsonl", {"text": "new", "label": "no", "author": "a0"})
    found = prepare(save_rows("a.jsonl", *ROWS), validation=[test], group_column="author")
    assert found.ledger.total["examples"]["held_out"] == 4
    assert "a0" not in sides(found, [*ROWS, {"text": "new", "author": "a0"}])[0]


def test_a_row_without_a_group_is_named(prepare, save_rows):
    with pytest.raises(InputError, match=r"a\.jsonl:1.*no column 'authors'.*'author'"):
        prepare(save_rows("a.jsonl", *ROWS), group_column="authors")
    for bad in (None, "", 0.5):
        with pytest.raises(InputError, match=r"a\.jsonl:1.*the column 'author' names no group"):
            prepare(save_rows("a.jsonl", {**ROWS[0], "author": bad}), group_column="author")
