"""Packing and batches: nothing is cut, nothing leaks, and it trains as the same examples in rows of their own."""

from __future__ import annotations

import random

import pytest
import torch
from supervised_helpers import chat
from transformers import Trainer, TrainingArguments

from gpt_finetune.supervised.rows import pack


def rows(count: int, seed: int = 0):
    chance = random.Random(seed)
    words = ["what", "is", "the", "answer", "你好", "天气", "很好", "42"]

    def text() -> str:
        return " ".join(chance.choices(words, k=chance.randint(1, 12)))

    return [chat(f"{i} {text()}", text(), *([text(), text()] if i % 3 == 0 else [])) for i in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_decreasing(seed):
    chance = random.Random(seed)
    width = chance.choice([8, 64, 512])
    lengths = [chance.randint(1, width) for _ in range(chance.randint(1, 200))]
    packed = pack(lengths, width)
    assert sorted(item for row in packed for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= width for row in packed)
    assert len(packed) <= 11 / 9 * -(-sum(lengths) // width) + 4 or min(lengths) > width / 2
    # by definition: each item went into the fullest row that had room
    slow: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [room for room in slow if room >= length]
        if fits:
            slow.remove(min(fits))
        slow.append((min(fits) if fits else width) - length)
    assert sorted(width - sum(lengths[item] for item in row) for row in packed) == sorted(slow)


def test_packing_is_quick():
    lengths = [random.Random(i).randint(5, 600) for i in range(100_000)]
    assert sum(lengths) / (2048 * len(pack(lengths, 2048))) > 0.99


def test_packed_rows_restart_positions_and_have_no_mask(prepare):
    prepared = prepare(rows(40), packing=True, max_length=200)
    alone = prepare(rows(40))
    total = 0
    for i in range(len(prepared.train)):
        row = prepared.train[i]
        starts = (row["position_ids"] == 0).nonzero().flatten().tolist()
        assert len(starts) == len(prepared.train.rows[i])
        assert len(row["input_ids"]) == prepared.train.lengths[i] <= 200
        ends = [*starts[1:], len(row["input_ids"])]
        for number, start, end in zip(prepared.train.rows[i], starts, ends, strict=True):
            single = alone.train[number]
            assert row["input_ids"][start:end].tolist() == single["input_ids"].tolist()
            assert row["labels"][start:end].tolist() == single["labels"].tolist()
            assert row["labels"][start] == -100
            total += 1
    assert total == 40
    batch = prepared.collate([prepared.train[i] for i in range(3)])
    assert set(batch) == {"input_ids", "labels", "position_ids"}
    assert all(value.shape == (3, 200) and value.dtype == torch.int64 for value in batch.values())
    for i in range(3):
        fill = slice(prepared.train.lengths[i], None)
        assert (batch["labels"][i, fill] == -100).all()
        assert (batch["input_ids"][i, fill] == prepared.tokenizer.pad_token_id).all()
        assert batch["position_ids"][i, fill].tolist() == list(range(200 - prepared.train.lengths[i]))


def test_rows_of_their_own_are_padded_with_a_mask(prepare):
    prepared = prepare(rows(5))
    assert set(prepared.train[0]) == {"input_ids", "labels"}
    batch = prepared.collate([prepared.train[i] for i in range(5)])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert batch["input_ids"].shape[1] == max(prepared.train.lengths)
    assert batch["attention_mask"].sum(1).tolist() == prepared.train.lengths
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == -100).all()
    assert (batch["input_ids"][padding] == prepared.tokenizer.pad_token_id).all()
    assert not (batch["labels"] == prepared.tokenizer.pad_token_id).any()


def test_examples_in_a_row_do_not_see_each_other(prepare, make_model):
    prepared = prepare(rows(12), packing=True, max_length=400)
    model = make_model("llama", vocab_size=len(prepared.tokenizer), max_position_embeddings=400)
    batch = prepared.collate([prepared.train[0]])
    with torch.no_grad():
        together = model(**batch).logits[0]
        begin = 0
        for number in prepared.train.rows[0]:
            ids = torch.from_numpy(prepared.train.example(number).ids).long()
            alone = model(input_ids=ids[None]).logits[0]
            torch.testing.assert_close(together[begin : begin + len(ids)], alone, atol=1e-5, rtol=1e-5)
            begin += len(ids)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_packed_and_padded_training_have_the_same_losses(prepare, make_model, architecture):
    losses = []
    for packing in (True, False):
        prepared = prepare(rows(16), packing=packing, max_length=160)
        size = len(prepared.tokenizer)
        torch.manual_seed(0)
        model = make_model(architecture, vocab_size=size, max_position_embeddings=160).float().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batch = prepared.collate([prepared.train[i] for i in range(len(prepared.train))])
        trajectory = []
        for _ in range(12):
            loss = model(**batch, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trajectory.append(loss.item())
        losses.append(torch.tensor(trajectory))
    assert losses[0][-1] < losses[0][0] - 0.1
    torch.testing.assert_close(losses[0], losses[1], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_transformers_trainer_takes_the_rows(prepare, make_model, tmp_path, strategy):
    prepared = prepare(rows(128), validation_fraction=0.05)
    model = make_model("gpt2", vocab_size=len(prepared.tokenizer), max_position_embeddings=512).train()
    seen: list[list[int]] = []

    def collate(batch):
        seen.append([len(row["input_ids"]) for row in batch])
        return prepared.collate(batch)

    options = {"train_sampling_strategy": strategy, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, num_train_epochs=1, **options)
    trainer = Trainer(model, arguments, collate, prepared.train, prepared.validation, prepared.tokenizer)
    assert trainer.train().training_loss > 0
    assert trainer.evaluate()["eval_loss"] > 0
    if strategy == "group_by_length":
        steps = seen[: trainer.state.global_step]
        assert sum(max(batch) * len(batch) for batch in steps) < 1.25 * sum(map(sum, steps))
