"""Hub data sets, by way of a local folder: `datasets` reads both alike, and no network is needed."""

import pytest
from data_helpers import documents, make_texts, targets, write_jsonl
from torch.utils.data import DataLoader

from gpt_finetune.data.config import SourceConfig
from gpt_finetune.data.packing import collate
from gpt_finetune.errors import InputError


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a data set's address, of three files with two splits."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "hub"
    folder.mkdir()
    texts = make_texts(40)
    write_jsonl(folder / "train-0.jsonl", texts[:25])
    write_jsonl(folder / "train-1.jsonl", texts[25:])
    write_jsonl(folder / "test.jsonl", make_texts(6, seed=1))
    return f"hub:{folder}"


@pytest.mark.parametrize("streaming", [False, True])
def test_split_and_column(run, hub, streaming):
    options = {"streaming": streaming, "shuffle_buffer": 1}
    prepared = run(SourceConfig(hub), validation=[SourceConfig(hub, split="test")], **options)
    assert documents(prepared.train, prepared.tokenizer) == make_texts(40)
    assert documents(prepared.validation, prepared.tokenizer) == make_texts(6, seed=1)
    assert run(SourceConfig(hub), validation=[SourceConfig(hub, split="test")], **options).cache_hit


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_stream_every_document_once(run, hub, workers):
    """`datasets` parts its files among workers too; two partings on top of each other would lose documents."""
    prepared = run(SourceConfig(hub), streaming=True, validation_documents=0)
    batches = DataLoader(prepared.train, 1, num_workers=workers, collate_fn=collate)
    labels = [int(label) for batch in batches for label in batch["labels"][0] if label != -100]
    assert sorted(labels) == sorted(targets(prepared.train))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"path": "hub:nobody/nothing"}, ["data.sources[0].path", "cannot be loaded", "can be reached"]),
        ({"split": "nope"}, ["data.sources[0].path", "nope", "train"]),
        ({"name": "nope"}, ["data.sources[0].path", "nope"]),
        ({"text_column": "txet"}, ["data.sources[0].text_column", "'text' is close"]),
    ],
)
def test_bad_requests_are_refused(run, hub, streaming, change, expected):
    with pytest.raises(InputError) as error:
        run(SourceConfig(**{"path": hub, **change}), streaming=streaming)
    assert all(part in str(error.value) for part in expected), str(error.value)


def test_a_row_that_is_not_text_is_refused(run, hub, tmp_path):
    (tmp_path / "hub" / "train-0.jsonl").write_text('{"text": "a"}\n{"text": null}\n')
    with pytest.raises(InputError, match=r":2 = None.*NoneType, not text"):
        run(SourceConfig(hub), streaming=True)
