"""From sources to masked rows of examples: the room's front door."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import xxhash
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from gpt_finetune.data.packing import Row, choose_rows
from gpt_finetune.errors import InputError
from gpt_finetune.generation import Prompt
from gpt_finetune.supervised.config import ExamplesConfig
from gpt_finetune.supervised.encoding import ExampleEncoder, Tokens
from gpt_finetune.supervised.formats import Example, Passage, digest, opening_order
from gpt_finetune.supervised.ledger import ExampleLedger, SourceAccount
from gpt_finetune.supervised.rows import Collator, ExampleRows
from gpt_finetune.supervised.sources import read_examples
from gpt_finetune.supervised.templates import ready_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class HeldOut:
    """Held-out examples of one source.

    Args:
        rows: Rows to evaluate on.
        prompts: What is asked for the last answer of each, with that answer; once where several ask the same.
        bytes: UTF-8 bytes of what is learned, special tokens left out.
    """

    rows: ExampleRows
    prompts: list[Prompt]
    bytes: int

    @property
    def tokens_per_byte(self) -> float | None:
        """Targets per UTF-8 byte; None without any."""
        return self.rows.targets / self.bytes if self.bytes else None


@dataclass
class PreparedExamples:
    """Everything that training needs to know about its examples.

    Args:
        tokenizer: With chat template and pad token, to be saved beside the model.
        added: Tokens that it gained, for `templates.grow`.
        train: Rows to train on.
        validation: Held-out rows, or None.
        prompts: Held-out prompts with their answers, each once; the last answer of a conversation.
        held_out: The same by source, under its path.
        ledger: Where every example and token went.
        fingerprint: Key of the rows: equal keys mean equal rows.
        train_bytes: UTF-8 bytes of what is learned in an epoch, special tokens left out.
        validation_bytes: UTF-8 bytes of what is learned in the held-out rows.
        collate: Stacks rows into a batch.
        examples: The training examples as they were read, where they were asked for.
    """

    tokenizer: PreTrainedTokenizerBase
    added: list[str]
    train: ExampleRows
    validation: ExampleRows | None
    prompts: list[Prompt]
    held_out: dict[str, HeldOut]
    ledger: ExampleLedger
    fingerprint: str
    train_bytes: int
    validation_bytes: int
    collate: Callable[[Sequence[Row]], Row]
    examples: list[Example] = field(default_factory=list)

    @property
    def train_tokens(self) -> int:
        """Training targets per epoch, end tokens included."""
        return self.train.targets

    @property
    def validation_tokens(self) -> int:
        """Targets in the held-out rows, end tokens included: summed loss / ln 2 / bytes gives bits per byte."""
        return self.validation.targets if self.validation is not None else 0

    @property
    def tokens_per_byte(self) -> float:
        """Training targets per UTF-8 byte of what is learned."""
        return self.train_tokens / max(1, self.train_bytes)

    @property
    def eval_tokens_per_byte(self) -> float | None:
        """The same of the held-out rows; None without any."""
        return self.validation_tokens / self.validation_bytes if self.validation_bytes else None


@dataclass
class _Seen:
    """An example on its way: what it is, which source it is of, and what becomes of it.

    Args:
        example: Itself.
        source: Index of its source, held-out sources first.
        tokens: Itself as the model would get it at full length; nothing beyond a source's limit.
        fate: train, validation, or a reason of the ledger's.
        parts: What is kept of its tokens; several if it is split.
        copies: How many times per epoch it is trained on.
    """

    example: Example
    source: int
    tokens: Tokens
    fate: str = "train"
    parts: list[Tokens] = field(default_factory=list)
    copies: int = 0


def prepare_examples(
    config: ExamplesConfig, tokenizer: PreTrainedTokenizerBase, *, keep_examples: bool = False
) -> PreparedExamples:
    """Turn sources into masked rows: read, deduplicate, split, tokenize, cut, pack.

    Args:
        config: What to read and how.
        tokenizer: The model's; a copy of it gets what it lacks.
        keep_examples: Return the training examples, too, as they were read.

    Raises:
        InputError: Something the user gave cannot be used.
    """
    config.validate()
    ready, added = ready_tokenizer(tokenizer, config.chat_template)
    encoder, nothing = ExampleEncoder(ready, config.learn), Tokens(np.empty(0, np.int32), np.empty(0, bool))
    seen = [_Seen(example, source, nothing) for source, example in _read(config)]
    _limit(seen, config)
    for one in tqdm([one for one in seen if one.fate == "train"], "tokenizing", delay=2):
        one.tokens = encoder(one.example)
    _find_duplicates(seen, config)
    _hold_out(seen, config)
    for one in seen:
        _cut(one, config)
    kept = {fate: [one for one in seen if one.fate == fate] for fate in ("train", "validation")}
    train = _rows(kept["train"], _weigh(kept["train"], config), config)
    if not train.rows:
        _refuse_nothing(seen, config)
    held_out = _held_out(kept["validation"], config, encoder)
    validation = held_out.rows
    ledger = _account(seen, config, train)
    for line in ledger.table().splitlines():
        logger.info("%s", line)
    if (share := ledger.packing_efficiency) is not None:
        logger.info("%d packed rows of %d tokens, %.1f%% of them full.", len(train), config.max_length, 100 * share)
    if len(kept["validation"]) > len(held_out.prompts):
        logger.info(
            "%d held-out examples give %d prompts: equal ones count once, and text, tool calls, and prompts that spell "
            "a special token ask for no answer.",
            len(kept["validation"]),
            len(held_out.prompts),
        )
    return PreparedExamples(
        tokenizer=ready,
        added=added,
        train=train,
        validation=validation if len(validation) else None,
        prompts=held_out.prompts,
        held_out=_by_source(kept["validation"], config, encoder),
        ledger=ledger,
        fingerprint=_fingerprint(train, validation),
        train_bytes=_learned_bytes(train, ready),
        validation_bytes=held_out.bytes,
        collate=Collator(int(ready.pad_token_id), config.max_length if config.packing else None),
        examples=[one.example for one in kept["train"] if one.fate == "train"] if keep_examples else [],
    )


def _read(config: ExamplesConfig) -> Iterator[tuple[int, Example]]:
    """Yield every example with the index of its source, held-out sources first: they keep what both have."""
    sources = [(f"data.{key}[{i}]", s) for key in ("validation", "sources") for i, s in enumerate(getattr(config, key))]
    for index, (key, source) in enumerate(sources):
        for example in read_examples(source, key):
            yield index, example


def _limit(seen: list[_Seen], config: ExamplesConfig) -> None:
    """Keep no more examples of a source than it is to give, chosen by how they open: alike ones stay together."""
    for index, source in enumerate([*config.validation, *config.sources]):
        if source.limit is not None:
            mine = [one for one in seen if one.source == index]
            mine.sort(key=lambda one: opening_order(one.example, config.seed + 1))  # other places than the split's
            for one in mine[source.limit :]:
                one.fate = "limit"


def _find_duplicates(seen: list[_Seen], config: ExamplesConfig) -> None:
    known: set[bytes] = set()
    for one in [one for one in seen if one.fate == "train"] if config.deduplicate else []:
        key = digest(one.example)
        if key in known:
            one.fate = "duplicate"
        known.add(key)


def _hold_out(seen: list[_Seen], config: ExamplesConfig) -> None:
    """Hold out the examples of the held-out sources, or a share of all; none that opens as these is trained on."""
    kept = [one for one in seen if one.fate == "train"]
    order = np.array([opening_order(one.example, config.seed) for one in kept], np.uint64)
    if config.validation:
        given = {int(place) for place, one in zip(order, kept, strict=True) if one.source < len(config.validation)}
        for place, one in zip(order, kept, strict=True):
            one.fate = "validation" if one.source < len(config.validation) else one.fate
            if one.fate == "train" and int(place) in given:
                one.fate = "held_out"
        return
    openings, counts = np.unique(order, return_counts=True)
    before = np.cumsum(counts) - counts
    chosen = min(int((before < config.validation_fraction * len(kept)).sum()), max(0, len(openings) - 1))
    held_out = set(openings[:chosen].tolist())
    for place, one in zip(order, kept, strict=True):
        if int(place) in held_out:
            one.fate = "validation"


def _cut(one: _Seen, config: ExamplesConfig) -> None:
    """Bring an example to max_length, or drop it.

    Raises:
        InputError: It is too long, and the user wants none to be.
    """
    if one.fate not in ("train", "validation"):
        return
    ids, learned, limit = one.tokens.ids, one.tokens.learned, config.max_length
    if len(ids) <= limit:
        one.parts = [one.tokens]
        return
    if config.strict:
        problem = f"the example {one.example.origin} has {len(ids)} tokens, and data.strict=true refuses such"
        remedy = f"Set data.max_length={len(ids)} or more, shorten or remove the row, or set data.strict=false"
        raise InputError("data.max_length", limit, problem, remedy)
    if config.too_long == "drop":
        one.fate = "too_long"
    elif config.too_long == "split" and isinstance(one.example, Passage) and one.example.prompt is None:
        # Pieces overlap by one token, as blocks of a corpus do, so that every token is a target once.
        for begin in range(0, len(ids) - 1, limit - 1):
            part = learned[begin : begin + limit].copy()
            part[0] = False
            one.parts.append(Tokens(ids[begin : begin + limit], part))
    elif learned[:limit].any():
        one.parts = [Tokens(ids[:limit], learned[:limit])]
    else:
        one.fate = "answer_cut"


def _parts(kept: list[_Seen]) -> list[Tokens]:
    return [part for one in kept for part in one.parts]


def _rows(kept: list[_Seen], order: Iterable[int], config: ExamplesConfig) -> ExampleRows:
    return ExampleRows(_parts(kept), list(order), config.max_length if config.packing else None)


def _weigh(kept: list[_Seen], config: ExamplesConfig) -> list[int]:
    """Choose each source's examples as often as its weight says; return the numbers of their parts."""
    first = np.cumsum([0] + [len(one.parts) for one in kept])
    order: list[int] = []
    for index, source in enumerate(config.sources):
        mine = [i for i, one in enumerate(kept) if one.source == len(config.validation) + index]
        for i in (mine[row] for row in choose_rows(len(mine), source.weight, (config.seed, index))):
            order += range(first[i], first[i + 1])
            kept[i].copies += 1
    for one in kept:
        one.fate = "train" if one.copies else "weight"
    return order


def _account(seen: list[_Seen], config: ExamplesConfig, train: ExampleRows) -> ExampleLedger:
    """Account for everything, so that the sums prove it."""
    accounts = [SourceAccount(source.path) for source in [*config.validation, *config.sources]]
    for one in seen:
        account, size = accounts[one.source], len(one.tokens.ids)
        account.examples.total += 1
        account.tokens.total += size
        if one.fate not in ("train", "validation"):
            account.drop(one.fate, size)
            continue
        setattr(account.examples, one.fate, getattr(account.examples, one.fate) + 1)
        targets = sum(int(part.learned.sum()) for part in one.parts)
        cut = size - sum(len(part.ids) for part in one.parts) if len(one.parts) == 1 else 0
        unit = "trained" if one.fate == "train" else "validation"
        setattr(account.tokens, unit, getattr(account.tokens, unit) + targets)
        account.tokens.per_epoch += targets * one.copies
        account.tokens.masked += size - cut - targets
        account.tokens.dropped += cut
        account.tokens.truncated += cut
        account.truncated_examples += cut > 0
        account.split_examples += len(one.parts) > 1
        account.retokenized_examples += one.tokens.retokenized
    packed = sum(train.lengths) if train.width else 0
    ledger = ExampleLedger(accounts, len(train) * (train.width or 0) - packed, packed)
    ledger.check()
    return ledger


def _held_out(kept: list[_Seen], config: ExamplesConfig, encoder: ExampleEncoder) -> HeldOut:
    rows = _rows(kept, range(len(_parts(kept))), config)
    return HeldOut(rows, _prompts(kept, encoder), _learned_bytes(rows, encoder.tokenizer))


def _by_source(kept: list[_Seen], config: ExamplesConfig, encoder: ExampleEncoder) -> dict[str, HeldOut]:
    """Part the held-out examples by source; sources of one path go together."""
    paths = [source.path for source in [*config.validation, *config.sources]]
    found: dict[str, list[_Seen]] = {}
    for one in kept:
        found.setdefault(paths[one.source], []).append(one)
    return {path: _held_out(mine, config, encoder) for path, mine in found.items()}


def _prompts(held_out: list[_Seen], encoder: ExampleEncoder) -> list[Prompt]:
    """Ask for the last answer of each held-out example, once where several open with the same words."""
    found: dict[str, Prompt] = {}
    for one in held_out:
        text, (shown, reference) = encoder.prompt(one.example), one.example.last
        if text is not None and reference.strip():
            found.setdefault(text, Prompt(text, reference, shown, one.example.columns))
    return list(found.values())


def _fingerprint(*datasets: ExampleRows) -> str:
    state = xxhash.xxh3_128()
    for rows in datasets:
        for part in (rows.ids, rows.learned, rows.starts, str((rows.width, rows.rows)).encode()):
            state.update(bytes(part))
            state.update(b"|")
    return state.hexdigest()


def _learned_bytes(rows: ExampleRows, tokenizer: PreTrainedTokenizerBase) -> int:
    examples = [rows.example(number) for row in rows.rows for number in row]
    texts = tokenizer.batch_decode([example.ids[example.learned] for example in examples], skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts)


def _refuse_nothing(seen: list[_Seen], config: ExamplesConfig) -> None:
    """Say why there is nothing to train on."""
    fates = [one.fate for one in seen]
    problem = "no example is left to train on: " + ", ".join(
        f"{fates.count(fate)} {fate.replace('_', ' ')}" for fate in dict.fromkeys(fates)
    )
    needed = [len(one.tokens.ids) for one in seen if one.fate == "too_long"]
    needed += [int(one.tokens.learned.argmax()) + 1 for one in seen if one.fate == "answer_cut"]
    if needed:
        raise InputError("data.max_length", config.max_length, problem, f"Set it to {min(needed)} or more")
    paths = [source.path for source in config.sources]
    raise InputError("data.sources", paths, problem, "Add examples that differ, or lower data.validation_fraction")
