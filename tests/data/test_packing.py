"""Rows on disk: every token of every document is a target exactly once, in order."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from gpt_finetune.data.packing import MixedDataset, PackedDataset, TokenWriter, choose_rows, collate

EOS, PAD = 0, 1


def pack(folder, documents, block_size, dtype="uint16", batch=2):
    """Write documents, a few at a time."""
    file = folder / f"{len(list(folder.iterdir()))}.bin"
    arrays = [np.array(document, dtype) for document in documents]
    with TokenWriter(file, np.dtype(dtype), EOS, PAD, block_size) as writer:
        for start in range(0, len(arrays), batch):
            writer.write(arrays[start : start + batch])
    return PackedDataset(file, dtype, writer.tokens, block_size)


def shifted_targets(dataset):
    """Predict as a causal model does: position t sees input_ids[: t + 1] and is scored on labels[t + 1]."""
    pairs = []
    for i in range(len(dataset)):
        row = dataset[i]
        for t in range(len(row["labels"]) - 1):
            if row["labels"][t + 1] != -100:
                pairs.append((int(row["input_ids"][t]), int(row["labels"][t + 1])))
    return pairs


token_lists = st.lists(st.lists(st.integers(2, 65535), max_size=40), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(documents=token_lists, block_size=st.integers(2, 50), batch=st.integers(1, 5))
def test_every_token_is_a_target_once_and_in_order(tmp_path_factory, documents, block_size, batch):
    dataset = pack(tmp_path_factory.mktemp("packed"), documents, block_size, batch=batch)
    expected = [token for document in documents for token in [*document, EOS]]
    pairs = shifted_targets(dataset)
    assert [label for _, label in pairs] == expected
    assert [seen for seen, _ in pairs] == [EOS, *expected[:-1]], "each target's context is the token before it"
    stream = [EOS, *expected]
    for i in range(len(dataset)):
        row, start = dataset[i], i * (block_size - 1)
        real = stream[start : start + block_size]
        assert row["input_ids"].tolist() == real + [PAD] * (block_size - len(real))
        assert row["labels"].tolist() == [-100, *real[1:]] + [-100] * (block_size - len(real))
        assert (row["input_ids"].dtype, row["labels"].dtype) == (torch.int64, torch.int64)
    # Trainers count labels before or after the shift; both must give the number of targets.
    assert sum(int((dataset[i]["labels"] != -100).sum()) for i in range(len(dataset))) == len(expected)
    assert dataset.targets(np.arange(len(dataset))) == len(expected)
    assert dataset.padding == len(dataset) * (block_size - 1) - len(expected) < block_size - 1 or block_size == 2


def test_batches_equal_rows(tmp_path):
    dataset = pack(tmp_path, [list(range(2, 50)), list(range(50, 103))], 16)
    indices = [3, 0, len(dataset) - 1, 3, -1]
    rows = dataset.__getitems__(indices)
    batch = collate(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (5, 16)
    for i, index in enumerate(indices):
        for key in ("input_ids", "labels"):
            assert torch.equal(batch[key][i], dataset[index][key])
            assert torch.equal(batch[key][i], rows[i][key])


def test_rows_may_be_written_to_without_harm(tmp_path):
    dataset = pack(tmp_path, [list(range(2, 90))], 16)
    before = dataset[1]["input_ids"].clone()
    row = dataset[1]
    row["input_ids"][:] = 7
    row["labels"][:] = 7
    assert torch.equal(dataset[1]["input_ids"], before)


@pytest.mark.parametrize("mixed", [False, True])
def test_out_of_range(tmp_path, mixed):
    dataset = pack(tmp_path, [list(range(2, 50))], 16)
    if mixed:
        dataset = MixedDataset([dataset], [1.0])
    assert len(dataset) == len([dataset[i] for i in range(len(dataset))]) == 4
    for index in (4, -5):
        with pytest.raises(IndexError):
            dataset[index]
    assert len(list(dataset)) == 4  # plain iteration ends


def test_wide_ids(tmp_path):
    dataset = pack(tmp_path, [[70_000, 2**32 - 1]], 4, "uint32")
    assert dataset[0]["input_ids"].tolist() == [EOS, 70_000, 2**32 - 1, EOS]
    assert dataset.file.stat().st_size == 16


def test_pickles_by_path(tmp_path):
    dataset = pack(tmp_path, [list(range(2, 2000))] * 50, 16)
    dataset[0]
    data = pickle.dumps(MixedDataset([dataset], [0.01]))
    assert len(data) < 2000, "the tokens must not travel"
    assert torch.equal(pickle.loads(data).parts[0][5]["input_ids"], dataset[5]["input_ids"])


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same_rows(tmp_path, start):
    dataset = MixedDataset(
        [pack(tmp_path, [list(range(2, 300))], 16), pack(tmp_path, [list(range(300, 400))], 16)], [1, 2]
    )
    dataset[0]  # opened before the workers start
    alone = [row["input_ids"].tolist() for row in DataLoader(dataset, 4, collate_fn=collate)]
    loader = DataLoader(dataset, 4, collate_fn=collate, num_workers=2, multiprocessing_context=start)
    assert [batch["input_ids"].tolist() for batch in loader] == alone


@pytest.mark.parametrize(
    ("weight", "counts"),
    [(1.0, {1: 100}), (3.0, {3: 100}), (2.5, {2: 50, 3: 50}), (0.25, {0: 75, 1: 25}), (0.001, {0: 99, 1: 1})],
)
def test_weights_choose_copies_and_a_fixed_subset(weight, counts):
    rows = choose_rows(100, weight, (0, 0))
    times = np.bincount(rows, minlength=100)
    assert dict(zip(*np.unique(times, return_counts=True), strict=True)) == counts
    assert np.array_equal(rows, choose_rows(100, weight, (0, 0)))
    if len(counts) > 1 and weight > 0.1:
        assert not np.array_equal(np.bincount(choose_rows(100, weight, (1, 0)), minlength=100), times)


def test_mixture_holds_each_part_as_often_as_its_weight_says(tmp_path):
    parts = [pack(tmp_path, [list(range(100 * i + 2, 100 * i + 90))], 8) for i in range(3)]
    mixed = MixedDataset(parts, [2, 1, 0.5], seed=3)
    found = [mixed[i]["input_ids"].tolist() for i in range(len(mixed))]
    assert collate(mixed.__getitems__(range(len(mixed))))["input_ids"].tolist() == found
    for part, rows in zip(parts, mixed.rows, strict=True):
        mine = [part[int(row)]["input_ids"].tolist() for row in rows]
        assert found[: len(mine)] == mine
        found = found[len(mine) :]
    assert found == []
    assert [len(rows) for rows in mixed.rows] == [26, 13, 6]
