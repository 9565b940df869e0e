"""Packing on the fly teaches what packing on disk teaches, whatever the number of processes."""

import pickle
import random
from collections import Counter

import pytest
from data_helpers import documents, make_texts, targets
from torch.utils.data import DataLoader

from gpt_finetune.data.config import SourceConfig, TokenizerConfig
from gpt_finetune.data.packing import collate
from gpt_finetune.data.streaming import shuffled
from gpt_finetune.data.tokenizer import CorpusEncoder
from gpt_finetune.errors import InputError


@pytest.fixture
def stream(run):
    """Return `run` in streaming mode; nothing held out and nothing shuffled unless asked."""

    def prepared(*sources, **options):
        return run(*sources, **{"streaming": True, "validation_documents": 0, "shuffle_buffer": 1, **options})

    return prepared


def rows_of(dataset):
    return [row["input_ids"].tolist() for row in dataset]


def test_one_source_gives_the_very_rows_of_the_packed_corpus(run, stream):
    texts = [*make_texts(50), "", "twice", "twice"]
    packed = run(texts, validation_fraction=0)
    streamed = stream(texts)
    assert rows_of(streamed.train) == rows_of(packed.train)
    assert [row["labels"].tolist() for row in streamed.train] == [row["labels"].tolist() for row in packed.train]


@pytest.mark.parametrize("weights", [(1, 1), (5, 1)])
@pytest.mark.parametrize("buffer", [1, 7, 1000])
def test_an_epoch_holds_each_token_once(run, stream, weights, buffer):
    sources = [make_texts(40), make_texts(60, seed=1) + make_texts(40)]
    packed = run(*sources, validation_fraction=0)
    streamed = stream(*zip(sources, weights, strict=True), shuffle_buffer=buffer)
    assert Counter(targets(streamed.train)) == Counter(targets(packed.train))
    assert len(targets(streamed.train)) == len(targets(packed.train))


def test_several_batches_pack_seamlessly(stream, monkeypatch):
    texts = make_texts(200)
    whole = rows_of(stream(texts).train)
    monkeypatch.setattr("gpt_finetune.data.streaming.BATCH", 100)
    assert rows_of(stream(texts).train) == whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_disjoint_and_complete(stream, world_size):
    texts = make_texts(101)
    found, ledgers = [], []
    prepared = stream(texts)
    prepared.train.world_size = world_size
    for rank in range(world_size):
        prepared.train.rank = rank
        mine = documents(prepared.train, prepared.tokenizer)
        assert mine == texts[rank::world_size]
        found += mine
        ledgers.append(prepared.train.ledger.total)
    assert sorted(found) == sorted(texts)
    assert sum(ledger.documents.total for ledger in ledgers) == 101


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_are_disjoint_and_complete(stream, workers):
    texts = make_texts(60)
    prepared = stream(texts)
    alone = Counter(targets(prepared.train))
    loader = DataLoader(prepared.train, 1, num_workers=workers, collate_fn=collate)
    rows = [{key: value[0] for key, value in batch.items()} for batch in loader]
    assert Counter(int(t) for row in rows for t in row["labels"][1:] if t != -100) == alone


def test_order_is_a_function_of_seed_epoch_and_rank(stream):
    sources = [make_texts(60), make_texts(60, seed=1)]
    prepared = stream(*sources, shuffle_buffer=50)
    first = rows_of(prepared.train)
    assert rows_of(prepared.train) == first
    assert rows_of(pickle.loads(pickle.dumps(prepared.train))) == first
    assert rows_of(stream(*sources, shuffle_buffer=50).train) == first
    assert rows_of(stream(*sources, shuffle_buffer=50, seed=1).train) != first
    prepared.train.set_epoch(1)
    second = rows_of(prepared.train)
    assert second != first
    prepared.train.set_epoch(0)
    assert rows_of(prepared.train) == first


def test_sources_take_turns_anew_in_each_epoch(stream):
    prepared = stream(make_texts(60), make_texts(60, seed=1))
    first = rows_of(prepared.train)
    prepared.train.set_epoch(1)
    assert rows_of(prepared.train) != first


def test_shuffle_buffer():
    items = list(range(100))
    found = list(shuffled(items, 10, random.Random(0)))
    assert sorted(found) == items != found
    assert all(item - 10 <= place for place, item in enumerate(found)), "nothing comes before it was read"
    assert list(shuffled(items, 1, random.Random(0))) == items


def test_weights_decide_how_often_a_source_comes_next(stream):
    sources = [[f"a {i}" for i in range(400)], [f"b {i}" for i in range(400)]]
    prepared = stream((sources[0], 3), (sources[1], 1))
    start = documents(prepared.train, prepared.tokenizer)[:400]
    assert 260 < sum(text.startswith("a") for text in start) < 340


def test_held_out_documents_are_the_first_and_never_trained(stream):
    texts = ["", "copy", "copy", *make_texts(50), "copy"]
    for deduplicate in (True, False):
        prepared = stream(texts, validation_documents=10, deduplicate=deduplicate)
        held_out = documents(prepared.validation, prepared.tokenizer)
        trained = documents(prepared.train, prepared.tokenizer)
        kept = list(dict.fromkeys(texts[1:])) if deduplicate else texts[1:]
        assert held_out == kept[:10]
        assert trained == [text for text in kept if text not in held_out]
        assert prepared.validation_bytes == sum(len(text.encode()) for text in held_out)
        assert prepared.xz_bits_per_byte is not None
    assert stream(texts, validation_documents=10, deduplicate=False).cache_hit


def test_given_validation_is_never_trained(stream):
    texts = make_texts(30)
    prepared = stream(texts, validation=[texts[3:6]], validation_documents=10)
    assert documents(prepared.validation, prepared.tokenizer) == texts[3:6]
    assert documents(prepared.train, prepared.tokenizer) == texts[:3] + texts[6:]


def test_the_running_ledger_adds_up(stream):
    texts = ["", "copy", "copy", *make_texts(50), "copy"]
    prepared = stream(texts, validation_documents=5)
    for _ in range(2):  # each pass opens a new account
        found = targets(prepared.train)
        ledger = prepared.train.ledger
        ledger.check()
        total = ledger.total
        assert (total.documents.total, total.documents.empty, total.documents.validation) == (54, 1, 7)
        assert total.documents.train == 46
        assert total.tokens.trained == total.tokens.per_epoch == len(found)
        assert total.bytes.total == sum(len(text.encode()) for text in texts)


def test_a_tokenizer_is_trained_on_the_streams_start_and_says_so(stream, caplog):
    caplog.set_level("INFO")
    held_out, texts = "zyzzyva " * 50, ["the cat sat " * 4 + str(i) for i in range(30)]
    prepared = stream([held_out, *texts], validation_documents=1, tokenizer=TokenizerConfig(vocab_size=400))
    assert "trained on the first" in caplog.text
    assert len(prepared.tokenizer.tokenize(" zyzzyva")) == 8
    ids = CorpusEncoder.of(prepared.tokenizer)(texts)
    assert prepared.tokens_per_byte == sum(len(i) + 1 for i in ids) / sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize(
    ("texts", "options", "expected"),
    [
        (make_texts(5), {"validation_documents": 5}, "after 5 were held out"),
        (["", " "], {}, "no document is left to train on"),
        (["a", "b"], {"block_size": 100}, "set block_size to"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(stream, texts, options, expected):
    with pytest.raises(InputError, match=expected):
        stream(texts, **options)


def test_fingerprint(stream):
    texts = make_texts(20)
    first = stream(texts).fingerprint
    assert stream(texts).fingerprint == first
    assert stream(texts, block_size=17).fingerprint != first
    assert stream(texts[1:]).fingerprint != first
    assert stream(texts, shuffle_buffer=2).fingerprint != first


def test_the_embedded_corpus_streams(stream):
    prepared = stream(SourceConfig(), validation_documents=3, block_size=64)
    rows = [row for row, _ in zip(prepared.train, range(5), strict=False)]
    assert {len(row["input_ids"]) for row in rows} == {64}
    assert prepared.ledger.total.documents.validation == 3
