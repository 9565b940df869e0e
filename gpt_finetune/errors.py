"""The one error that bad input raises: it names the field, the value and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What a Hub token looks like; one that was given in the wrong place must not end up on a screen or in a log.
_TOKEN = re.compile(r"hf_\w{8,}")
# What would part the line, or move the cursor: libraries say such things of damaged files.
_CONTROL = re.compile(r"\s*[\x00-\x1f\x7f-\x9f\u2028\u2029]+\s*")


class InputError(ValueError):
    """Something the user gave cannot be used.

    Recipes print it as one line and exit with code 2, without a traceback.

    Args:
        field: What was wrong, as the user wrote it: a dotted config key, or a file with its row.
        value: The value received.
        problem: Why it cannot be used, without a full stop.
        remedy: What to do about it.
    """

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        said = f"{field} = {_shorten(repr(value))}: {_sentence(problem)} {_sentence(remedy)}"
        super().__init__(_CONTROL.sub(" ", _TOKEN.sub("hf_…", said)))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'x'?`` for the closest known name, or the list of names when none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known)}"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
