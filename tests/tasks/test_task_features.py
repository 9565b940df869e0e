"""Tokens of a task: as a pipeline's, cut where training cuts, and scored alike packed and padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gpt_finetune.data.packing import IGNORED
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.labels import sigmoid, softmax
from gpt_finetune.tasks.training import WeightedLoss, balanced

ROWS = [{"text": "def add " * (1 + i % 7) + str(i), "label": "xyz"[i % 3]} for i in range(60)]


def batches(rows, collate, size=4):
    return [
        collate([rows[i] for i in range(begin, min(len(rows), begin + size))]) for begin in range(0, len(rows), size)
    ]


def test_packed_texts_are_scored_as_alone(prepare, save_rows, make_config):
    from gpt_finetune import GPTForSequenceClassification

    model = GPTForSequenceClassification(make_config("gpt2", num_labels=3, initializer_range=0.2)).eval()
    packed = prepare(save_rows("a.jsonl", *ROWS), max_length=48)
    padded = prepare(save_rows("a.jsonl", *ROWS), max_length=48, packing=False)
    assert len(packed.train) < len(padded.train)
    with torch.no_grad():
        alone = torch.cat([model(**batch).logits for batch in batches(padded.train, padded.collate)])
        losses, count = 0.0, 0
        for begin in range(0, len(packed.train), 3):
            rows = [packed.train[i] for i in range(begin, min(begin + 3, len(packed.train)))]
            batch = packed.collate(rows)
            output = model(**batch)
            real = batch["labels"] != IGNORED
            numbers = [n for i in range(begin, begin + len(rows)) for n in packed.train.rows[i]]
            assert int(real.sum()) == len(numbers)
            torch.testing.assert_close(output.logits[real], alone[numbers], rtol=1e-5, atol=1e-5)
            losses += float(output.loss) * len(numbers)
            count += len(numbers)
    assert count == len(alone)
    expected = nn.functional.cross_entropy(alone, torch.from_numpy(padded.targets["train"]))
    assert losses / count == pytest.approx(float(expected), rel=1e-5)


def test_held_out_rows_are_numbered_and_come_longest_first(prepare, save_rows):
    found = prepare(save_rows("a.jsonl", *ROWS), validation_fraction=0.5)
    sizes = [len(found.validation[i]["input_ids"]) for i in range(len(found.validation))]
    assert sizes == sorted(sizes, reverse=True)
    batch = found.collate([found.validation[1], found.validation[0]])
    assert batch["numbers"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [sizes[1], sizes[0]]


def test_long_texts_are_cut_and_counted_as_the_tokenizer_cuts(prepare, save_rows):
    rows = [{"text": f"{i} " + "a b " * 50 if i % 2 else f"{i}", "label": "xy"[i % 2]} for i in range(20)]
    found = prepare(save_rows("a.jsonl", *rows), max_length=16)
    assert found.ledger.truncated_examples == 10
    assert found.ledger.total["tokens"]["truncated"] > 0
    for number, row in enumerate(found.texts["train"]):
        expected = found.tokenizer(row.text, truncation=True)["input_ids"]
        begin, end = found.train.starts[number : number + 2]
        assert found.train.ids[begin:end].tolist() == expected
        assert len(expected) <= 16
    with pytest.raises(InputError, match=r"a\.jsonl:2.*tokens, and data\.strict=true.*data\.max_length="):
        prepare(save_rows("a.jsonl", *rows), max_length=16, strict=True)


def test_several_labels_and_numbers_pack_too(prepare, save_rows, make_config):
    from gpt_finetune import GPTForSequenceClassification

    for values, problem in (([["x"], ["y", "x"], []], "auto"), ([0.1, 0.5, 2], "regression")):
        rows = [{"text": row["text"], "label": values[i % 3]} for i, row in enumerate(ROWS)]
        found = prepare(save_rows("a.jsonl", *rows), problem_type=problem, max_length=48)
        count = len(found.labels.names)
        config = make_config("gpt2", num_labels=count, problem_type=found.labels.problem)
        output = GPTForSequenceClassification(config)(
            **found.collate([found.train[0], found.train[len(found.train) - 1]])
        )
        assert output.loss.isfinite()
        assert output.logits.shape[1] == count


def test_weights_are_balanced_and_change_training_only():
    labels = np.array([0, 0, 0, 1])
    weights = balanced(labels, 3)
    assert weights.tolist() == pytest.approx([4 / 6, 2.0, 0.0])
    assert weights[labels].mean() == pytest.approx(1)
    logits = torch.randn(4, 3, requires_grad=True)
    outputs, targets = {"logits": logits}, torch.tensor([0, 1, IGNORED, 0])
    each = nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)
    loss = WeightedLoss(weights)
    expected = (each[0] * 4 / 6 + each[1] * 2 + each[3] * 4 / 6) / 3
    torch.testing.assert_close(loss(outputs, targets), expected)
    torch.testing.assert_close(loss(outputs, targets, num_items_in_batch=6), expected / 2)
    with torch.no_grad():
        torch.testing.assert_close(loss(outputs, targets), each.sum() / 3)


def test_probabilities_are_torchs():
    logits = np.array([[-800.0, 0.5, 800.0], [1.0, 2.0, -3.0]])
    np.testing.assert_allclose(softmax(logits), torch.from_numpy(logits).softmax(-1).numpy(), atol=1e-12)
    np.testing.assert_allclose(sigmoid(logits), torch.from_numpy(logits).sigmoid().numpy(), atol=1e-12)
