"""A stream that is gone on with: the rows that would have come, and no file that was finished before."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest
from data_helpers import make_texts, write_jsonl
from torch.utils.data import DataLoader
from xxhash import xxh3_128_digest

from gpt_finetune.data.config import DataConfig, SourceConfig
from gpt_finetune.data.documents import DocumentStream
from gpt_finetune.data.packing import collate
from gpt_finetune.data.readers import Document
from gpt_finetune.data.reading import Reading
from gpt_finetune.data.resuming import StreamState
from gpt_finetune.data.sources import open_source
from gpt_finetune.data.streaming import StreamingBlocks
from gpt_finetune.data.tokenizer import CorpusEncoder
from gpt_finetune.errors import InputError
from gpt_finetune.training.streams import Follower

opened: list[str] | None = None


def hook(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and str(arguments[0]).endswith(".jsonl"):
        opened.append(str(arguments[0]).rpartition("/")[2])


sys.addaudithook(hook)


SOURCES = ((0, "a", 12), (1, "b", 6))  # index, name, files


@contextmanager
def noting():
    """Note which files of the corpus this process opens."""
    global opened
    opened = noted = []
    try:
        yield noted
    finally:
        opened = None


@pytest.fixture
def shards(tmp_path):
    """Two sources of several files, with copies among them: 12 files of 8 rows and 6 of 12, and three more each."""
    for (_, name, files), count in zip(SOURCES, (8, 12), strict=True):
        (tmp_path / name).mkdir()
        for i in range(files):
            texts = [*make_texts(count, seed=i), "copy", " ", f"copy {i % 3}"]
            write_jsonl(tmp_path / name / f"{name}-{i:02}.jsonl", texts)
    return [SourceConfig(str(tmp_path / "a"), 2.0), SourceConfig(str(tmp_path / "b"), 1.0)]


@pytest.fixture
def stream(tokenizer, shards, monkeypatch):
    """Return a maker of the stream, which reads 600 characters at a time and holds three texts out."""
    monkeypatch.setattr("gpt_finetune.data.streaming.BATCH", 600)
    encoder = CorpusEncoder.of(tokenizer)
    held_out = frozenset(xxh3_128_digest(text.encode()) for text in make_texts(3))

    def make(*, epoch=0, sources=shards, **options):
        config = DataConfig(sources=sources, **{"block_size": 16, "shuffle_buffer": 9, **options})
        opened = [open_source(source, "data.sources", streaming=True) for source in sources]
        train = StreamingBlocks(DocumentStream(opened, config, held_out), encoder, config)
        train.followed = True
        train.set_epoch(epoch)
        return train

    return make


def follow(train, workers=0, batch_size=4):
    loader = DataLoader(train, batch_size, num_workers=workers, collate_fn=collate)
    return Follower(loader, train, StreamState(train.epoch, max(1, workers), {}), 1)


def rows(batches) -> list[list[int]]:
    return [row for batch in batches for row in batch["input_ids"].tolist()]


def stopped(train, after, file, **options):
    """Train on some batches, while loader and workers read ahead; write down where the stream stands."""
    loader = follow(train, **options)
    batches = iter(loader)
    for step in range(after):
        next(batches)
        loader.taken(1, step)
    next(batches, None)  # fetched ahead, as accelerate does
    loader.settle(after)
    loader.following().save(file, train.config.block_size)
    return StreamState.load(file)


@pytest.mark.parametrize(
    ("options", "after"),
    [
        ({}, 1),
        ({"epoch": 1}, 23),
        ({"epoch": 1, "shuffle_buffer": 100}, 50),
        ({"shuffle_buffer": 1, "deduplicate": False}, 31),
        ({"shuffle_buffer": 10_000}, 17),  # all is read before the first row
        ({}, -1),  # but one batch, when nothing more is read
        ({"workers": 2}, 15),
        ({"workers": 2, "epoch": 1}, 32),
    ],
    ids=str,
)
def test_what_follows_is_what_would_have_come(stream, tmp_path, options, after):
    workers = options.pop("workers", 0)
    whole = list(follow(stream(**options), workers))
    after %= len(whole)
    state = stopped(stream(**options), after, tmp_path / "state.npz", workers=workers)
    again = stream(**options)
    again.begin = state
    loader = follow(again, workers)
    assert rows(loader) == rows(whole[after:])
    if not workers:
        straight = stream(**options)
        list(follow(straight))
        assert again.ledger == straight.ledger


@pytest.mark.parametrize("after", [30, 60, 90])
def test_files_that_are_finished_are_not_opened(stream, tmp_path, after):
    state = stopped(stream(), after, tmp_path / "state.npz")
    again = stream()
    again.begin = state
    with noting() as now:
        list(follow(again))
    places = state.parts[0].tokens.place["sources"]
    stood = {name: places[str(i)]["file"] if str(i) in places else count for i, name, count in SOURCES}
    assert sum(stood.values()) >= after // 30
    left = [f"{name}-{file:02}.jsonl" for _, name, count in SOURCES for file in range(stood[name], count)]
    assert sorted(now) == left, "each is opened once"


def test_the_state_goes_on_being_told(stream, tmp_path):
    """Stopped, resumed and stopped again is stopped once; other batches give each row once."""
    whole = list(follow(stream()))
    state = stopped(stream(), 10, tmp_path / "first.npz")
    again = stream()
    again.begin = state
    state = stopped(again, 15, tmp_path / "second.npz")
    once = stopped(stream(), 25, tmp_path / "once.npz")
    assert (tmp_path / "second.npz").read_bytes() == (tmp_path / "once.npz").read_bytes()
    assert state.digests == once.digests
    last = stream()
    last.begin = state
    assert rows(follow(last, batch_size=7)) == rows(whole[25:])
    last.set_epoch(1)  # begins at its beginning
    assert rows(follow(last)) == rows(follow(stream(epoch=1)))


def test_a_pass_that_is_over_is_followed_by_the_next(stream, tmp_path):
    whole = list(follow(stream()))
    state = stopped(stream(), len(whole), tmp_path / "state.npz")
    assert (state.epoch, state.parts, len(state.digests)) == (1, {}, 0)


def test_batches_of_which_no_step_was_made_are_read_again(stream):
    loader = follow(stream())
    batches = iter(loader)
    for _ in range(2):
        next(batches)
        loader.taken(1, 0)
    loader.settle(0)
    assert loader.state.parts == {}
    loader.settle(1)
    assert loader.batches == 2
    assert loader.state.parts[0].tokens is not None


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_hub_source_goes_on(stream, tmp_path, monkeypatch, suffix):
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr("gpt_finetune.data.hub.ROWS", 7)
    folder = tmp_path / "hub"
    folder.mkdir()
    for i in range(8):
        texts = make_texts(20, seed=i)
        if suffix == "jsonl":
            write_jsonl(folder / f"train-{i}.jsonl", texts)
        else:
            pq.write_table(pa.table({"text": texts}), folder / f"train-{i}.parquet", row_group_size=5)
    sources = [SourceConfig(f"hub:{folder}")]
    whole = list(follow(stream(sources=sources)))
    with noting() as before:
        state = stopped(stream(sources=sources), 90, tmp_path / "state.npz")
    again = stream(sources=sources)
    again.begin = state
    with noting() as now:
        assert rows(follow(again)) == rows(whole[90:])
    if suffix == "jsonl":
        assert {"train-0.jsonl", "train-1.jsonl"} <= set(before) - set(now)


def test_a_file_that_is_another_is_refused(stream, shards, tmp_path):
    state = stopped(stream(), 40, tmp_path / "state.npz")
    for file in sorted((tmp_path / "a").iterdir())[:3]:
        file.unlink()
    changed = stream()
    changed.begin = state
    with pytest.raises(InputError, match=r"data\.sources.*stood in its file \d+, a-\d\d\.jsonl, and that is a-"):
        list(changed)


def test_nothing_is_noted_where_nobody_asks(stream):
    train = stream()
    train.followed = False
    list(train)
    assert train._running._shuffle.changed is None
    assert train._running._documents.fresh is None
    assert train._running._tokens.place == {}


def test_any_source_is_gone_on_with_by_counting():
    made = [Document(text, str(i)) for i, text in enumerate(make_texts(9))]
    reading, again = Reading(iter(made)), Reading(iter(made))
    assert [next(reading) for _ in range(4)] == made[:4]
    again.go_on(reading.place())
    assert list(again) == made[4:]
    assert again.place() == {"rows": 9}
