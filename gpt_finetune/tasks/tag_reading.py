"""Rows with a tag for each word: from two lists, or from a text and the slots that stand in it."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.metrics.words import is_unspaced
from gpt_finetune.tasks.config import CLASSES, ENTITIES
from gpt_finetune.tasks.sources import column_of, read_rows, text_in
from gpt_finetune.tasks.tag_config import TagDataConfig

OUTSIDE = "O"
_IOB2 = re.compile(r"O|[BI]-.+")
# A sign of a script without spaces or of punctuation is a unit by itself; a number or Latin word is one as a whole.
_SPACED = r"[^\W\u2e80-\U0003ffff]"  # letters and digits that Unicode has before CJK's
_UNIT = re.compile(rf"{_SPACED}+|\S")
_REPAIR = "Repair or remove the row"
_LOOKED_AT = 1000  # rows that say whether words are parted by spaces


@dataclass(frozen=True)
class Tagged:
    """A text as words with tags; two are equal if their tags are.

    Args:
        tags: One a word.
        words: As the model is to see them.
        sizes: How many of them each word of the row became.
    """

    tags: tuple[str, ...]
    words: tuple[str, ...] = field(compare=False)
    sizes: tuple[int, ...] = field(compare=False)


def find_joiner(config: TagDataConfig) -> str:
    """Return what stands between words: as it is set, else as the first rows are written."""
    if config.joiner is not None:
        return config.joiner
    column = config.text_column if config.slots_column else config.words_column
    texts: list[str] = []
    for record in itertools.islice(read_rows(config.sources[0], "data.sources[0]"), _LOOKED_AT):
        value = record.value.get(column) if isinstance(record.value, dict) else None
        texts += [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return joiner_of(texts)


def joiner_of(texts: list[str]) -> str:
    """Return nothing for texts in scripts without spaces, else a space."""
    return "" if is_unspaced(texts) else " "


def split_text(text: str, joiner: str) -> list[str]:
    """Return the words of a plain text: what spaces part, or if nothing joins words, signs, numbers and Latin words."""
    return _UNIT.findall(text) if not joiner else text.split()


class TagReader:
    """Reads rows of words with tags.

    Args:
        config: The columns, and what becomes of words and tags.
        joiner: What stands between words.

    Attributes:
        slots: How many there were: found, dropped (they do not stand in the text, or in another slot), ambiguous (they
            stand there more than once; the first place is taken).
    """

    def __init__(self, config: TagDataConfig, joiner: str) -> None:
        self.config, self.joiner = config, joiner
        self.cut = re.compile(config.tag_cut) if config.tag_cut else None
        self.slots: Counter[str] = Counter()

    def __call__(self, record: Record) -> tuple[str, Tagged]:
        """Return text and tags of a row.

        Raises:
            InputError: It has none, or not as many tags as words.
        """
        words, tags = self._read_slots(record) if self.config.slots_column else self._read_lists(record)
        if self.cut is not None:
            tags = [self.cut.sub("", tag) for tag in tags]
            if not all(tags):
                raise InputError(record.origin, tags, "data.tag_cut leaves nothing of a tag", "Let it leave something")
        if self.config.scheme == "iob2" and (bad := next((tag for tag in tags if not _IOB2.fullmatch(tag)), None)):
            problem = "the tag is neither O nor B- or I- and a name, and data.scheme is iob2"
            raise InputError(record.origin, bad, problem, "Repair it, or set data.scheme=classes")
        sizes = [1] * len(words)
        if self.config.characters:
            parts = [_UNIT.findall(word) for word in words]
            sizes = [len(units) for units in parts]
            pairs = zip(words, tags, parts, strict=True)
            tags = [each for _, tag, units in pairs for each in _spread(tag, len(units))]
            words = [unit for units in parts for unit in units]
        return self.joiner.join(words), Tagged(tuple(tags), tuple(words), tuple(sizes))

    def _read_lists(self, record: Record) -> tuple[list[str], list[str]]:
        config = self.config
        words = words_in(column_of(record, config.words_column, "data.words_column"), record.origin)
        value = column_of(record, config.tags_column, "data.tags_column")
        if not isinstance(value, list):
            problem = f"the column {config.tags_column!r} is {type(value).__name__}, not a list"
            raise InputError(record.origin, value, problem, "Give a list of tags in each row")
        if len(value) != len(words):
            problem = f"{len(words)} words have {len(value)} tags"
            raise InputError(record.origin, value, problem, "Give each word one tag, or remove the row")
        for tag in value:
            if isinstance(tag, bool) or not isinstance(tag, str | int) or not str(tag).strip():
                raise InputError(record.origin, tag, "a tag is a text or an integer, and not empty", _REPAIR)
        return words, [str(tag).strip() for tag in value]

    def _read_slots(self, record: Record) -> tuple[list[str], list[str]]:
        config = self.config
        assert config.slots_column is not None
        text = text_in(column_of(record, config.text_column, "data.text_column"), record.origin)
        slots = column_of(record, config.slots_column, "data.slots_column") or {}
        if not isinstance(slots, Mapping):
            raise InputError(record.origin, slots, "slots are a mapping from names to values", _REPAIR)
        words = split_text(text, self.joiner)
        spans: list[tuple[str, range]] = []  # characters of the text
        for name, free in find_slots(text, slots, spaced=bool(self.joiner)):
            if not free and config.strict:
                problem = (
                    f"the value of the slot {name!r} does not stand in the text, and data.strict=true refuses such"
                )
                raise InputError(record.origin, slots[name], problem, _REPAIR)
            self.slots["found" if free else "dropped"] += 1
            self.slots["ambiguous"] += len(free) > 1
            spans += [(str(name), place) for place in free[:1]]
        return words, tag_spans(text, words, spans)


def find_slots(text: str, slots: Mapping[str, Any], *, spaced: bool) -> list[tuple[str, list[range]]]:
    """Return where the value of each slot stands in a text, as characters; the first place is its own.

    Args:
        text: The text.
        slots: Values by name.
        spaced: Whether spaces part the words.
    """
    found: list[tuple[str, list[range]]] = []
    # the longest first: a "kitchen" within the "kitchen radio" is not the place of another slot
    for name, value in sorted(slots.items(), key=lambda slot: -len(str(slot[1]))):
        taken = [place for _, places in found for place in places[:1]]
        places = _places(text, str(value).strip(), spaced=spaced)
        found.append((name, [place for place in places if not any(_meet(place, other) for other in taken)]))
    return found


def words_in(value: object, origin: str) -> list[str]:
    """Return a row's words.

    Raises:
        InputError: They are no list of texts, or one or all are empty.
    """
    if not isinstance(value, list):
        problem = f"the words are {type(value).__name__}, not a list"
        raise InputError(origin, value, problem, "Give a list of texts in each row, as jsonl and parquet can hold it")
    if not value:
        raise InputError(origin, value, "there is no word", _REPAIR)
    return [text_in(word, origin).strip() for word in value]


def scheme_of(config: TagDataConfig, rows: Sequence[Tagged]) -> str:
    """Return ENTITIES or CLASSES: as it is set, else as all tags look."""
    named = is_iob2({tag for row in rows for tag in row.tags})
    return {"iob2": ENTITIES, "classes": CLASSES, "auto": ENTITIES if named else CLASSES}[config.scheme]


def is_iob2(tags: Iterable[str]) -> bool:
    """Tell whether tags mark names in a text."""
    return all(_IOB2.fullmatch(tag) for tag in tags) and any(tag != OUTSIDE for tag in tags)


def _spread(tag: str, count: int) -> list[str]:
    """Return the tags of a word's parts: a name begins once."""
    inside = f"I-{tag[2:]}" if tag.startswith("B-") else tag
    return [tag, *[inside] * (count - 1)][:count]


def _places(text: str, value: str, *, spaced: bool) -> list[range]:
    """Return where a value stands in a text, as a word or number of its own."""
    if not value:
        return []
    kind = r"\w" if spaced else _SPACED
    before = f"(?<!{kind})" if re.match(kind, value) else ""
    after = f"(?!{kind})" if re.match(kind, value[-1]) else ""
    return [range(*match.span()) for match in re.finditer(before + re.escape(value) + after, text)]


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def tag_spans(text: str, words: Sequence[str], spans: Sequence[tuple[str, range]]) -> list[str]:
    """Return a tag for each word: that of the span that it stands in, at least in part."""
    tags, at = [], 0
    open_span: range | None = None
    for word in words:
        begin = text.index(word, at)
        at = begin + len(word)
        name, span = next(((n, s) for n, s in spans if _meet(s, range(begin, at))), (OUTSIDE, None))
        tags.append(OUTSIDE if span is None else f"{'I' if span is open_span else 'B'}-{name}")
        open_span = span
    return tags
