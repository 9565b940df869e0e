"""Extractive question answering: the answer is a span of a text, or there is none; and finished models at work.

The head is that of Devlin et al. 2018 (BERT, arXiv:1810.04805, section 4.2 and 4.3), laid out for a decoder: see
`spans`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.metrics.answers import answer_figures, score_answers
from gpt_finetune.tasks.answer_config import AnswerDataConfig, SpanConfig
from gpt_finetune.tasks.answer_reading import AnswerReader, Asked, ask_of
from gpt_finetune.tasks.classification import PROMPTS
from gpt_finetune.tasks.heads import load_finished
from gpt_finetune.tasks.ledger import TaskLedger
from gpt_finetune.tasks.rows import TaskRow, read_all
from gpt_finetune.tasks.spans import PairEncoder, Said, SpanCollator, SpanRows, Window, decide, read_row
from gpt_finetune.tasks.training import TaskTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

ANSWERER = "GPTForQuestionAnswering"
NO_SPAN = "not_in_text"  # fate of a row whose answer its context has not


@dataclass
class PreparedAnswers:
    """Everything that training needs to know about its rows.

    Args:
        tokenizer: The model's, that can pad.
        train: Windows to train on.
        validation: Held-out windows, numbered, the longest first.
        texts: Rows as they were read, of each side of the split; their targets are `Asked`.
        owners: Of each held-out window, which held-out row it is a part of.
        spans: How answers are chosen.
        ledger: Where every row and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        collate: Stacks windows into a batch.
        lengths: Tokens of question and context of each row, of each side.
        facts: What else a reader of the figures should know, and a prediction must do alike.
    """

    tokenizer: PreTrainedTokenizerBase
    train: SpanRows
    validation: SpanRows
    texts: dict[str, list[TaskRow]]
    owners: list[int]
    spans: SpanConfig
    ledger: TaskLedger
    fingerprint: str
    collate: SpanCollator
    lengths: dict[str, list[int]]
    facts: dict[str, Any]

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out questions and contexts."""
        return sum(len(row.text.encode()) for row in self.texts["validation"])

    @property
    def asked(self) -> list[Asked]:
        """The held-out questions."""
        return [row.target for row in self.texts["validation"]]

    @property
    def references(self) -> list[tuple[str, ...]]:
        """The right answers to the held-out questions."""
        return [asked.answers for asked in self.asked]

    def settings(self) -> dict[str, Any]:
        """Return what the model's configuration is to say of the task."""
        read = {"is_causal": False} if self.facts["bidirectional"] else {}
        return {"pad_token_id": self.collate.pad_id, **read}

    def assemble(self, said: Sequence[np.ndarray]) -> list[Said]:
        """Return the answer to each held-out question.

        Args:
            said: Of each window, as `spans.read_row` returns it.
        """
        parts: list[list[tuple[Window, np.ndarray]]] = [[] for _ in self.asked]
        for owner, window, rows in zip(self.owners, self.validation.windows, said, strict=True):
            parts[owner].append((window, rows))
        return [decide(asked.context, some, self.spans) for asked, some in zip(self.asked, parts, strict=True)]

    def measure(self, said: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the figures of what the model says of the held-out windows."""
        return answer_figures(score_answers([each.answer for each in self.assemble(said)], self.references))


class AnswerTrainer(TaskTrainer):
    """A `TaskTrainer` that keeps of each window its best spans.

    Args:
        *args: As `TaskTrainer`.
        spans: How they are chosen.
        **kwargs: As `TaskTrainer`.
    """

    def __init__(self, *args: Any, spans: SpanConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.spans = spans
        self._bounds: list[list[int]] = []  # of the batch at hand

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch; where its contexts stand is not for the model."""
        self._bounds = inputs["bounds"].tolist()
        return super().prediction_step(
            model, {name: value for name, value in inputs.items() if name != "bounds"}, *args, **kwargs
        )

    def said(self, logits: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Return of each window what `spans.read_row` does.

        Args:
            logits: Of starts and of ends (B, T) each.
            inputs: The batch.
        """
        right = zip(inputs["start_positions"].tolist(), inputs["end_positions"].tolist(), strict=True)
        return read_batch(logits, self._bounds, list(right), self.spans)


def read_batch(
    logits: Any, bounds: Sequence[Sequence[int]], right: Sequence[tuple[int, int]], config: SpanConfig
) -> list[np.ndarray]:
    """Return of each row of a batch what `read_row` does.

    Args:
        logits: Of starts and of ends (B, T) each, with padding.
        bounds: Columns of each row where its context begins and ends; the row ends one further.
        right: Columns of the right answers, for the loss.
        config: How spans are chosen.
    """
    starts, ends = (side.float().cpu().numpy() for side in logits[:2])
    found = []
    for start, end, (first, last), place in zip(starts, ends, bounds, right, strict=True):
        found.append(read_row(start[: last + 1], end[: last + 1], (first, last), place, config))
    return found


def prepare_answers(
    config: AnswerDataConfig,
    tokenizer: PreTrainedTokenizerBase,
    spans: SpanConfig,
    *,
    bidirectional: bool = False,
) -> PreparedAnswers:
    """Turn sources into windows with answers: read, clear of duplicates, split by context, tokenize, part.

    Args:
        config: What to read and how.
        tokenizer: From `heads.padded_tokenizer`.
        spans: How answers are chosen.
        bidirectional: The model is to read both ways.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    rows, moved = _read(config)
    for row in rows:
        if row.target.missing is not None and row.fate in ("train", "validation"):
            row.fate = NO_SPAN
    encoder = PairEncoder(tokenizer, config.max_length, config.question_length, config.overlap)
    tokens = encoder.tokenize([row.target.question for row in rows], [row.target.context for row in rows])
    ledger = TaskLedger([source.path for source in [*config.validation, *config.sources]])
    texts: dict[str, list[TaskRow]] = {"train": [], "validation": []}
    lengths: dict[str, list[int]] = {"train": [], "validation": []}
    parts: dict[str, list[tuple[int, Window]]] = {"train": [], "validation": []}
    counts = {"windowed_texts": 0, "inexact": 0, "unreachable": 0, "without_answer": 0}
    for row, both in zip(rows, tokens, strict=True):
        size = len(both.question) + both.cut + len(both.context)
        if row.fate not in texts:
            ledger.add(row.source, row.fate, size, size)
            continue
        if both.cut and config.strict:
            problem = f"the question has {both.cut} tokens too many, and data.strict=true refuses such"
            raise InputError(row.origin, row.target.question, problem, "Raise data.question_length")
        ledger.add(row.source, row.fate, size, size - both.cut)
        made = encoder.windows(both, row.target.spans)
        held = [window for window in made if window.has_answer]
        counts["windowed_texts"] += len(made) > 1
        counts["without_answer"] += not row.target.answers
        counts["unreachable"] += bool(row.target.answers) and not held
        counts["inexact"] += any(not _is_exact(row.target, window) for window in held)
        if row.fate == "train" and row.target.answers and config.other_windows == "skip":
            made = held
        parts[row.fate] += [(len(texts[row.fate]), window) for window in made]
        texts[row.fate].append(row)
        lengths[row.fate].append(size)
    ledger.check()
    parts["validation"].sort(key=lambda each: -len(each[1].ids))  # so that a lack of memory shows at once
    train, validation = ([window for _, window in parts[side]] for side in ("train", "validation"))
    if not any(window.has_answer for window in train):
        problem = "no training row has an answer in its context"
        raise InputError("data.sources", config.sources[0].path, problem, "Add rows that have")
    facts = {
        "bidirectional": bidirectional,
        "question_length": config.question_length,
        "overlap": config.overlap,
        "moved_answers": moved,
        **counts,
        "windows": {"train": len(train), "validation": len(validation)},
        "spans": {"max_answer_tokens": spans.max_answer_tokens, "n_best": spans.n_best, "threshold": spans.threshold},
    }
    _say(ledger, facts)
    return PreparedAnswers(
        tokenizer,
        SpanRows(train),
        SpanRows(validation, numbered=True),
        texts,
        [owner for owner, _ in parts["validation"]],
        spans,
        ledger,
        _fingerprint([*train, *validation]),
        SpanCollator(int(tokenizer.pad_token_id), config.max_length),
        lengths,
        facts,
    )


def training_texts(config: AnswerDataConfig) -> Iterator[str]:
    """Yield the questions of the rows to train on.

    Raises:
        InputError: As `prepare_answers`.
    """
    yield from (row.target.question for row in _read(config)[0] if row.fate == "train")


def _read(config: AnswerDataConfig) -> tuple[list[TaskRow], int]:
    """Read every row, and decide what becomes of each; rows of one context are on one side of the split.

    Returns:
        The rows, and how many answers stand elsewhere than their row says.
    """
    config.validate()
    reader = AnswerReader(config)
    rows = read_all(replace(config, group_column=config.group_column or config.context_column), reader)
    return rows, reader.counts["moved"]


def check_method(adapt: AdaptConfig) -> None:
    """Refuse what cannot work, before any compute.

    Raises:
        InputError: Vectors in front of the input would stand where the first tokens' scores do.
    """
    if adapt.method in PROMPTS:
        problem = "it puts vectors in front of the tokens, and scores would no longer stand beside them"
        raise InputError("adapt.method", adapt.method, problem, "Use lora")


class Answerer:
    """A finished model that answers questions on texts, however long they are.

    Args:
        model: In evaluation mode.
        tokenizer: Its own.
        task: The task's section of the run's receipt; without one, the defaults hold.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, task: dict[str, Any]) -> None:
        self.model, self.tokenizer, self.task = model, tokenizer, task
        self.spans = SpanConfig(**task.get("spans", {}))

    def __call__(self, records: Sequence[Record], batch_size: int, max_length: int | None) -> list[dict[str, Any]]:
        """Answer rows that have a `question` and a `context`.

        Args:
            records: The rows.
            batch_size: Windows a forward pass; changes nothing.
            max_length: Tokens of a window; None: as in training.

        Returns:
            Of each row `question`, `answer` (empty: none), `score`, `start`, `end` and `n_best`.

        Raises:
            InputError: A row has no question or context.
        """
        pairs = [ask_of(record, "question", "context") for record in records]
        said = self._say(pairs, batch_size, max_length)
        return [{"question": question, **each.to_dict()} for (question, _), each in zip(pairs, said, strict=True)]

    def ask(self, question: str, context: str) -> dict[str, Any]:
        """Answer one question on a text."""
        return self([Record({"question": question, "context": context}, "question")], 1, None)[0]

    def _say(self, pairs: Sequence[tuple[str, str]], batch_size: int, max_length: int | None) -> list[Said]:
        defaults = AnswerDataConfig()
        limits = (max_length, self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        length = min(limit for limit in limits if limit)
        cut, shared = (int(self.task.get(n, getattr(defaults, n))) for n in ("question_length", "overlap"))
        encoder = PairEncoder(self.tokenizer, length, cut, shared)
        tokens = encoder.tokenize([question for question, _ in pairs], [context for _, context in pairs])
        flat = [(number, window) for number, both in enumerate(tokens) for window in encoder.windows(both)]
        rows = SpanRows([window for _, window in flat])
        collate = SpanCollator(int(self.tokenizer.pad_token_id or 0), length)
        parts: list[list[tuple[Window, np.ndarray]]] = [[] for _ in pairs]
        order = sorted(range(len(flat)), key=lambda i: -len(flat[i][1].ids))
        for begin in range(0, len(order), batch_size):
            some = order[begin : begin + batch_size]
            batch = collate([rows[i] for i in some])
            inputs = {name: batch[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
            with torch.no_grad():
                outputs = self.model(**inputs)
            bounds = [flat[i][1].bounds for i in some]
            right = [(last, last) for _, last in bounds]
            read = read_batch((outputs.start_logits, outputs.end_logits), bounds, right, self.spans)
            for i, found in zip(some, read, strict=True):
                parts[flat[i][0]].append((flat[i][1], found))
        # windows of a context in their order: equal scores are decided alike
        for part in parts:
            part.sort(key=lambda each: int(each[0].offsets[0, 0]) if len(each[0].offsets) else 0)
        return [decide(context, part, self.spans) for (_, context), part in zip(pairs, parts, strict=True)]


def load_answerer(path: str) -> Answerer:
    """Return what answers questions with a finished model.

    Args:
        path: Folder or Hub id of a model with such a head, or folder of an adapter that a run of ours left.

    Raises:
        InputError: There is no such model, or it has another head.
    """
    return Answerer(*load_finished(path, ANSWERER))


def _is_exact(asked: Asked, window: Window) -> bool:
    """Tell whether the tokens of an answer have its characters only."""
    begin, end = window.characters(window.start, window.end)
    return asked.context[begin:end].strip() in {answer.strip() for answer in asked.answers}


def _say(ledger: TaskLedger, facts: dict[str, Any]) -> None:
    """Log where rows went, and warn of what is lost."""
    for line in ledger.lines():
        log.info("%s", line)
    if facts["moved_answers"]:
        log.warning("%d answers stand elsewhere than their rows say, and were found.", facts["moved_answers"])
    if facts["inexact"]:
        log.warning(
            "%d answers begin or end inside a token: what is told of them is a little longer.", facts["inexact"]
        )
    if facts["unreachable"]:
        log.warning("%d answers are in no window as a whole: raise data.overlap.", facts["unreachable"])
    if facts["windowed_texts"]:
        log.info("%d contexts are longer than data.max_length, and read as windows.", facts["windowed_texts"])


def _fingerprint(windows: Sequence[Window]) -> str:
    state = xxhash.xxh3_128()
    for window in windows:
        state.update(window.ids.tobytes())
        state.update(f"{window.start},{window.end};".encode())
    return state.hexdigest()
