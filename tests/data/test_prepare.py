"""The front door: deduplicate, split, tokenize, pack; and refuse what cannot be trained on."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import documents, make_texts, targets, write_jsonl
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gpt_finetune.data.baseline import xz_bits_per_byte
from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig
from gpt_finetune.data.corpus import Corpus
from gpt_finetune.data.prepare import prepare
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.errors import InputError


def test_splits_hold_every_document_once(run):
    texts = make_texts(100)
    prepared = run(texts)
    train, held_out = (documents(split, prepared.tokenizer) for split in (prepared.train, prepared.validation))
    assert sorted(train + held_out) == sorted(texts)
    assert [text for text in texts if text in set(train)] == train, "reading order is kept"
    size = sum(len(text.encode()) for text in texts)
    assert 0.05 * size <= prepared.validation_bytes <= 0.1 * size
    assert prepared.tokens_per_byte == pytest.approx(len(targets(prepared.train)) / prepared.train_bytes)
    assert prepared.xz_bits_per_byte == pytest.approx(xz_bits_per_byte(held_out))
    batch = prepared.collate([prepared.train[0], prepared.train[1]])
    assert {key: tuple(value.shape) for key, value in batch.items()} == {"input_ids": (2, 16), "labels": (2, 16)}


def test_the_split_follows_content_and_seed_not_order(run):
    texts = make_texts(80)

    def held_out(*sources, **options):
        prepared = run(*sources, validation_fraction=0.2, **options)
        return set(documents(prepared.validation, prepared.tokenizer))

    first = held_out(texts)
    assert held_out(texts[::-1]) == first
    assert held_out(texts[40:], texts[:40]) == first
    assert held_out(texts, seed=1) != first
    assert len(held_out([*texts, *make_texts(8, seed=9)]) & first) > len(first) / 2, "new text moves few documents"


@pytest.mark.parametrize("seed", range(6))
def test_a_text_larger_than_the_share_is_not_held_out(run, seed):
    large, small = "large " * 500, "small " * 20
    prepared = run([large, small], seed=seed)
    assert documents(prepared.validation, prepared.tokenizer) == [small]


@pytest.mark.parametrize("seed", range(3))
def test_never_all_is_held_out(run, seed):
    prepared = run(["one " * 20, "two " * 20], seed=seed, validation_fraction=0.99)
    assert [prepared.ledger.total.documents.train, prepared.ledger.total.documents.validation] == [1, 1]


def test_duplicates_are_dropped_before_the_split(run):
    texts = make_texts(40)
    prepared = run([*texts, *texts], texts, validation_fraction=0.3)
    train, held_out = (documents(split, prepared.tokenizer) for split in (prepared.train, prepared.validation))
    assert sorted(train + held_out) == sorted(texts)
    assert [account.documents.duplicate for account in prepared.ledger.sources] == [40, 40]
    kept = run(texts, texts, deduplicate=False, validation_fraction=0.3)
    train, held_out = (documents(split, kept.tokenizer) for split in (kept.train, kept.validation))
    assert sorted(train + held_out) == sorted([*texts, *texts])
    assert not set(train) & set(held_out), "copies stay on one side"


def test_given_validation_wins_over_training(run, caplog):
    texts = make_texts(40)
    prepared = run(texts, validation=[[*texts[:5], "only held out"]])
    assert documents(prepared.validation, prepared.tokenizer) == [*texts[:5], "only held out"]
    assert documents(prepared.train, prepared.tokenizer) == texts[5:]
    assert [account.documents.duplicate for account in prepared.ledger.sources] == [0, 5]
    assert "held out as well" not in caplog.text
    run(texts, validation=[texts[:5]], deduplicate=False)
    assert "5 training documents are held out as well" in caplog.text


def test_padding_is_the_pad_token_and_no_target(run):
    prepared = run(make_texts(30), block_size=50, validation_fraction=0)
    padding = prepared.ledger.total.tokens.padding
    assert padding > 0
    row = prepared.train[-1]
    assert row["input_ids"].tolist()[-padding - 1 :] == [prepared.tokenizer.eos_token_id] + [1] * padding
    assert row["labels"].tolist()[-padding - 1 :] == [prepared.tokenizer.eos_token_id] + [-100] * padding
    assert prepared.tokenizer.pad_token_id == 1


def test_no_validation(run):
    prepared = run(make_texts(20), validation_fraction=0)
    assert prepared.validation is None
    assert (prepared.validation_bytes, prepared.validation_tokens, prepared.xz_bits_per_byte) == (0, 0, None)
    assert len(documents(prepared.train, prepared.tokenizer)) == 20


def test_validation_is_never_weighted(run):
    texts = make_texts(60)
    light, heavy = run((texts, 0.5), seed=4), run((texts, 3), seed=4)
    assert targets(light.validation) == targets(heavy.validation)
    assert len(heavy.train) == 3 * len(heavy.train.parts[0])
    assert len(light.train) == round(0.5 * len(light.train.parts[0]))
    assert light.ledger.total.tokens.dropped == heavy.train_tokens - light.train_tokens > 0
    assert heavy.ledger.total.tokens.per_epoch == 3 * heavy.train_tokens


def test_text_cannot_forge_a_boundary(run):
    texts = [f"{i} before<|endoftext|>after <|pad|>" for i in range(20)]
    prepared = run(texts, validation_fraction=0)
    assert documents(prepared.train, prepared.tokenizer) == texts


def test_the_tokenizer_is_trained_on_training_documents_only(run):
    """A word that only the held-out document holds is no token."""
    secret, train = "zyzzyva " * 50, ["the cat sat on a mat " * 5 + str(i) for i in range(20)]
    learned = run(train, validation=[[secret]], tokenizer=TokenizerConfig(vocab_size=400))
    assert len(learned.tokenizer.tokenize(" zyzzyva")) == 8
    leaked = run([*train, secret], validation=[["other"]], tokenizer=TokenizerConfig(vocab_size=400))
    assert len(leaked.tokenizer.tokenize(" zyzzyva")) < 8


def test_wide_vocabulary_end_to_end(run, tmp_path):
    vocabulary = {"<eos>": 0, "<unk>": 1, **{f"t{i}": i for i in range(2, 70_000)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(tmp_path / "wide")
    texts = [f"t{i}" for i in range(69_900, 70_000)]
    prepared = run(texts, tokenizer=TokenizerConfig(path=str(tmp_path / "wide")), validation_fraction=0)
    assert [token for token in targets(prepared.train) if token] == list(range(69_900, 70_000))
    assert prepared.train.parts[0].dtype == "uint32"
    assert prepared.train[-1]["input_ids"][-1] == 0, "without a pad token the end token fills"
    assert (prepared.train[-1]["labels"] == -100).sum() == 1 + prepared.ledger.total.tokens.padding


@pytest.mark.parametrize(
    ("sources", "options", "expected"),
    [
        ([["", "  \n"]], {}, ["data.sources", "no document is left", "2 read, 2 empty"]),
        ([["same", "same"]], {"validation": [["same"]]}, ["no document is left", "2 duplicates"]),
        ([["a", "b"]], {"validation": [[" "]]}, ["no document is left", "1 empty"]),
        ([["only one"]], {}, ["data.validation_fraction", "one document only", "separator", "to 0"]),
        ([["same", "same"]], {}, ["one document only"]),
        ([["short", "text"]], {"block_size": 1000}, ["data.block_size", "1000", "not enough"]),
        ([["a", "b"]], {"block_size": 1}, ["data.block_size", "nothing to predict"]),
    ],
)
@pytest.mark.parametrize("path", [True, False], ids=["loaded", "trained"])
def test_what_cannot_be_trained_on_is_refused(run, sources, options, expected, path, tmp_path):
    tokenizer = None if path else TokenizerConfig(vocab_size=300)
    with pytest.raises(InputError) as error:
        run(*sources, tokenizer=tokenizer, **options)
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert not list((tmp_path / "cache").glob("corpus-*"))


def test_half_a_surrogate_pair_is_refused(run, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": "half \\ud83d"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl:2.*surrogate"):
        run(tmp_path / "a.jsonl")


def test_the_largest_block_size_that_fits_is_named_and_fits(run):
    texts = ["the cat", "sat on a mat"]
    with pytest.raises(InputError, match=r"set block_size to (\d+) or less") as error:
        run(texts, block_size=500, validation_fraction=0)
    largest = int(str(error.value).split("set block_size to ")[1].split()[0])
    prepared = run(texts, block_size=largest, validation_fraction=0)
    assert len(prepared.train) == 1
    assert prepared.ledger.total.tokens.padding == 0
    with pytest.raises(InputError):
        run(texts, block_size=largest + 1, validation_fraction=0)


def test_vocab_limit(tmp_path, tokenizer_folder):
    source = SourceConfig(str(write_jsonl(tmp_path / "a.jsonl", make_texts(20))))
    config = DataConfig([source], block_size=16, cache_dir=str(tmp_path))
    prepare(config, TokenizerConfig(tokenizer_folder), vocab_limit=320)
    for streaming in (False, True):
        config.streaming, config.validation_documents = streaming, 2
        with pytest.raises(InputError, match="320 tokens, and the model embeds 319"):
            prepare(config, TokenizerConfig(tokenizer_folder), vocab_limit=319)


@pytest.mark.parametrize("later", [make_texts(20, seed=1), make_texts(19), make_texts(21)], ids=["edit", "cut", "add"])
def test_a_file_that_changes_meanwhile_is_noticed(run, tmp_path, monkeypatch, later):
    """The plan was made from other text: packing it would give a corpus that its fingerprint does not describe."""
    file = write_jsonl(tmp_path / "a.jsonl", make_texts(20))
    make_plan = Corpus.plan

    def plan_then_edit(self):
        plan = make_plan(self)
        write_jsonl(file, later)
        return plan

    monkeypatch.setattr(Corpus, "plan", plan_then_edit)
    with pytest.raises(InputError, match="while"):
        run(file)


def test_the_ledger_is_logged(run, caplog):
    with caplog.at_level(logging.INFO, logger="gpt_finetune"):
        run(make_texts(20))
    assert "documents" in caplog.text
    assert "tokens" in caplog.text


def test_xz_baseline():
    assert xz_bits_per_byte([]) is None
    noise = np.random.default_rng(0).integers(32, 127, 200_000, dtype=np.uint8).tobytes().decode()
    assert np.log2(95) < xz_bits_per_byte([noise]) < 7.2
    assert xz_bits_per_byte(["天气很好"] * 10_000) < 0.1


def test_xz_baseline_has_a_limit(monkeypatch):
    monkeypatch.setattr("gpt_finetune.data.baseline.LIMIT", 100)
    assert xz_bits_per_byte(["x" * 101]) is None
    assert xz_bits_per_byte(["x" * 100]) is not None


@pytest.mark.long
def test_one_line_of_30_megabytes(tmp_path, tokenizer_folder):
    """Memory stays bounded without a single space to cut at: under half a gigabyte above the imports."""
    text = "天气很好我们去公园" * 1_100_000
    (tmp_path / "long.txt").write_text(text, "utf-8")
    code = """
import resource, sys
from gpt_finetune.data.config import *
from gpt_finetune.data.prepare import prepare
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = DataConfig([SourceConfig(sys.argv[1])], validation_fraction=0, cache_dir=sys.argv[2])
prepared = prepare(data, TokenizerConfig(sys.argv[3]))
print(prepared.train_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, prepared.train.parts[0].file)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "long.txt"), str(tmp_path), tokenizer_folder],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        capture_output=True,
        text=True,
    )
    size, kilobytes, file = done.stdout.split()
    assert int(size) == len(text.encode())
    assert int(kilobytes) < 500_000
    ids = np.fromfile(file, np.uint16)
    ends = np.flatnonzero(ids == 0)
    assert ends[0] == 0 and len(ends) == 2, "one document"
    assert load_tokenizer(tokenizer_folder).decode(ids[1 : ends[1]].tolist()) == text
