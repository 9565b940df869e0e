"""Tokenizers: train a byte-level BPE or load an existing one, and encode corpora so that no text forges a boundary."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.data.readers import Document
from gpt_finetune.errors import InputError

logger = logging.getLogger(__name__)

_CJK = r"[\p{Han}\p{Hiragana}\p{Katakana}]"
# What a token may never reach across, tried in this order. The idea is GPT-2's (its paper's section 2.2), with
# digits, contractions and newlines as in later GPTs; ours are the CJK rule and the indentation, which together save
# 6% of the tokens of Python code against GPT-4's pattern at a vocabulary of 4096.
PATTERN = "|".join(
    (
        r"'(?i:s|t|re|ve|m|ll|d)(?!\p{L})",  # English contractions, but not the opening of 'text' in quotes
        rf"{_CJK}+",  # no spaces part words here; keep them apart from Latin words that touch them
        rf"[^\r\n\p{{L}}\p{{N}}]?(?:(?!{_CJK})[\p{{L}}\p{{M}}])+",  # a word, with one space, dot or ( before it
        r"\p{N}{1,3}",  # numbers in groups of up to three digits
        r" ?[^\s\p{L}\p{M}\p{N}]+(?:[\r\n]+[ \t]*)?",  # marks, with the line end and indentation behind them: ):\n
        r"\s*[\r\n]+[ \t]*",  # line ends with the next line's indentation
        r"\s+(?!\S)",  # spaces, leaving the last one to the word behind them
        r"\s+",
    )
)
# Longest run that training looks at, in characters. Its time grows with the square of a run's length: a file with a
# million spaces in a row would hold it up for a minute. Encoding has no such trouble, so the tokenizer has no limit.
LONGEST_RUN = 128
# A longer text is encoded in pieces, so that one huge line needs no huge memory. Characters.
PIECE = 1 << 18
BATCH = 1 << 22  # characters encoded at a time: about 130 MB of intermediate results


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE tokenizer (arXiv 1508.07909 over bytes, as GPT-2).

    All 256 bytes are tokens and nothing is normalised, so every text round-trips byte for byte. Ids: end token 0, pad
    token 1, further special tokens, bytes, merges. The caller sets `model_max_length`.

    Args:
        texts: Training texts; longer ones than `PIECE` characters are seen in pieces.
        config: Vocabulary size and special tokens.

    Raises:
        InputError: A special token is also what ordinary text becomes.
    """
    special = config.special_tokens
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.FixedLength(LONGEST_RUN), to_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=sys.stderr.isatty(),  # its bars are blank lines in a log file
    )
    backend.train_from_iterator((piece for text in texts for piece in cut_text(text)), trainer)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    if (size := backend.get_vocab_size()) < config.vocab_size:
        logger.warning(
            "The texts hold only %d tokens' worth of repeated pairs; vocab_size %d shrinks to that.",
            size,
            config.vocab_size,
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=config.eos_token,
        eos_token=config.eos_token,
        pad_token=config.pad_token,
        extra_special_tokens=list(config.extra_special_tokens),
        clean_up_tokenization_spaces=False,
    )
    encoder = CorpusEncoder.of(tokenizer)
    for token in special:
        # BPE merges have names of their own: "END" would be one token, learned and special at once.
        if tokenizer.convert_tokens_to_ids(token) in encoder([token])[0]:
            raise InputError(
                "tokenizer special token", token, "ordinary text becomes it too", "Choose a name like <|user|>"
            )
    return tokenizer


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder or the Hub and leave it as it is.

    A missing pad token, or one equal to the end token, is no harm in pre-training: only the last row of a stream is
    padded, and it is masked by its length, never by the pad id. So none is added behind the user's back.

    Raises:
        InputError: No tokenizer is there, it has no end token, or it cannot encode text.
    """
    field = "tokenizer.path"
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(Path(path).expanduser()) if path.startswith("~") else path)
    except Exception as error:  # transformers raises many unrelated classes for a folder without a usable tokenizer
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InputError(
            field,
            path,
            f"no tokenizer can be loaded from it ({type(error).__name__}: {reason})",
            "Give a folder with tokenizer.json, or a Hub id that can be reached; leave it out to train one",
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(field, path, "it is a slow tokenizer", "Give a folder that holds tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise InputError(
            field,
            path,
            "it has no end token, so a model could not learn where documents end",
            "Set eos_token in its tokenizer_config.json, or leave path out to train a tokenizer",
        )
    # GPT2TokenizerFast(vocab_file=...) without merges leaves an empty shell and says nothing.
    try:
        is_empty = CorpusEncoder.of(tokenizer)(["The 1"])[0].size == 0 or not tokenizer("The 1")["input_ids"]
    except Exception as error:  # what a damaged tokenizer_config.json says is believed until it is used
        problem = f"it cannot encode text ({type(error).__name__}: {error})"
        raise InputError(field, path, problem, "Save the tokenizer anew") from None
    if is_empty:
        raise InputError(field, path, "it encodes text to nothing", "Its vocabulary files are missing; save it anew")
    return tokenizer


def require_tokens(tokenizer: PreTrainedTokenizerBase, embedded: int, added: Sequence[str] = ()) -> None:
    """Refuse a tokenizer that gives ids which a model has no row for.

    Args:
        tokenizer: The tokenizer.
        embedded: Tokens that the model embeds.
        added: Those that the model will get a row for.

    Raises:
        InputError: It does.
    """
    if (largest := max(number for token, number in tokenizer.get_vocab().items() if token not in added)) >= embedded:
        problem = f"its largest id is {largest}, and the model embeds {embedded} tokens"
        remedy = "Use the tokenizer that was saved with the checkpoint"
        raise InputError("tokenizer", getattr(tokenizer, "name_or_path", ""), problem, remedy)


class CorpusEncoder:
    """Encodes documents to content tokens only, whatever stands in them.

    A document that holds `<|endoftext|>` literally gets the tokens of these 13 characters: text cannot forge a
    boundary. Works on a copy of the tokenizer's backend, so neither that mode nor truncation leaks either way. Can be
    pickled.

    Args:
        backend_json: The backend, as in tokenizer.json.
        eos_id: Id of the end token.
        pad_id: Id that fills unused places of a row.
    """

    def __init__(self, backend_json: str, eos_id: int, pad_id: int) -> None:
        self.backend_json, self.eos_id, self.pad_id = backend_json, eos_id, pad_id
        self.backend = Tokenizer.from_str(backend_json)
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # pickling a backend loses this: hence __reduce__
        self.vocab_size = 1 + max(self.backend.get_vocab(with_added_tokens=True).values())
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> CorpusEncoder:
        """Build the encoder of a fast tokenizer; without a pad token, the end token fills."""
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id, pad)

    @property
    def fingerprint(self) -> str:
        """Key of everything that decides which ids a text gets."""
        return xxhash.xxh3_128_hexdigest(f"{self.eos_id} {self.pad_id} {self.backend_json}".encode())

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Encode texts, the long ones in pieces: no token spans a cut, and decoding still gives the whole text.

        A foreign tokenizer that puts a space before every text puts one at each cut as well.

        Returns:
            One array of ids per text, of dtype `self.dtype`, without special tokens.
        """
        found: list[list[np.ndarray]] = [[] for _ in texts]
        owners: list[int] = []
        pieces: list[str] = []
        size = 0
        for owner, text in enumerate(texts):
            for piece in cut_text(text):
                owners.append(owner)
                pieces.append(piece)
                size += len(piece)
                if size >= BATCH:
                    self._encode(pieces, owners, found)
                    owners, pieces, size = [], [], 0
        self._encode(pieces, owners, found)
        return [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in found]

    def documents(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """Encode documents, and make sure that no end token came out of their text.

        Raises:
            InputError: This tokenizer takes the end token out of ordinary text whatever it is told.
        """
        arrays = self([document.text for document in documents])
        for document, ids in zip(documents, arrays, strict=True):
            if (ids == self.eos_id).any():
                raise InputError(
                    document.origin,
                    self.backend.id_to_token(self.eos_id),
                    "the text holds the tokenizer's end token, and would forge the end of a document",
                    "Remove it from the text, or mark the token as special in tokenizer.json",
                )
        return arrays

    def _encode(self, pieces: list[str], owners: list[int], found: list[list[np.ndarray]]) -> None:
        encodings = self.backend.encode_batch_fast(pieces, add_special_tokens=False)
        for owner, encoding in zip(owners, encodings, strict=True):
            found[owner].append(np.array(encoding.ids, dtype=self.dtype))

    def __reduce__(self) -> tuple[Any, ...]:
        return CorpusEncoder, (self.backend_json, self.eos_id, self.pad_id)


def cut_text(text: str, limit: int = PIECE) -> Iterator[str]:
    """Cut a text into pieces of at most `limit` characters, before a newline if there is one, else before a space."""
    start = 0
    while len(text) - start > limit:
        end = start + limit
        # A token may begin with a newline or a space, but seldom has one inside.
        cut = text.rfind("\n", start + 1, end)
        if cut < 0:
            cut = text.rfind(" ", start + 1, end)
        yield text[start : (start := cut if cut > 0 else end)]
    yield text[start:]
