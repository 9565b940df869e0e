"""A row's columns as turns: templates with names of columns in braces, filled in one pass."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt_finetune.errors import InputError, did_you_mean

JSON = "json:"
_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_SLOT = re.compile(r"(?P<json>json:)?(?P<names>[^:]+?)(?::\.(?P<most>\d+))?")
_LISTED = ", "  # between the items of a list


@dataclass(frozen=True)
class Slot:
    """What stands between two braces of a template.

    Args:
        names: The columns: one, or those of an object.
        is_json: Write a JSON object of the columns.
        most: Characters to keep of the column; None keeps all.
    """

    names: tuple[str, ...]
    is_json: bool
    most: int | None


def slots(template: str, field: str) -> list[Slot]:
    """Return what a template asks of a row.

    Args:
        template: Text with `{column}`, `{column:.800}` (its first 800 characters) or `{json:one,other}`; `{{` and `}}`
            are braces.
        field: Dotted config key of the template, for error messages.

    Raises:
        InputError: What stands in braces is none of these.
    """
    return [_slot(found[1], field) for found in _PART.finditer(template) if found[1] is not None]


def fill(template: str, row: Mapping[str, Any], origin: str, field: str) -> str:
    """Return a template with a row's values in it. Braces in them are data.

    A list becomes its items with commas between. In an object, what is null or empty is left out.

    Args:
        template: See `slots`.
        row: The columns.
        origin: File and row, for error messages.
        field: Dotted config key of the template, for error messages.

    Raises:
        InputError: The row has no such column, or nothing in it.
    """

    def value(found: re.Match[str]) -> str:
        if found[1] is None:
            return found[0][0]
        slot = _slot(found[1], field)
        for name in slot.names:
            if name not in row:
                problem = f"the row has no column {name!r}, which {field} names"
                raise InputError(origin, list(row), problem, did_you_mean(name, map(str, row)))
        if slot.is_json:
            return _object({name: row[name] for name in slot.names}, origin)
        return text_of(row[slot.names[0]], f"{origin}: {slot.names[0]}")[: slot.most]

    return _PART.sub(value, template)


def text_of(value: Any, field: str) -> str:
    """Return a column's value as text.

    Raises:
        InputError: There is nothing in it, or it is an object.
    """
    if isinstance(value, Mapping):
        raise InputError(field, value, "it holds an object, not text", "Name it as {json:…}, or flatten the row")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _LISTED.join(text_of(item, field) for item in value) or text_of(None, field)
    text = "" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
    if not text.strip():
        raise InputError(field, value, "it is empty, and the template needs it", "Fill it in, or remove the row")
    return text


def _object(columns: Mapping[str, Any], origin: str) -> str:
    kept = {name: value for name, value in columns.items() if value not in (None, "", [], {})}
    if not kept:
        problem = "all the columns of the answer are empty"
        raise InputError(origin, list(columns), problem, "Fill one in, or remove the row")
    try:
        return json.dumps(kept, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InputError(origin, list(columns), f"it does not go into JSON ({error})", "Repair the row") from None


def _slot(written: str, field: str) -> Slot:
    found = _SLOT.fullmatch(written.strip())
    names = tuple(name.strip() for name in found["names"].split(",")) if found else ()
    if found and not found["json"]:
        names = (found["names"].strip(),)
    if not found or not all(names) or (found["json"] and found["most"]):
        problem = "it is neither {column} nor {column:.800} nor {json:one,other}"
        raise InputError(field, f"{{{written}}}", problem, "Name a column; write {{ and }} for braces")
    return Slot(names, bool(found["json"]), int(found["most"]) if found["most"] else None)
