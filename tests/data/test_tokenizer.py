"""Byte-level BPE: every text round-trips, and no text forges a boundary."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from gpt_finetune.data import tokenizer as module
from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.data.readers import Document
from gpt_finetune.data.tokenizer import CorpusEncoder, cut_text, load_tokenizer, train_tokenizer
from gpt_finetune.errors import InputError

TRICKY = [
    "",
    " ",
    "hello world",
    " leading and trailing ",
    "天气很好，我们去公园。",
    "中文 and English混排text",
    "日本語のテキスト",
    "한국어 문장",
    "हिन्दी में पाठ",
    "e\u0301 and é: not normalised",
    "🙂👨‍👩‍👧‍👦🏳️‍🌈",
    "def f(x):\n\tif x:\n        return x  # why\n\n\n",
    "tabs\t\t\tand   runs    of spaces",
    "\r\n\r\n mixed \n\r line ends \r",
    "control \x00\x01\x07\x1b[0m\x7f characters",
    "1234567890 3.14159 1,000,000",
    "don't can't 'text' I'LL",
    "a ,b . c ' s",
    "\u00a0\u2003\u3000 odd spaces \ufeff",
    "<|endoftext|><|pad|>",
    "𠮷野家 〇々",
    "\U0010ffff\u200d",
]


@pytest.mark.parametrize("text", TRICKY)
def test_round_trip(tokenizer, text):
    for ids in (tokenizer(text).input_ids, CorpusEncoder.of(tokenizer)([text])[0].tolist()):
        assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_any_text_round_trips_in_any_pieces(tokenizer, text):
    ids = CorpusEncoder.of(tokenizer)([text])[0]
    assert tokenizer.decode(ids.tolist()) == text
    pieces = list(cut_text(text, limit=4))
    assert "".join(pieces) == text
    assert all(len(piece) <= 4 for piece in pieces)
    assert all(pieces) or pieces == [""]
    joined = np.concatenate(CorpusEncoder.of(tokenizer)(pieces))
    assert tokenizer.decode(joined.tolist()) == text


def test_layout(tokenizer):
    assert len(tokenizer) == 320
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (0, 1, 0)
    assert tokenizer.clean_up_tokenization_spaces is False
    assert tokenizer("天气").input_ids == tokenizer("天气", add_special_tokens=False).input_ids


def test_pre_tokenizer():
    """Words keep one mark before them; CJK, digits, contractions and indentation are parted as documented."""

    def parts(text):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = module.pre_tokenizers.Split(module.Regex(module.PATTERN), behavior="isolated")
        return [part for part, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    assert parts("Hello, world") == ["Hello", ",", " world"]
    assert parts("我用Python写code。") == ["我用", "Python", "写", "code", "。"]
    assert parts("don't 'text'") == ["don", "'t", " '", "text", "'"]
    assert parts("x = 12345") == ["x", " =", " ", "123", "45"]
    assert parts("if x:\n        return self.y\n") == ["if", " x", ":\n        ", "return", " self", ".y", "\n"]
    assert parts("a   b") == ["a", "  ", " b"]


def test_extra_special_tokens():
    tokenizer = train_tokenizer(["a b c"] * 9, TokenizerConfig(vocab_size=262, extra_special_tokens=["<|user|>"]))
    assert tokenizer.convert_tokens_to_ids("<|user|>") == 2
    assert tokenizer("<|user|>").input_ids == [2]
    assert tokenizer.decode([2], skip_special_tokens=True) == ""


def test_training_is_deterministic():
    texts = [text * 3 for text in TRICKY] * 3
    first, second = (train_tokenizer(iter(texts), TokenizerConfig(vocab_size=350)) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@pytest.mark.timeout(60)  # without the limit on runs, training needs minutes for each of these
@pytest.mark.parametrize("text", [" " * 4_000_000, "x" * 4_000_000, "天气" * 2_000_000], ids=["spaces", "x", "天气"])
def test_one_endless_run_does_not_hold_up_training(text):
    tokenizer = train_tokenizer([text], TokenizerConfig(vocab_size=300))
    assert "FixedLength" not in tokenizer.backend_tokenizer.to_str(), "the limit is training's own"
    assert len(tokenizer(text[:200]).input_ids) < 10


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(caplog):
    tokenizer = train_tokenizer(["abc abc"], TokenizerConfig(vocab_size=5000))
    assert 258 < len(tokenizer) < 270
    assert "5000" in caplog.text


def test_a_special_token_that_text_becomes_is_refused():
    with pytest.raises(InputError, match="'END'"):
        train_tokenizer(["END END END\nEND"] * 9, TokenizerConfig(vocab_size=300, eos_token="END"))


def test_text_cannot_forge_a_boundary(tokenizer):
    text = "before<|endoftext|>after <|pad|>"
    assert tokenizer(text).input_ids.count(0) == 1  # the chat side of transformers does see the special token
    (ids,) = CorpusEncoder.of(tokenizer).documents([Document(text, "here")])
    assert 0 not in ids
    assert 1 not in ids
    assert tokenizer.decode(ids.tolist()) == text
    assert tokenizer(text).input_ids.count(0) == 1  # and the encoder's mode has not leaked into it


def test_the_safeguard_survives_pickling(tokenizer):
    encoder = pickle.loads(pickle.dumps(CorpusEncoder.of(tokenizer)))
    assert 0 not in encoder(["<|endoftext|>"])[0]


def test_a_tokenizer_that_forges_all_the_same_is_refused(tokenizer):
    """An end token that is not marked special is taken out of text whatever one asks."""
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    data["added_tokens"][0]["special"] = False
    encoder = CorpusEncoder(json.dumps(data), 0, 1)
    with pytest.raises(InputError, match=r"book\.txt:3"):
        encoder.documents([Document("fine", "book.txt:2"), Document("a<|endoftext|>b", "book.txt:3")])


def test_truncation_padding_and_added_tokens_of_others_do_not_leak_in(tokenizer):
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), eos_token="<|endoftext|>"
    )
    other.backend_tokenizer.enable_truncation(3)
    other.backend_tokenizer.enable_padding(length=50)
    text = "the cat sat on a mat while the cat sat"
    expected = CorpusEncoder.of(tokenizer)([text])[0]
    assert CorpusEncoder.of(other)([text])[0].tolist() == expected.tolist()


def test_encoding_in_pieces_equals_encoding_whole(tokenizer, monkeypatch):
    text = "\n".join(["    the cat sat on a mat", "天气 很好", "", "def f(x): return x"] * 50)
    whole = CorpusEncoder.of(tokenizer)([text, "", "short"])
    monkeypatch.setattr(module, "BATCH", 100)
    batched = CorpusEncoder.of(tokenizer)([text, "", "short"])
    assert [ids.tolist() for ids in whole] == [ids.tolist() for ids in batched]
    monkeypatch.setattr(module.cut_text, "__defaults__", (64,))
    cut = CorpusEncoder.of(tokenizer)([text, "", "short"])
    assert tokenizer.decode(cut[0].tolist()) == text
    assert len(cut[0]) <= len(whole[0]) * 1.05


def test_large_vocabularies_get_wide_ids():
    vocabulary = {f"t{i}": i for i in range(70_000)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t1"))
    encoder = CorpusEncoder(backend.to_str(), 0, 1)
    assert encoder.dtype == np.uint32
    assert encoder(["t69999"])[0].tolist() == [69_999]


def test_reload_in_a_process_without_this_package(tokenizer, tokenizer_folder, tmp_path):
    code = """
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert not any(name.startswith("gpt_finetune") for name in sys.modules)
texts = json.load(open(sys.argv[2]))
print(json.dumps([tokenizer(texts).input_ids, [tokenizer.decode(tokenizer(t).input_ids) for t in texts],
    [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, len(tokenizer)]]))
"""
    (tmp_path / "texts.json").write_text(json.dumps(TRICKY))
    done = subprocess.run(
        [sys.executable, "-c", code, tokenizer_folder, str(tmp_path / "texts.json")],
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    ids, decoded, special = json.loads(done.stdout.splitlines()[-1])
    assert ids == tokenizer(TRICKY).input_ids
    assert decoded == TRICKY
    assert special == [0, 1, 0, 320]


def test_load_tokenizer_leaves_it_as_it_is(tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save(tokenizer, tmp_path / "a"))
    tokenizer.pad_token = tokenizer.eos_token
    loaded = load_tokenizer(save(tokenizer, tmp_path / "b"))
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 0)
    without = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    loaded = load_tokenizer(save(without, tmp_path / "c"))
    assert loaded.pad_token_id is None
    assert CorpusEncoder.of(loaded).pad_id == 0


def save(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_bad_tokenizers_are_refused(tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    no_end = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    shell = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="<|endoftext|>")
    for path, expected in {
        str(tmp_path / "nowhere"): "no tokenizer can be loaded",
        str(tmp_path / "empty"): "no tokenizer can be loaded",
        "nobody/nothing": "no tokenizer can be loaded",
        save(no_end, tmp_path / "no_end"): "no end token",
        save(shell, tmp_path / "shell"): "encodes text to nothing",
    }.items():
        with pytest.raises(InputError, match=expected) as error:
            load_tokenizer(path)
        assert "tokenizer.path" in str(error.value)
