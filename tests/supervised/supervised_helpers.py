"""Rows, and ways to read back what they teach."""

from __future__ import annotations

from typing import Any


def chat(*texts: str, system: str | None = None, **columns: Any) -> dict[str, Any]:
    """Return a row of messages whose speakers take turns, the user first."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + turns, **columns}


def whole(prepared: Any, number: int = 0) -> str:
    """Return an example's text as the model gets it."""
    return prepared.tokenizer.decode(prepared.train.example(number).ids)


def learned(prepared: Any, number: int = 0) -> list[str]:
    """Return the runs of learned tokens of an example, as text."""
    example = prepared.train.example(number)
    runs: list[list[int]] = []
    for i, (token, is_target) in enumerate(zip(example.ids.tolist(), example.learned.tolist(), strict=True)):
        if is_target:
            if not i or not example.learned[i - 1]:
                runs.append([])
            runs[-1].append(token)
    return [prepared.tokenizer.decode(run) for run in runs]
