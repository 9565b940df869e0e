"""The cache: whole or not there, found only by what it was made from."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from data_helpers import make_texts, targets, write_jsonl

from gpt_finetune.data import prepare as module
from gpt_finetune.data.cache import STALE, Cache, fingerprint
from gpt_finetune.data.config import SourceConfig, TokenizerConfig
from gpt_finetune.errors import InputError


def entries(folder, kind):
    return sorted(path.name for path in folder.glob(f"{kind}-*"))


@pytest.fixture
def base(tmp_path, run):
    """Return a `run` on one file of texts, held constant but for what a test changes."""
    file = write_jsonl(tmp_path / "texts.jsonl", [*make_texts(60), "twice", "twice"])

    def prepared(tokenizer=None, source=None, **options):
        return run(SourceConfig(str(file), **(source or {})), tokenizer=tokenizer, **options)

    prepared.file = file
    return prepared


TRAINED = {"vocab_size": 300}


@pytest.mark.parametrize(
    "change",
    [
        {"block_size": 17},
        {"validation_fraction": 0.2},
        {"validation_fraction": 0},
        {"deduplicate": False},
        {"seed": 1},
        {"source": {"weight": 2.0}},
        {"source": {"encoding": "utf-8-sig"}},
        {"source": {"separator": "x"}},
        {"validation": [["held out text"]]},
        {"tokenizer": {"vocab_size": 301}},
        {"tokenizer": {"vocab_size": 300, "min_frequency": 500}},
        {"tokenizer": {"vocab_size": 300, "eos_token": "<|end|>"}},
        {"tokenizer": {"vocab_size": 300, "pad_token": "<|fill|>"}},
        {"tokenizer": {"vocab_size": 300, "extra_special_tokens": ["<|user|>"]}},
        {"tokenizer": None},
    ],
    ids=str,
)
def test_each_changed_option_misses(base, change):
    first = base(tokenizer=TokenizerConfig(**TRAINED))
    assert not first.cache_hit
    assert base(tokenizer=TokenizerConfig(**TRAINED)).cache_hit
    options = {"tokenizer": TRAINED, **change}
    tokenizer = TokenizerConfig(**options.pop("tokenizer")) if options["tokenizer"] else options.pop("tokenizer")
    second = base(tokenizer=tokenizer, **options)
    assert not second.cache_hit
    assert second.fingerprint != first.fingerprint
    assert base(tokenizer=TokenizerConfig(**TRAINED)).fingerprint == first.fingerprint


def test_touched_hits_edited_misses(base):
    first = base()
    os.utime(base.file, (1, 1))
    again = base()
    assert again.cache_hit
    assert (again.fingerprint, targets(again.train)) == (first.fingerprint, targets(first.train))
    assert again.ledger == first.ledger
    assert again.xz_bits_per_byte == first.xz_bits_per_byte
    assert again.tokens_per_byte == first.tokens_per_byte
    text = base.file.read_text("utf-8")
    base.file.write_text(text.replace("twice", "thrice", 1), "utf-8")
    assert not base().cache_hit
    base.file.write_text(text, "utf-8")
    assert base().cache_hit


def test_a_hit_reads_no_documents(base, monkeypatch):
    base(tokenizer=TokenizerConfig(**TRAINED))

    def refuse(*_):
        raise AssertionError("documents were read")

    monkeypatch.setattr("gpt_finetune.data.reading.read_file", refuse)
    assert base(tokenizer=TokenizerConfig(**TRAINED)).cache_hit
    with pytest.raises(AssertionError, match="documents were read"):
        base(tokenizer=TokenizerConfig(**TRAINED), seed=1)


def test_a_trained_tokenizer_is_kept_for_other_block_sizes(base, tmp_path, monkeypatch):
    base(tokenizer=TokenizerConfig(**TRAINED))
    monkeypatch.setattr(module, "train_tokenizer", None)
    assert not base(tokenizer=TokenizerConfig(**TRAINED), block_size=20).cache_hit
    assert len(entries(tmp_path / "cache", "tokenizer")) == 1


def test_another_format_version_misses(base, monkeypatch):
    base()
    monkeypatch.setattr("gpt_finetune.data.cache.FORMAT", 0)
    assert not base().cache_hit


@pytest.mark.parametrize("damage", ["shorten", "lengthen", "remove", "meta", "no meta", "other meta"])
def test_a_damaged_entry_is_made_again_with_a_warning(base, tmp_path, caplog, damage):
    first = base()
    (entry,) = (tmp_path / "cache").glob("corpus-*")
    tokens = entry / "0-train.bin"
    match damage:
        case "shorten":
            os.truncate(tokens, tokens.stat().st_size - 2)
        case "lengthen":
            tokens.write_bytes(tokens.read_bytes() + b"\0\0")
        case "remove":
            tokens.unlink()
        case "meta":
            (entry / "meta.json").write_text('{"made": ')
        case "no meta":
            (entry / "meta.json").unlink()
        case "other meta":
            (entry / "meta.json").write_text("[]")
    again = base()
    assert not again.cache_hit
    assert "damaged" in caplog.text
    assert targets(again.train) == targets(first.train)
    assert base().cache_hit


def test_a_killed_run_leaves_nothing_that_passes_for_whole(base, tmp_path, tokenizer_folder):
    """A real process is killed while it writes token streams; the next run starts over and is right."""
    code = f"""
import sys, time
from gpt_finetune.data import packing
from gpt_finetune.data.config import *
from gpt_finetune.data.prepare import prepare
write = packing.TokenWriter.write
def slow(self, documents):
    write(self, documents)
    self.stream.flush()
    print("written", flush=True)
    time.sleep(60)
packing.TokenWriter.write = slow
prepare(DataConfig(sources=[SourceConfig({str(base.file)!r})], block_size=16, cache_dir={str(tmp_path / "cache")!r}),
    TokenizerConfig(path={tokenizer_folder!r}))
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout.readline() == "written\n"
        child.send_signal(signal.SIGKILL)
    assert entries(tmp_path / "cache", "corpus") == []
    (left,) = (tmp_path / "cache").glob(".staging-*")
    assert list(left.glob("*.bin"))
    after = base()
    assert not after.cache_hit
    assert base().cache_hit
    assert left.exists(), "it may be another live process's: only old ones are removed"
    os.utime(left, (time.time() - STALE - 1,) * 2)
    base()
    assert not left.exists()


def test_an_error_leaves_nothing(tmp_path):
    cache = Cache(str(tmp_path))

    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError("no luck")

    with pytest.raises(RuntimeError):
        cache.get_or_make("thing", "key", fail)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_both_get_the_same_entry(tmp_path):
    together = threading.Barrier(2)
    found = []

    def make(folder):
        (folder / "data").write_text("x" * 100)
        together.wait()  # both have missed, and both have written
        return {"answer": 42}

    def work():
        found.append(Cache(str(tmp_path)).get_or_make("thing", "key", make))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(entry, made) for entry, made, _ in found] == [(tmp_path / "thing-key", {"answer": 42})] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["thing-key"]
    assert json.loads((tmp_path / "thing-key" / "meta.json").read_text())["sizes"] == {"data": 100}


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, run):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(InputError, match=r"data\.cache_dir"):
            run(["a", "b"], cache_dir=str(folder))


def test_the_environment_names_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT_FINETUNE_CACHE", str(tmp_path / "from env"))
    assert Cache(None).folder == tmp_path / "from env"
    assert Cache(str(tmp_path / "given")).folder == tmp_path / "given"
    monkeypatch.delenv("GPT_FINETUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache(None).folder == tmp_path / ".cache" / "gpt_finetune"


def test_fingerprint_tells_values_apart():
    assert fingerprint(a=1) == fingerprint(a=1)
    assert len({fingerprint(), fingerprint(a=1), fingerprint(a="1"), fingerprint(b=1), fingerprint(a=[1])}) == 5
