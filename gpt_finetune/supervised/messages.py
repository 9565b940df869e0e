"""The turns of a conversation: names of roles, tool calls, and which turn may follow which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gpt_finetune.errors import InputError, did_you_mean

Message = dict[str, Any]

# What data sets call the speakers -> what templates call them.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
# Who may speak after whom; None is the beginning.
FOLLOWERS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")  # further fields that templates read
CALL = "function_call"  # in ShareGPT a speaker of its own, whose text is the call


def read_messages(turns: Sequence[tuple[str, Any]], origin: str) -> tuple[list[Message], tuple[int, ...]]:
    """Check turns and write them in the fields that OpenAI gave them.

    Args:
        turns: Each with its name in the row, such as `messages[2]`, for error messages. A turn has `role` and
            `content`, or `from` and `value`; an assistant's `weight` of 0 keeps loss away from it.
        origin: File and row, for error messages.

    Returns:
        The messages, without empty system turns, and the numbers of the assistant's turns that may bear loss.

    Raises:
        InputError: A turn has no content, an unknown role, or one that cannot stand there.
    """
    messages: list[Message] = []
    learned = []
    for name, turn in turns:
        field = f"{origin}: {name}"
        if not isinstance(turn, dict):
            raise InputError(field, turn, "a turn is an object of role and content", "Repair or remove the row")
        message, said = _read(turn, field)
        if message["role"] == "system" and not message["content"]:
            continue
        before = messages[-1]["role"] if messages else None
        if message["role"] not in FOLLOWERS[before]:
            place = "at the beginning" if before is None else f"after a turn of {before}"
            problem = f"it cannot stand {place}, where {' or '.join(FOLLOWERS[before])} speaks"
            raise InputError(field, said, problem, "Put the turns into order, or remove the row")
        if message["role"] == "assistant" and _weight(turn, field):
            learned.append(len(messages))
        messages.append(message)
    return messages, tuple(learned)


def read_tools(value: Any, origin: str) -> list[Any] | None:
    """Return the tools of a row: a list of JSON schemas, or such a list written as JSON text.

    Raises:
        InputError: It is something else.
    """
    tools = _from_json(value)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise InputError(f"{origin}: tools", value, "it is no list of JSON schemas", "Repair or remove the row")
    return [_without_nulls(tool) for tool in tools]


def _read(turn: Message, field: str) -> tuple[Message, str]:
    """Return a turn as a message, and the role that it was given."""
    turn = {name: value for name, value in turn.items() if value is not None}
    said = turn.get("role", turn.get("from"))
    if not isinstance(said, str):
        remedy = "Give each turn `role` and `content`, or `from` and `value`"
        raise InputError(field, turn, "it names no role", remedy)
    if said.strip().lower() not in ROLES:
        raise InputError(field, said, "there is no such role", did_you_mean(said.lower(), ROLES))
    role = ROLES[said.strip().lower()]
    content = _content(turn.get("content", turn.get("value", "")), field)
    calls = turn.get("tool_calls") or []
    if said.strip().lower() == CALL:
        calls, content = _from_json(content), ""
        calls = calls if isinstance(calls, list) else [calls]
    message: Message = {"role": role, "content": content, **{name: turn[name] for name in KEPT if name in turn}}
    if calls:
        message["tool_calls"] = [_call(call, f"{field}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if role in ("user", "assistant") and not content.strip() and not calls:
        problem = "it has no content" + (" and no tool_calls" if role == "assistant" else "")
        raise InputError(field, said, problem, "Fill it in, or remove the row")
    return message, said


def _content(value: Any, field: str) -> str:
    """Return the text of a turn; a list of parts, as OpenAI writes it, must be all text."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) < len(parts):
        problem = "its content is not text"
        raise InputError(field, value, problem, "Give text, or a list of {type: text, text: …}")
    return "".join(texts)


def _call(call: Any, field: str) -> Message:
    """Return a tool call as templates read it: name and arguments, these as an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        remedy = "Give {type: function, function: {name: …, arguments: {…}}}"
        raise InputError(field, call, "it names no function", remedy)
    given = function.get("arguments", function.get("parameters", {}))
    arguments = _from_json(given) if isinstance(given, str) else _without_nulls(given)
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") is not None else made


def _weight(turn: Message, field: str) -> bool:
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise InputError(f"{field}.weight", weight, "a turn is learned or it is not", "Give 1 or 0")
    return weight != 0


def _from_json(value: Any) -> Any:
    """Read what may be JSON text, and leave it as it is where it is not."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    """Leave out the empty fields that a table with one schema for all rows adds."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
