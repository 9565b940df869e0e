"""Pairs of texts, one to be read and one to be written: rows, tokens, batches. The model is in `seq2seq_model`."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash
from torch.utils.data import Dataset

from gpt_finetune.data.cache import Cache, fingerprint
from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.data.packing import IGNORED, Row
from gpt_finetune.data.readers import Record
from gpt_finetune.data.tokenizer import CorpusEncoder, load_tokenizer, train_tokenizer
from gpt_finetune.errors import InputError
from gpt_finetune.generation import Prompt
from gpt_finetune.packaged import locate
from gpt_finetune.supervised.formats import Example, Passage
from gpt_finetune.tasks.features import TextEncoder
from gpt_finetune.tasks.ledger import TaskLedger
from gpt_finetune.tasks.rows import TaskRow, read_all
from gpt_finetune.tasks.seq2seq_config import Seq2SeqDataConfig
from gpt_finetune.tasks.sources import column_of, text_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

PAD = TokenizerConfig.pad_token  # of a tokenizer that has none, or whose end token is padding


@dataclass(frozen=True)
class Target:
    """What is to be written. All are equal: two translations of one source do not contradict each other."""

    text: str = field(compare=False)


@dataclass
class PreparedPairs:
    """Everything that training needs to know about its pairs.

    Args:
        tokenizer: Of sources and targets.
        train: Pairs to train on.
        validation: Held-out pairs.
        texts: Rows as they were read, of each side of the split.
        ledger: Where every row and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        collate: Stacks pairs into a batch.
        lengths: Tokens of each source, of each side, before any is cut.
        start_id: The token that the decoder begins with.
    """

    tokenizer: PreTrainedTokenizerBase
    train: PairRows
    validation: PairRows
    texts: dict[str, list[TaskRow]]
    ledger: TaskLedger
    fingerprint: str
    collate: PairCollator
    lengths: dict[str, list[int]]
    start_id: int

    @property
    def validation_bytes(self) -> int:
        """UTF-8 bytes of the held-out targets."""
        return sum(len(row.target.text.encode()) for row in self.texts["validation"])

    @property
    def prompts(self) -> list[Prompt]:
        """The held-out pairs, as evaluation by generation takes them."""
        return [Prompt(row.text, row.target.text, row.text) for row in self.texts["validation"]]

    @property
    def examples(self) -> list[Example]:
        """The training pairs, as baselines learn from them."""
        return [Passage(row.origin, row.text, row.target.text) for row in self.texts["train"]]


def prepare_pairs(config: Seq2SeqDataConfig, tokenizer: TokenizerConfig) -> PreparedPairs:
    """Turn sources into pairs of rows: read, clear of duplicates, split, tokenize, cut.

    Args:
        config: What to read and how.
        tokenizer: An existing one, or how to train one on the training pairs, both sides.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    config.validate()
    tokenizer.validate()
    if config.lengths[1] < 2:
        problem = "one token holds nothing but the end of a target"
        raise InputError("data.max_length", config.max_length, problem, "Give 2 or more")

    def read(record: Record) -> tuple[str, Target]:
        source, target = (
            text_in(column_of(record, getattr(config, key), f"data.{key}"), record.origin)
            for key in ("source_column", "target_column")
        )
        return source, Target(target)

    rows = read_all(config, read)
    used = _find_tokenizer(tokenizer, [row for row in rows if row.fate == "train"])
    sources, source_sizes, targets, target_sizes = _encode(config, used, rows)
    ledger = TaskLedger([source.path for source in [*config.validation, *config.sources]])
    for i, row in enumerate(rows):
        kept = len(sources[i]) + len(targets[i])
        ledger.add(row.source, row.fate, source_sizes[i] + target_sizes[i], kept)
    ledger.check()
    made, texts, lengths = {}, {}, {}
    for side in ("train", "validation"):
        mine = [i for i, row in enumerate(rows) if row.fate == side]
        if side == "validation":  # the longest first, so that a lack of memory shows at once
            mine.sort(key=lambda i: -len(sources[i]) - len(targets[i]))
        made[side] = PairRows([sources[i] for i in mine], [targets[i] for i in mine])
        texts[side], lengths[side] = [rows[i] for i in mine], [source_sizes[i] for i in mine]
    for line in ledger.lines():
        log.info("%s", line)
    start = used.eos_token_id if used.bos_token_id is None else used.bos_token_id
    collate = PairCollator(int(used.pad_token_id), int(start), config.lengths[0])
    key = xxhash.xxh3_128(b"|".join(made[side].content for side in made)).hexdigest()
    return PreparedPairs(used, made["train"], made["validation"], texts, ledger, key, collate, lengths, int(start))


def _encode(
    config: Seq2SeqDataConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[TaskRow]
) -> tuple[list[list[int]], list[int], list[list[int]], list[int]]:
    """Return what is kept of each source and target, and how many tokens each has as a whole.

    Sources are encoded as the tokenizer does by itself, so that whoever uses the model need know nothing else. Targets
    are their text and the end token, whatever the text holds.

    Raises:
        InputError: A text becomes no token, or is too long and data.strict refuses it.
    """
    longest, room = config.lengths
    sources, source_sizes = TextEncoder(tokenizer, longest)([row.text for row in rows], [row.origin for row in rows])
    whole = CorpusEncoder.of(tokenizer)([row.target.text for row in rows])
    targets = [[*ids.tolist(), tokenizer.eos_token_id] for ids in whole]
    target_sizes = [len(ids) for ids in targets]
    for i, row in enumerate(rows) if config.strict else ():
        for key, size, limit in (("source", source_sizes[i], longest), ("target", target_sizes[i], room)):
            if size > limit and row.fate in ("train", "validation"):
                problem = f"its {key} has {size} tokens, and data.strict=true refuses such"
                text = row.text if key == "source" else row.target.text
                raise InputError(row.origin, text, problem, f"Set data.max_{key}_length={size} or more, or shorten it")
    return sources, source_sizes, [ids[:room] for ids in targets], target_sizes


def _find_tokenizer(config: TokenizerConfig, rows: Sequence[TaskRow]) -> PreTrainedTokenizerBase:
    """Load the tokenizer, or train it on both sides of the training pairs; it has a pad token of its own.

    Args:
        config: The section.
        rows: The training pairs.
    """
    if config.path is not None:
        return with_pad(load_tokenizer(locate(config.path)))
    texts = [text for row in rows for text in (row.text, row.target.text)]

    def train(folder: Path) -> dict[str, Any]:
        train_tokenizer(iter(texts), config).save_pretrained(folder)
        return {}

    content = xxhash.xxh3_128_hexdigest("\0".join(texts).encode())
    key = fingerprint(content=content, tokenizer=asdict(config))
    return load_tokenizer(str(Cache(None).get_or_make("tokenizer", key, train)[0]))


def with_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy that pads on the right with a token of its own, which is added where there is none."""
    ready = copy.deepcopy(tokenizer)
    if ready.pad_token is None or ready.pad_token_id in (ready.eos_token_id, ready.bos_token_id):
        ready.add_special_tokens({"pad_token": PAD})
        log.info("The tokenizer has no pad token of its own; %r is one now.", PAD)
    ready.padding_side = ready.truncation_side = "right"
    return ready


class PairRows(Dataset):
    """Pairs of token rows.

    Args:
        sources: Tokens of each source.
        targets: Tokens of each target, with the end token unless it was cut.
    """

    def __init__(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> None:
        self.sources = [np.array(ids, np.int32) for ids in sources]
        self.targets = [np.array(ids, np.int32) for ids in targets]

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Row:
        """Return `input_ids` (S,) and `labels` (T,)."""
        pair = {"input_ids": self.sources[index], "labels": self.targets[index]}
        return {name: torch.from_numpy(ids.astype(np.int64)) for name, ids in pair.items()}

    @property
    def content(self) -> bytes:
        """All tokens, for a fingerprint."""
        return b",".join(ids.tobytes() for ids in [*self.sources, *self.targets])


class PairCollator:
    """Stacks pairs into a batch, padded on the right to the longest.

    Args:
        pad_id: Fills unused places of sources and of what the decoder reads.
        start_id: The decoder's first token.
        width: Tokens of a source at most, for the report.
    """

    def __init__(self, pad_id: int, start_id: int, width: int) -> None:
        self.pad_id, self.start_id, self.width = pad_id, start_id, width

    def __call__(self, rows: Sequence[Row]) -> Row:
        """Return `input_ids` and `attention_mask` (B, S), `decoder_input_ids` and `labels` (B, T).

        The decoder needs no mask: what fills a row comes last, and is no label.
        """
        sizes = torch.tensor([len(row["input_ids"]) for row in rows])
        labels = _stack([row["labels"] for row in rows], IGNORED)
        start = labels.new_full((len(rows), 1), self.start_id)
        before = labels[:, :-1]
        ids = _stack([row["input_ids"] for row in rows], self.pad_id)
        return {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < sizes[:, None]).long(),
            "decoder_input_ids": torch.cat((start, before.masked_fill(before == IGNORED, self.pad_id)), 1),
            "labels": labels,
        }


def _stack(rows: Sequence[torch.Tensor], fill: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
