"""What in question and text spoke for an answer: gradient times input of its first and last token's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_finetune.tasks.answer_judging import excerpt_of
from gpt_finetune.tasks.answer_reading import Asked
from gpt_finetune.tasks.attribution import Part, join, weigh
from gpt_finetune.tasks.spans import PairEncoder, Said, Window

if TYPE_CHECKING:
    from gpt_finetune.tasks.answering import PreparedAnswers

Columns = tuple[int, int]


def explain_answers(
    model: Any, data: PreparedAnswers, said: Sequence[np.ndarray], shown: Sequence[dict[str, Any]]
) -> None:
    """Add to answers that are shown what spoke for each, as `parts`, and take `row` away.

    What speaks for a wrong answer speaks against the right one; for a right one, against there being none; for there
    being none, against the likeliest span.

    Args:
        model: It answers; whole in this process.
        data: The rows.
        said: Of the held-out windows, as `AnswerTrainer.said` returns it.
        shown: From `answer_judging.judge`, with the number of each one's row.
    """
    encoder = PairEncoder(data.tokenizer, data.collate.width, data.facts["question_length"], data.facts["overlap"])
    answers = data.assemble(said)
    for each in shown:
        row = each.pop("row")
        windows = [i for i, owner in enumerate(data.owners) if owner == row]
        found = [(data.validation.windows[i], said[i]) for i in windows]
        window, told, other = choose_window(data.asked[row].context, answers[row], found)
        if told == other:  # a context without a token
            continue
        weights = attribute_answer(model, window, told, other)
        each["parts"] = parts_of(encoder, data.asked[row], window, weights)


def choose_window(
    context: str, answer: Said, rows: Sequence[tuple[Window, np.ndarray]]
) -> tuple[Window, Columns, Columns]:
    """Return the window that a question was answered from, the answer's columns, and those that it is held against.

    Args:
        context: The text.
        answer: What was told, by `spans.decide`.
        rows: The question's windows, each with what `spans.read_row` says of it.
    """
    if answer.start is None:
        window, found = next(((w, s) for w, s in rows if w.has_answer), min(rows, key=lambda each: each[1][0, 2]))
        told = window.bounds[1], window.bounds[1]
    else:
        options = [
            (float(line[2] - lines[0, 2]), i, (int(line[0]), int(line[1])))
            for i, (window, lines) in enumerate(rows)
            for line in lines[1:]
            if _place_of(context, window, line) == (answer.start, answer.end)
        ]
        _, place, told = max(options)
        window, found = rows[place]
    right = window.start, window.end
    if told != right:
        return window, told, right
    last = window.bounds[1]
    if told != (last, last):
        return window, told, (last, last)
    return window, told, (int(found[1, 0]), int(found[1, 1])) if len(found) > 1 else told


def _place_of(context: str, window: Window, line: np.ndarray) -> Columns:
    """Return where a span begins and ends in the context, without spaces at its ends."""
    begin, end = window.characters(int(line[0]), int(line[1]))
    text = context[begin:end]
    begin += len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())


def attribute_answer(model: Any, window: Window, told: Columns, other: Columns) -> np.ndarray:
    """Return what each token of a window adds to the odds of one span over another (T,).

    Args:
        model: It answers.
        window: Question and context.
        told: Columns of the first and last token that weights above 0 speak for.
        other: The same of what weights below 0 speak for.
    """

    def pick(outputs: Any) -> Any:
        start, end = outputs.start_logits[0], outputs.end_logits[0]
        return start[told[0]] + end[told[1]] - start[other[0]] - end[other[1]]

    return weigh(model, window.ids.tolist(), pick)


def parts_of(encoder: PairEncoder, asked: Asked, window: Window, weights: np.ndarray) -> list[Part]:
    """Put weights to the characters that the report shows: the question, and a part of the context.

    Args:
        encoder: That made the window.
        asked: The question on its context.
        window: As much of it as the model saw at once.
        weights: Of each token of the window (T,).
    """
    text, begin, end, shift = excerpt_of(asked)
    options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
    offsets = encoder.tokenizer(asked.question, **options)["offset_mapping"][: encoder.question_length]
    places = [(int(low), int(high)) for low, high in offsets]
    columns = list(range(len(encoder.before), len(encoder.before) + len(places)))
    for column, (low, high) in enumerate(window.offsets.tolist(), window.bounds[0]):
        if low < end and begin < high:
            places.append((max(low, begin) + shift, min(high, end) + shift))
            columns.append(column)
    return join(text, places, weights[columns])
