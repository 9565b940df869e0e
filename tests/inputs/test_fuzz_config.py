"""Configurations: what is written reads back as it was, and garbage is an error of ours, whatever it is."""

from __future__ import annotations

import dataclasses
import string
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from fuzzing import trying
from hypothesis import assume, example, given
from hypothesis import strategies as st
from support import load_recipe
from yaml import YAMLError, safe_dump, safe_load

from gpt_finetune.config import keys, parse, to_yaml
from gpt_finetune.data.config import SourceConfig
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.config import ExampleSourceConfig

RECIPES = {"pretrain": "PretrainConfig", "finetune": "FinetuneConfig", "classify": "ClassifyConfig"}
# What YAML, JSON and the command line might take for something else.
TRICKY = [
    "null",
    "~",
    "yes",
    "1e5",
    "0x1f",
    "1_000",
    "- a",
    "a: b",
    "{",
    "#",
    "'",
    '"',
    "%",
    "\t",
    " a ",
    "a\nb",
    "=",
    "2026-11-23",
]
TEXT = st.one_of(st.sampled_from(TRICKY), st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8))
# Where null or anything may stand, jsonargparse reads a text once more as YAML, so that '#' is null and 'yes' is true
# there, quoted or not: only texts that stay what they are can be given.
CLEAR = TEXT.filter(lambda text: reads_as_itself(text) and "e" not in text.lower())
NUMBER = st.floats(allow_nan=False, allow_infinity=False)


def anything(texts: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    """Return a strategy for nested plain values."""
    plain = st.one_of(st.none(), st.booleans(), st.integers(), NUMBER, texts)
    return st.recursive(
        plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
    )


GARBAGE = anything(TEXT)


@dataclass
class Section:
    """A section.

    Args:
        rate: A number.
        limit: A whole one, or null.
        kind: One of two.
        names: Texts.
        targets: Texts, or null.
        sources: Sections, with one of their own that may be null.
        reports: Some of two.
        options: Anything.
        watch: Sections by name.
    """

    rate: float = 0.5
    limit: int | None = None
    kind: Literal["red", "blue"] = "red"
    names: list[str] = field(default_factory=list)
    targets: list[str] | None = None
    sources: list[ExampleSourceConfig] = field(default_factory=list)
    reports: list[Literal["one", "two"]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    watch: dict[str, list[SourceConfig]] = field(default_factory=dict)


@dataclass
class Everything:
    """Each kind of field that recipes have: hundreds of these are parsed in the time of one of theirs.

    Args:
        text: Some text.
        other: Some text, or null.
        flag: A switch.
        section: The section.
    """

    text: str = ""
    other: str | None = None
    flag: bool = False
    section: Section = field(default_factory=Section)


@pytest.fixture(
    scope="module", params=["everything", *(pytest.param(name, marks=pytest.mark.long) for name in RECIPES)]
)
def config_class(request):
    if request.param == "everything":
        return Everything
    return getattr(load_recipe(request.param), RECIPES[request.param])


@pytest.fixture
def tried(config_class):
    """Return a decorator for a property: more examples of the small configuration than of whole recipes."""
    return trying(12 if config_class is Everything else 15)


def reads_as_itself(text: str) -> bool:
    """Tell whether YAML takes a text for that text."""
    try:
        return bool(safe_load(text) == text)
    except (YAMLError, ValueError):
        return False


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return sections(hint)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([CLEAR if part is str else values_of(part) for part in arguments])
    if origin is list:
        return st.lists(values_of(arguments[0]), max_size=2)
    if origin is dict:
        names = st.text(string.ascii_letters, min_size=1, max_size=5)
        return st.dictionaries(names, values_of(arguments[1]), max_size=2)
    known = {
        int: st.integers(1, 10**6),
        float: st.floats(1e-9, 1e9),
        bool: st.booleans(),
        str: TEXT,
        Any: anything(CLEAR),
    }
    return known[hint] if hint is not type(None) else st.none()


def sections(kind: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a section: half of its fields keep their defaults."""

    def build(values: dict[str, Any]) -> Any:
        try:
            return kind(**values)
        except InputError:
            assume(False)

    hints = typing.get_type_hints(kind)
    return st.fixed_dictionaries({}, optional={name: values_of(hint) for name, hint in hints.items()}).map(build)


def test_what_is_written_reads_back(tried, config_class, tmp_path):
    @tried
    @given(st.data())
    def check(data):
        config = data.draw(sections(config_class))
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(config), encoding="utf-8")
        assert parse(config_class, ["--config", str(file)]) == config

    check()


def test_no_file_ends_in_a_bare_error(tried, config_class, tmp_path):
    names = st.sampled_from(sorted(keys(config_class)))

    def nested(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in pairs:
            *sections, last = name.split(".")
            place = made
            for section in sections:
                place = place.setdefault(section, {}) if isinstance(place.get(section, {}), dict) else {}
            place[last] = value
        return made

    known = st.lists(st.tuples(names, GARBAGE), min_size=1, max_size=3).map(nested).map(safe_dump).map(str.encode)
    content = st.one_of(
        known,
        known,
        GARBAGE.map(safe_dump).map(str.encode),
        st.text(max_size=40).map(lambda text: text.encode("utf-8", "replace")),
        st.binary(max_size=40),
    )

    @tried
    @example(b"train: &a [*a]\n")
    @example(b"? [a]\n: 1\n")
    @example(b"1: 2\n")
    @example(b"--- 1\n--- 2\n")
    @example(b"!!python/object/apply:os.system ['true']\n")
    @example(b"output_dir: 2026-13-45\n")
    @given(content)
    def check(content):
        file = tmp_path / "config.yaml"
        file.write_bytes(content)
        refused_or_read(config_class, ["--config", str(file)])

    check()


def test_no_command_line_ends_in_a_bare_error(tried, config_class):
    names = st.one_of(st.sampled_from(sorted(keys(config_class))), TEXT)
    values = st.one_of(TEXT, GARBAGE.map(str))
    words = st.one_of(
        st.tuples(names, values).map("=".join),
        st.tuples(names, values).map(lambda pair: f"--{pair[0]}={pair[1]}"),
        TEXT,
    )

    @tried
    @given(st.lists(words, min_size=1, max_size=3))
    def check(words):
        assume(not any(word.startswith(("-h", "--help", "--print_config", "config", "--config")) for word in words))
        assume(not any(word.endswith(".help") for word in words))
        refused_or_read(config_class, words)

    check()


def refused_or_read(config_class: type, words: list[str]) -> None:
    """Parse; a configuration or an error of one line is fine, anything else is raised."""
    try:
        assert isinstance(parse(config_class, words), config_class)
    except InputError as error:
        assert "\n" not in str(error)
