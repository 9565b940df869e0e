"""Multiple choice: the right answer to a question among several, each read with the question as a row of its own.

The head is that of Radford et al. 2018 (GPT-1), section 3.3. Shapes: C choices, T tokens.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.data.packing import Row
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics.words import is_unspaced
from gpt_finetune.tasks.baselines import Baseline
from gpt_finetune.tasks.choose_config import ChooseDataConfig
from gpt_finetune.tasks.classification import PROMPTS
from gpt_finetune.tasks.config import CHOICES, JudgeConfig
from gpt_finetune.tasks.fold_tests import OURS
from gpt_finetune.tasks.judging import Outcome, lengths
from gpt_finetune.tasks.ledger import TaskLedger
from gpt_finetune.tasks.rows import TaskRow, read_all
from gpt_finetune.tasks.sources import column_of, text_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CHOOSER = "GPTForMultipleChoice"
HEAD = "score"  # the layer that is new
EXCERPT = 200  # characters of a question that an error shows


@dataclass(frozen=True)
class Choice:
    """A question with its choices, of which one is right; rows contradict each other by the right text only.

    Args:
        right: Text of the right choice.
        question: The question.
        choices: All choices; none until wrong ones are drawn.
    """

    right: str
    question: str = field(compare=False)
    choices: tuple[str, ...] = field(default=(), compare=False)

    @property
    def answer(self) -> int:
        """Place of the right choice."""
        return self.choices.index(self.right)


class ChoiceRows(Dataset):
    """Questions as rows of choices.

    Args:
        ids: Tokens of each choice of each question.
        answers: Which choice is right.
        numbered: Add each question's number.
    """

    def __init__(self, ids: Sequence[Sequence[Sequence[int]]], answers: Sequence[int], numbered: bool = False) -> None:
        self.ids, self.answers, self.numbered = ids, answers, numbered

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `input_ids` (C lists of tokens), `labels` () and, numbered, `numbers` ()."""
        row: dict[str, Any] = {"input_ids": self.ids[index], "labels": self.answers[index]}
        return row | {"numbers": index} if self.numbered else row


class ChoiceCollator:
    """Stacks questions into a batch, padded on the right and by empty choices.

    Args:
        pad_id: Fills unused places.
        width: Tokens of the longest row that there may be.
    """

    def __init__(self, pad_id: int, width: int) -> None:
        self.pad_id, self.width = pad_id, width

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Row:
        """Return `input_ids` and `attention_mask` (B, C, T), and whatever else rows have (B,)."""
        most = max(len(row["input_ids"]) for row in rows)
        width = max(len(choice) for row in rows for choice in row["input_ids"])
        ids = torch.full((len(rows), most, width), self.pad_id)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            for j, choice in enumerate(row["input_ids"]):
                ids[i, j, : len(choice)] = torch.tensor(choice)
                mask[i, j, : len(choice)] = 1
        others = {name: torch.tensor([row[name] for row in rows]) for name in rows[0] if name != "input_ids"}
        return {"input_ids": ids, "attention_mask": mask, **others}


@dataclass
class PreparedChoices:
    """Everything that training needs to know about its rows.

    Args:
        tokenizer: The model's, that can pad.
        train: Questions to train on.
        validation: Held-out questions, numbered.
        texts: Rows as they were read, of each side of the split.
        asked: Their choices.
        ledger: Where every row and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        collate: Stacks rows into a batch.
        lengths: Tokens of each choice's row, of each side, before any is cut.
    """

    tokenizer: PreTrainedTokenizerBase
    train: ChoiceRows
    validation: ChoiceRows
    texts: dict[str, list[TaskRow]]
    asked: dict[str, list[Choice]]
    ledger: TaskLedger
    fingerprint: str
    collate: ChoiceCollator
    lengths: dict[str, list[int]] = field(default_factory=dict)

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out questions."""
        return sum(len(each.question.encode()) for each in self.asked["validation"])

    @property
    def right(self) -> np.ndarray:
        """Right choices of the held-out questions (N,)."""
        return np.array(self.validation.answers)

    def settings(self) -> dict[str, Any]:
        """Return what the model's configuration is to say of the task."""
        return {"pad_token_id": self.collate.pad_id}

    def measure(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the figures of what the model says of the held-out questions, N times (C,)."""
        return {"accuracy": float((_chosen(logits) == self.right).mean())}


def prepare_choices(config: ChooseDataConfig, tokenizer: PreTrainedTokenizerBase) -> PreparedChoices:
    """Turn sources into rows of choices: read, clear of duplicates, split, draw wrong choices, tokenize, cut.

    Args:
        config: What to read and how.
        tokenizer: From `heads.padded_tokenizer`.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    rows = _read(config)
    ledger = TaskLedger([source.path for source in [*config.validation, *config.sources]])
    questions = encode(tokenizer, [row.target.question for row in rows])
    texts: dict[str, list[TaskRow]] = {"train": [], "validation": []}
    asked: dict[str, list[Choice]] = {}
    found: dict[str, list[list[list[int]]]] = {"train": [], "validation": []}
    sizes: dict[str, list[int]] = {"train": [], "validation": []}
    places = {id(row): place for place, row in enumerate(rows)}
    for row in rows:
        if row.fate in texts:
            texts[row.fate].append(row)
        else:
            size = len(questions[places[id(row)]])
            ledger.add(row.source, row.fate, size, size)
    for side, mine in texts.items():
        asked[side] = _draw(mine, config) if config.choices_column is None else [row.target for row in mine]
        known = encode(tokenizer, sorted({text for each in asked[side] for text in each.choices}))
        by_text = dict(zip(sorted({text for each in asked[side] for text in each.choices}), known, strict=True))
        for row, each in zip(mine, asked[side], strict=True):
            question = questions[places[id(row)]]
            made = [join(question, by_text[text], tokenizer, config.max_length) for text in each.choices]
            whole = [len(question) + len(by_text[text]) + 2 for text in each.choices]
            if config.strict and max(whole) > config.max_length:
                problem = f"question and choice have {max(whole)} tokens, and data.strict=true refuses such"
                raise InputError(row.origin, each.question, problem, "Raise data.max_length, or shorten it")
            ledger.add(row.source, side, sum(whole), sum(map(len, made)))
            found[side].append(made)
            sizes[side] += whole
    ledger.check()
    for line in ledger.lines():
        log.info("%s", line)
    train, validation = (
        ChoiceRows(found[side], [each.answer for each in asked[side]], numbered=side == "validation")
        for side in ("train", "validation")
    )
    key = xxhash.xxh3_128(repr([(made.ids, made.answers) for made in (train, validation)]).encode()).hexdigest()
    collate = ChoiceCollator(int(tokenizer.pad_token_id), config.max_length)
    return PreparedChoices(tokenizer, train, validation, texts, asked, ledger, key, collate, sizes)


def training_texts(config: ChooseDataConfig) -> Iterator[str]:
    """Yield the questions of the rows to train on.

    Raises:
        InputError: As `prepare_choices`.
    """
    yield from (row.target.question for row in _read(config) if row.fate == "train")


def _read(config: ChooseDataConfig) -> list[TaskRow]:
    """Read every row, and decide what becomes of each; a question's rows are on one side of the split."""
    config.validate()

    def read(record: Record) -> tuple[str, Any]:
        asked = _read_choices(record, config)
        return "\n".join([asked.question, *sorted(asked.choices)]), asked

    return read_all(replace(config, group_column=config.group_column or config.question_column), read)


def _read_choices(record: Record, config: ChooseDataConfig) -> Choice:
    """Return the choices of a row, or where wrong ones are to be drawn its right answer."""
    question = text_in(column_of(record, config.question_column, "data.question_column"), record.origin)
    answer = column_of(record, config.answer_column, "data.answer_column")
    if config.choices_column is None:
        return Choice(text_in(answer, f"{record.origin}, {config.answer_column}"), question)
    texts = choices_of(record, config.choices_column, "data.choices_column")
    if isinstance(answer, str) and answer in texts:
        return Choice(answer, question, texts)
    if type(answer) is not int or not 0 <= answer < len(texts):
        problem = f"it names none of {len(texts)} choices"
        raise InputError(record.origin, answer, problem, f"Give 0 to {len(texts) - 1}, or the text of one")
    return Choice(texts[answer], question, texts)


def choices_of(record: Record, column: str, key: str) -> tuple[str, ...]:
    """Return the choices of a row.

    Args:
        record: The row.
        column: Of the choices.
        key: Dotted config key that names the column, for error messages.

    Raises:
        InputError: There are none, or they are no list of two different texts or more.
    """
    choices = column_of(record, column, key)
    if not isinstance(choices, list) or len(choices) < 2 or len(set(map(str, choices))) < len(choices):
        problem = "the choices are no list of two different texts or more"
        raise InputError(record.origin, choices, problem, "Repair or remove the row")
    return tuple(text_in(choice, f"{record.origin}, {column}") for choice in choices)


def _draw(rows: Sequence[TaskRow], config: ChooseDataConfig) -> list[Choice]:
    """Put each right answer among others of the same side, by seed."""
    pool = sorted({row.target.right for row in rows})
    if len(pool) <= config.distractors:
        problem = f"one side of the split has only {len(pool)} different answers to draw from"
        raise InputError("data.distractors", config.distractors, problem, "Lower it, or add rows")
    found = []
    for asked in (row.target for row in rows):
        chance = random.Random(f"{config.seed} {asked.question}")
        others = [text for text in chance.sample(pool, config.distractors + 1) if text != asked.right]
        choices = [asked.right, *others[: config.distractors]]
        chance.shuffle(choices)
        found.append(replace(asked, choices=tuple(choices)))
    return found


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, with nothing around them."""
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return found


def join(question: Sequence[int], choice: Sequence[int], tokenizer: PreTrainedTokenizerBase, width: int) -> list[int]:
    """Return question, end of line, choice and end token; the question gives way, and a choice beyond half of it."""
    line = encode(tokenizer, ["\n"])[0]
    choice = choice[: width // 2]
    room = width - len(choice) - len(line) - 1
    return [*question[:room], *line, *choice, int(tokenizer.eos_token_id)]


def check_method(adapt: AdaptConfig) -> AdaptConfig:
    """Return the section with the head among what learns; refuse what cannot work, before any compute.

    Raises:
        InputError: The adapter would have to be read without its head, whose kind PEFT does not know.
    """
    if adapt.method in PROMPTS or adapt.quantization != "none":
        name, value = ("quantization", adapt.quantization) if adapt.quantization != "none" else ("method", adapt.method)
        problem = "it cannot be merged, and PEFT knows no adapter of a multiple-choice model"
        raise InputError(f"adapt.{name}", value, problem, "Use lora without quantization, or full")
    if METHODS[adapt.method].peft is None:
        return adapt
    return replace(adapt, options={"modules_to_save": [HEAD], **adapt.options})


def run_baselines(data: PreparedChoices) -> dict[str, Baseline]:
    """Choose by chance, and by the cosine of TF-IDF between question and choice."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    chance = random.Random(0)
    guessed = np.array([chance.randrange(len(each.choices)) for each in data.asked["validation"]])
    begin = time.perf_counter()
    train = [text for each in data.asked["train"] for text in (each.question, *each.choices)]
    grams: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)} if is_unspaced(train[:1000]) else {}
    vectors = TfidfVectorizer(sublinear_tf=True, **grams).fit(train)
    similar = []
    for each in data.asked["validation"]:
        both = vectors.transform([each.question, *each.choices]).toarray()
        similar.append(int((both[1:] @ both[0]).argmax()))
    seconds = time.perf_counter() - begin
    return {"chance": Baseline(guessed, 0.0), "TF-IDF similarity": Baseline(np.array(similar), seconds)}


def judge(
    data: PreparedChoices, said: Sequence[np.ndarray], baselines: Mapping[str, Baseline], config: JudgeConfig
) -> Outcome:
    """Measure a model beside its baselines, and say how sure that is.

    Args:
        data: The rows.
        said: Logits of the held-out questions, N times (C,).
        baselines: What others choose, by name.
        config: The section.

    Returns:
        Figures of the baselines, and the report's section.
    """
    ours, right = _chosen(said), data.right
    draws = scores.bootstrap(lambda p, r: float((p == r).mean()), ours, right, config.resamples, seed=0)
    told: dict[str, dict[str, float]] = {}
    tests: dict[str, dict[str, Any]] = {}
    by_text = {OURS: _by_question(ours == right)}
    for name, baseline in baselines.items():
        theirs = baseline.predictions == right
        by_text[name] = _by_question(theirs)
        told[name] = {"accuracy": float(theirs.mean()), "seconds": round(baseline.seconds, 3)}
        tests[name] = {**told[name], "test": "McNemar's exact test", "p": scores.mcnemar_p(ours == right, theirs)}
    losses = np.array([np.logaddexp.reduce(row) - row[best] for row, best in zip(said, right, strict=True)])
    wrong = [int(i) for i in np.argsort(-losses, kind="stable") if ours[i] != right[i]][: config.errors]
    asked = data.asked["validation"]
    section: dict[str, Any] = {
        "name": "multiple choice",
        "problem_type": CHOICES,
        "leading": "accuracy",
        "loss_unit": "nats per question",
        "intervals": {"accuracy": scores.interval(draws)},
        "resamples": config.resamples,
        "baselines": tests,
        "lengths": lengths(data),
        "errors": [
            {
                "text": asked[i].question[:EXCERPT] + "…" * (len(asked[i].question) > EXCERPT),
                "label": asked[i].right,
                "predicted": asked[i].choices[ours[i]],
                "loss": round(float(losses[i]), 4),
            }
            for i in wrong
        ],
    }
    return Outcome(told, section, by_text)


def _by_question(hits: np.ndarray) -> np.ndarray:
    """Return whether each question is answered rightly, and that it is one question (N, 2)."""
    return np.stack([hits, np.ones(len(hits))], axis=1).astype(np.float64)


def _chosen(logits: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([int(row.argmax()) for row in logits])
