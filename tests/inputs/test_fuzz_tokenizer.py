"""Tokenizer files with something in them changed: it loads and gives tokens, or one line says that it does not."""

from __future__ import annotations

import copy
import json

from fuzzing import amounts
from hypothesis import given
from hypothesis import strategies as st

from gpt_finetune.data.tokenizer import CorpusEncoder, load_tokenizer
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.templates import ready_tokenizer

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 10**9),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just(["a"]),
    st.floats(),
)
GONE = object()


def change(content, path, value):
    """Return nested plain values with one of them, which `path` leads to by its places, replaced or removed."""
    made = copy.deepcopy(content)
    place = made
    while True:
        names = list(place) if isinstance(place, dict) else list(range(len(place)))
        name = names[path[0] % len(names)]
        path = path[1:]
        if path and isinstance(place[name], dict | list) and place[name]:
            place = place[name]
        elif value is GONE:
            del place[name]
            return made
        else:
            place[name] = value
            return made


@amounts
def test_no_changed_tokenizer_ends_in_a_bare_error(tried, base, tmp_path):
    names = ("tokenizer.json", "tokenizer_config.json")
    whole = {name: json.loads((base / name).read_text(encoding="utf-8")) for name in names}
    for name in names:
        (tmp_path / name).write_text(json.dumps(whole[name]), encoding="utf-8")

    @tried(15, 1000)
    @given(st.sampled_from(names), st.lists(st.integers(0, 50), min_size=1, max_size=5), VALUES | st.just(GONE))
    def check(name, path, value):
        (tmp_path / name).write_text(json.dumps(change(whole[name], path, value)), encoding="utf-8")
        loads_or_is_refused(tmp_path)
        (tmp_path / name).write_text(json.dumps(whole[name]), encoding="utf-8")

    check()


@amounts
def test_no_torn_tokenizer_ends_in_a_bare_error(tried, base, tmp_path):
    names = ("tokenizer.json", "tokenizer_config.json")
    whole = {name: (base / name).read_bytes() for name in names}
    for name in names:
        (tmp_path / name).write_bytes(whole[name])

    @tried(10, 100)
    @given(st.sampled_from(names), st.floats(0, 1), st.binary(max_size=3))
    def check(name, share, data):
        place = int(share * len(whole[name]))
        (tmp_path / name).write_bytes(whole[name][:place] + data)
        loads_or_is_refused(tmp_path)
        (tmp_path / name).write_bytes(whole[name])

    check()


def loads_or_is_refused(folder):
    """Load a tokenizer and write a text with it; only an error of ours passes."""
    try:
        tokenizer = load_tokenizer(str(folder))
        encoder = CorpusEncoder.of(tokenizer)
        assert all(ids.max() < encoder.vocab_size for ids in encoder(["the plot is good"]))
        ready_tokenizer(tokenizer, "chatml")
    except InputError as error:
        assert "\n" not in str(error)
