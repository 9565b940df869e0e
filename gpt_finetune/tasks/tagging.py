"""Tagging: a label for each word, such as names in a text, parts of speech, or the slots of a command.

Rows of words become windows of tokens in which each word is labelled once; `tag_judging` measures what is held out. The
model reads to the right, or with `is_causal=False` both ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.data.packing import IGNORED
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.classification import PROMPTS
from gpt_finetune.tasks.config import SINGLE
from gpt_finetune.tasks.labels import Labels
from gpt_finetune.tasks.ledger import TaskLedger
from gpt_finetune.tasks.rows import TaskRow, read_all
from gpt_finetune.tasks.tag_config import TagDataConfig
from gpt_finetune.tasks.tag_features import TagCollator, TagRows, Window, WordEncoder
from gpt_finetune.tasks.tag_judging import measure
from gpt_finetune.tasks.tag_reading import OUTSIDE, TagReader, find_joiner, scheme_of
from gpt_finetune.tasks.training import TaskTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@dataclass
class PreparedTagging:
    """Everything that training needs to know about its rows.

    Args:
        tokenizer: The model's, that can pad.
        problem: What tags are: ENTITIES or CLASSES.
        labels: The tags.
        train: Windows to train on.
        validation: Held-out windows, one a row, numbered, the longest first.
        texts: Rows as they were read, of each side of the split.
        right: Tags of the held-out words, text after text (M,).
        bounds: Where each held-out text begins among them, and the last one ends (N + 1,).
        places: Words of each held-out window, as numbers among them.
        ledger: Where every row and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        collate: Stacks rows into a batch.
        lengths: Tokens of each text, of each side.
        facts: What else a prediction must do alike, or a reader of figures know; goes into the receipt.
    """

    tokenizer: PreTrainedTokenizerBase
    problem: str
    labels: Labels
    train: TagRows
    validation: TagRows
    texts: dict[str, list[TaskRow]]
    right: np.ndarray
    bounds: np.ndarray
    places: list[np.ndarray]
    ledger: TaskLedger
    fingerprint: str
    collate: TagCollator
    lengths: dict[str, list[int]]
    facts: dict[str, Any]

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out texts."""
        return sum(len(row.text.encode()) for row in self.texts["validation"])

    def settings(self) -> dict[str, Any]:
        """Return what the model's configuration is to say of the task."""
        read = {"is_causal": False} if self.facts["bidirectional"] else {}
        return tag_settings(self.labels) | read | {"pad_token_id": self.collate.padded.pad_id}

    def split(self, words: np.ndarray) -> list[np.ndarray]:
        """Return what is known of all held-out words (M, ...) text by text."""
        return np.split(words, self.bounds[1:-1])

    def assemble(self, said: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the tag that the model gives each held-out word (M,), and what it loses by it (M,).

        Args:
            said: Of each window, as `TagTrainer.said` returns it.
        """
        found = np.tile(np.array([outside(self.labels), 0], np.float32), (len(self.right), 1))
        found[np.concatenate(self.places)] = np.concatenate(said)
        return found[:, 0].astype(np.int64), found[:, 1]

    def measure(self, said: Sequence[np.ndarray]) -> dict[str, float]:
        """Return the figures of what the model says of the held-out windows."""
        return measure(self, self.assemble(said)[0])


class TagTrainer(TaskTrainer):
    """A `TaskTrainer` that keeps of each window its words' likeliest tags, and the loss of the right ones."""

    def said(self, logits: Any, inputs: dict[str, Any]) -> list[np.ndarray]:
        """Return of each window, word by word, tag and loss in nats (W, 2).

        Args:
            logits: (B, T, L).
            inputs: The batch.
        """
        found = []
        for row, labels in zip(logits.float(), inputs["labels"], strict=True):
            mine = row[labels != IGNORED]  # (W, L)
            right = mine.gather(-1, labels[labels != IGNORED].to(mine.device)[:, None])[:, 0]
            loss = mine.logsumexp(-1) - right
            found.append(np.stack((mine.argmax(-1).cpu().numpy(), loss.cpu().numpy()), -1).astype(np.float32))
        return found


def prepare_tagging(
    config: TagDataConfig, tokenizer: PreTrainedTokenizerBase, *, bidirectional: bool = False
) -> PreparedTagging:
    """Turn sources into windows with labels: read, clear of duplicates, split, tokenize, part, pack.

    Args:
        config: What to read and how.
        tokenizer: From `heads.padded_tokenizer`.
        bidirectional: The model is to read both ways.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    config.validate()
    joiner = find_joiner(config)
    encoder = WordEncoder(
        tokenizer, joiner, config.max_length, config.overlap, config.label_subword, causal=not bidirectional
    )
    reader = TagReader(config, joiner)
    rows = read_all(config, reader)
    problem, labels = _find_labels(config, rows)
    tokens = encoder.encode([row.target.words for row in rows])
    ledger = TaskLedger([source.path for source in [*config.validation, *config.sources]])
    texts: dict[str, list[TaskRow]] = {"train": [], "validation": []}
    found: dict[str, list[tuple[Window, np.ndarray, int]]] = {"train": [], "validation": []}
    lengths: dict[str, list[int]] = {"train": [], "validation": []}
    begins = {"train": [0], "validation": [0]}  # of each text among the words of its side
    windowed = without = 0
    for row, words in zip(rows, tokens, strict=True):
        size = sum(map(len, words))
        if row.fate not in texts:
            ledger.add(row.source, row.fate, size, size)
            continue
        parts, cut = encoder.windows(words)
        if cut and config.strict:
            problem_said = f"a word has more than {encoder.room} tokens, and data.strict=true refuses such"
            raise InputError(row.origin, max(row.target.words, key=len), problem_said, "Raise data.max_length")
        ledger.add(row.source, row.fate, size, size - cut)
        encoded = labels.encode(row.target.tags)
        found[row.fate] += [(window, encoded, begins[row.fate][-1]) for window in parts]
        begins[row.fate].append(begins[row.fate][-1] + len(words))
        texts[row.fate].append(row)
        lengths[row.fate].append(size)
        windowed += len(parts) > 1
        without += sum(not word for word in words)
    ledger.check()
    found["validation"].sort(key=lambda each: -len(each[0].ids))  # so that a lack of memory shows at once
    made = {}
    for fate, some in found.items():
        if not some:
            problem_said = f"the tokenizer makes no token of any word that is for {fate}"
            raise InputError("data.sources", config.sources[0].path, problem_said, "Use another tokenizer")
        width = config.max_length if config.packing and fate == "train" else None
        known = (encoded[window.words] for window, encoded, _ in some)
        made[fate] = TagRows([window for window, _, _ in some], known, width, numbered=fate == "validation")
    if config.packing:
        ledger.packed = made["train"].tokens
        ledger.padding = len(made["train"]) * config.max_length - ledger.packed
    facts = {
        "joiner": joiner,
        "characters": config.characters or bool(config.slots_column and not joiner),
        "label_subword": config.label_subword,
        "overlap": config.overlap,
        "bidirectional": bidirectional,
        "windowed_texts": windowed,
        "words_without_tokens": without,
    }
    if config.slots_column:
        facts["slots"] = {name: reader.slots[name] for name in ("found", "dropped", "ambiguous")}
    _say(ledger, facts, labels, texts)
    return PreparedTagging(
        tokenizer,
        problem,
        labels,
        made["train"],
        made["validation"],
        texts,
        labels.encode([tag for row in texts["validation"] for tag in row.target.tags]),
        np.array(begins["validation"]),
        [np.array(window.words) + begin for window, _, begin in found["validation"]],
        ledger,
        _fingerprint(labels, made),
        TagCollator(int(tokenizer.pad_token_id), config.max_length),
        lengths,
        facts,
    )


def training_texts(config: TagDataConfig) -> Iterator[str]:
    """Yield the texts of the rows to train on.

    Raises:
        InputError: As `prepare_tagging`.
    """
    rows = read_all(config, TagReader(config, find_joiner(config)))
    yield from (row.text for row in rows if row.fate == "train")


def tag_settings(labels: Labels) -> dict[str, Any]:
    """Return what a tagger's configuration says of its labels."""
    return {name: value for name, value in labels.settings().items() if name != "problem_type"}


def outside(labels: Labels) -> int:
    """Return the tag of a word that the tokenizer makes no token of: O, or without one the first."""
    return labels.names.index(OUTSIDE) if OUTSIDE in labels.names else 0


def check_method(adapt: AdaptConfig) -> None:
    """Refuse what cannot work, before any compute.

    Raises:
        InputError: Vectors in front of the input would stand where the first words' tags do.
    """
    if adapt.method in PROMPTS:
        problem = "it puts vectors in front of the tokens, and tags would no longer stand beside their words"
        raise InputError("adapt.method", adapt.method, problem, "Use lora")


def _find_labels(config: TagDataConfig, rows: Sequence[TaskRow]) -> tuple[str, Labels]:
    """Return what tags are, and which there are.

    Raises:
        InputError: There is but one, or a held-out source has others.
    """
    given = len(config.validation)
    kept = [row for row in rows if row.fate in ("train", "validation")]
    known = [row.target for row in kept if row.source >= given]
    names = tuple(sorted({tag for target in known for tag in target.tags}))
    if len(names) < 2:
        problem = "all words have one tag, so that there is nothing to tell apart"
        column = "slots_column" if config.slots_column else "tags_column"
        raise InputError(f"data.{column}", getattr(config, column), problem, f"Add rows with others than {names}")
    labels = Labels(SINGLE, names)
    for row in (row for row in kept if row.source < given):
        for tag in row.target.tags:
            labels.require(tag, row.origin)
    return scheme_of(config, known), labels


def _say(ledger: TaskLedger, facts: dict[str, Any], labels: Labels, texts: dict[str, list[TaskRow]]) -> None:
    """Log where rows went, and warn of what is lost."""
    for line in ledger.lines():
        log.info("%s", line)
    if facts["words_without_tokens"]:
        log.warning("The tokenizer makes no token of %d words: they are never learned.", facts["words_without_tokens"])
    if facts["windowed_texts"]:
        log.info("%d texts are longer than data.max_length, and read as windows.", facts["windowed_texts"])
    if facts.get("slots", {}).get("dropped"):
        log.warning("%d slots do not stand in their texts, and are not learned.", facts["slots"]["dropped"])
    seen = {tag for row in texts["train"] for tag in row.target.tags}
    if unseen := [name for name in labels.names if name not in seen]:
        log.warning("Tags that stand in held-out texts only cannot be learned: %s.", ", ".join(unseen))


def _fingerprint(labels: Labels, made: dict[str, TagRows]) -> str:
    state = xxhash.xxh3_128(repr(labels).encode())
    for rows in made.values():
        for part in (rows.ids, rows.starts, rows.labels, str(rows.width).encode()):
            state.update(bytes(part))
            state.update(b"|")
    return state.hexdigest()
