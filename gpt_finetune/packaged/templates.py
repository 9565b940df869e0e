"""Sentences drawn from templates, in the notation of voice assistants.

    [please] turn (on|off) {name} (in <the> {area}; now)

has something optional, a choice, values of a list, another template by name, and parts that may come in any order.
`{brightness:level}` fills the slot `level` from the list `brightness`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from random import Random

from gpt_finetune.errors import InputError

_TOKEN = re.compile(r"\{[^{}]*\}|<[^<>]*>|[\[\]()|;]|[^\[\](){}<>|;]+")
_CLOSING = {"[": "]", "(": ")"}


@dataclass(frozen=True)
class Reference:
    """A value of a list, or a template by name.

    Args:
        name: Of the list or template.
        slot: What the value fills; None for a template.
    """

    name: str
    slot: str | None


@dataclass(frozen=True)
class Group:
    """Parts of a template.

    Args:
        kind: sequence for all in order, choice for one of them, permutation for all in any order.
        parts: Text, references and groups.
    """

    kind: str
    parts: tuple[Part, ...]


Part = str | Reference | Group


@cache
def parse(template: str) -> Part:
    """Read a template.

    Raises:
        InputError: A bracket has no partner, or stands in a wrong place.
    """
    tokens = _TOKEN.findall(template)
    part, end = _parse(tokens, 0, "")
    if end != len(tokens) or "".join(tokens) != template:
        raise InputError("template", template, "its brackets do not match", "Close each one, inside first")
    return part


def _parse(tokens: list[str], start: int, closing: str) -> tuple[Part, int]:
    """Read up to a closing bracket, or the end; return what was read, and the position of what ended it."""
    parts: list[list[Part]] = [[]]
    separators = set()
    at = start
    while at < len(tokens) and tokens[at] not in ("]", ")"):
        token = tokens[at]
        if token in _CLOSING:
            part, at = _parse(tokens, at + 1, _CLOSING[token])
            parts[-1].append(Group("choice", (part, "")) if token == "[" else part)
        elif token in "|;":
            separators.add(token)
            parts.append([])
        else:
            parts[-1].append(_leaf(token))
        at += 1
    if "".join(tokens[at : at + 1]) != closing or len(separators) > 1:
        problem = f"{closing or 'its end'} is missing, or one group has both | and ;"
        raise InputError("template", "".join(tokens), problem, "Close each bracket, and put a group into the group")
    sequences = tuple(Group("sequence", tuple(sequence)) for sequence in parts)
    return Group("permutation" if ";" in separators else "choice", sequences), at


def _leaf(token: str) -> Part:
    if token[0] == "{":
        name, _, slot = token[1:-1].partition(":")
        return Reference(name, slot or name)
    return Reference(token[1:-1], None) if token[0] == "<" else token


@dataclass
class Sampler:
    """Draws sentences.

    Args:
        rules: Templates by name, as text.
        value: Returns a value of a list, itself a template, given the list's name.
        random: Where chance comes from.
    """

    rules: Mapping[str, str]
    value: Callable[[str], str]
    random: Random
    _slots: dict[str, str] = field(default_factory=dict)

    def draw(self, template: str) -> tuple[str, dict[str, str]]:
        """Return a sentence, and its slots with their values as they stand in it."""
        self._slots = {}
        text = _plain(self._draw(parse(template)))
        return text, self._slots

    def _draw(self, part: Part) -> str:
        if isinstance(part, str):
            return part
        if isinstance(part, Reference):
            if part.slot is None:
                return self._draw(parse(self.rules[part.name]))
            text = self._draw(parse(self.value(part.name)))
            self._slots[part.slot] = _plain(text)
            return text
        if part.kind == "choice":
            return self._draw(self.random.choice(part.parts))
        if part.kind == "sequence":
            return "".join(self._draw(each) for each in part.parts)
        # What changes its place needs a space around it; one too many is taken away at the end.
        return " ".join(self._draw(each) for each in self.random.sample(part.parts, len(part.parts)))


def _plain(text: str) -> str:
    return " ".join(text.split())
