"""Answers without a neural network: copied, looked up or put together from what the training examples say."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.metrics.words import WORD, is_unspaced

ROUNDS = 5  # of IBM model 1; few change after that
PATTERNS = 500  # that are tried for a field, the commonest ones
OFTEN = 0.9  # share of the answers that have a field, from which on it is always filled
LONGEST_VALUE = 12  # words of a field that a pattern may find
NULL = ""  # the word that explains what no other does
# A sentence ends at a full stop before a space, or at a Chinese one; or with its line.
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"'”’)\]]*(?=\s)|[。！？…]+[”’」』）]*|(?=\n)|$)", re.DOTALL)
_PIECE = re.compile(rf"{WORD.pattern}|[^\w\s]|_")


@dataclass(frozen=True)
class Pair:
    """A text with the answer to it.

    Args:
        source: What is asked about, without the instruction.
        answer: The right answer.
    """

    source: str
    answer: str


Baseline = Callable[[Sequence[Pair], Sequence[str]], list[str]]


def answer_by(name: str, train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Answer texts by a baseline.

    Args:
        name: A key of `BASELINES`.
        train: Training pairs.
        sources: The texts.
    """
    return BASELINES[name](train, sources)


def check_baselines(names: Sequence[str], field: str = "baselines") -> None:
    """Refuse unknown names.

    Raises:
        InputError: There is no such baseline.
    """
    for name in names:
        if name not in BASELINES:
            raise InputError(field, name, "there is no such baseline", did_you_mean(name, BASELINES))


def lead(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Answer with the first sentence."""
    return [found[0].strip() if (found := _SENTENCE.match(text.strip())) else "" for text in sources]


def copy(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Answer with the text itself."""
    return list(sources)


def frequent(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Answer with the commonest training answer, of equally common ones the first."""
    return [Counter(pair.answer for pair in train).most_common(1)[0][0]] * len(sources)


def retrieval(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Answer as the most similar training text is answered: TF-IDF of words and pairs, of characters in Chinese."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams: dict[str, Any] = {"ngram_range": (1, 2), "token_pattern": r"(?u)\w+"}
    if is_unspaced([pair.source for pair in train]):
        grams = {"analyzer": "char", "ngram_range": (1, 3)}
    vectorizer = TfidfVectorizer(sublinear_tf=True, **grams)
    try:
        known = vectorizer.fit_transform([pair.source for pair in train])
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        return frequent(train, sources)  # texts of signs only have no words
    asked, found = vectorizer.transform(sources), []
    for begin in range(0, len(sources), 256):  # similarities to all training texts, of so many at once
        found += (asked[begin : begin + 256] @ known.T).toarray().argmax(1).tolist()
    return [train[i].answer for i in found]


def dictionary(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Replace each word by its likeliest translation: IBM model 1, from the training pairs by expectation maximisation.

    Brown et al. 1993, The Mathematics of Statistical Machine Translation, J93-2003, section 4.2. An unknown word stays.
    """
    best = learn_dictionary(train)
    from_unspaced = is_unspaced([pair.source for pair in train])
    gap = "" if is_unspaced([pair.answer for pair in train]) else " "
    edge = " " if from_unspaced else ""
    found = []
    for text in sources:
        said = WORD.sub(lambda word: edge + best.get(word[0].lower(), word[0]) + edge, text)
        said = gap.join(said.split())
        found.append(said[:1].upper() + said[1:])
    return found


def learn_dictionary(train: Sequence[Pair]) -> dict[str, str]:
    """Return the likeliest translation of each word in lower case, after a few rounds of IBM model 1."""
    numbers: tuple[dict[str, int], dict[str, int]] = ({NULL: 0}, {})
    links: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    for pair in train:
        sides = (pair.source.lower(), pair.answer)
        given, wanted = (
            np.array([known.setdefault(word, len(known)) for word in WORD.findall(text)], np.int64)
            for known, text in zip(numbers, sides, strict=True)
        )
        given = np.append(given, 0)
        first = owners[-1][-1] + 1 if owners else 0
        links.append(np.stack([np.tile(given, len(wanted)), np.repeat(wanted, len(given))]))
        if len(wanted):
            owners.append(np.repeat(np.arange(first, first + len(wanted)), len(given)))
    if not owners:
        return {}
    given, wanted = np.concatenate(links, axis=1)
    keys, odds = count_links(given * len(numbers[1]) + wanted, np.concatenate(owners), len(numbers[1]), ROUNDS)
    word = keys // len(numbers[1])
    order = np.lexsort((odds, word))
    last = order[np.append(np.diff(word[order]) > 0, True)]
    names = [list(known) for known in numbers]
    return {names[0][word[i]]: names[1][keys[i] % len(names[1])] for i in last if word[i]}


def count_links(
    links: np.ndarray, owners: np.ndarray, size: int, rounds: int, prior: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Learn IBM model 1 by expectation maximisation: how likely each source word becomes each target word.

    Brown et al. 1993, The Mathematics of Statistical Machine Translation, J93-2003, section 4.2.

    Args:
        links: Each possible link between words of a pair, as number of the source word x `size` + that of the target's.
        owners: Of each link, which target word it would explain, counted through the corpus.
        size: How many target words there are.
        rounds: Of counting.
        prior: Of each link, how likely it is by where its words stand (Dyer et al. 2013, N13-1073); None means equally.

    Returns:
        The different links, in order, and the probability of each link's target word given its source word.
    """
    keys, entry = np.unique(links, return_inverse=True)
    word = keys // size
    odds: np.ndarray = np.ones(len(keys))
    for _ in range(rounds):
        weight = odds[entry]  # of each possible link: its share in what explains its target word
        if prior is not None:
            weight = weight * prior
        weight = weight / np.bincount(owners, weight)[owners]
        odds = np.bincount(entry, weight, len(keys))
        odds = odds / np.bincount(word, odds)[word]
    return keys, odds


def pattern(train: Sequence[Pair], sources: Sequence[str]) -> list[str]:
    """Fill the fields of a JSON answer by what stands around their values in training texts.

    Of each field, patterns (two words before, one behind) are learned and tried in the order of how often they are
    right (Brin 1998, Extracting Patterns and Relations from the World Wide Web); a field whose value seldom stands in
    the text takes its commonest one.

    Raises:
        InputError: The training answers are no JSON objects.
    """
    rows = [(_pieces(pair.source), _fields(pair.answer)) for pair in train]
    readers = {name: _FieldReader(name, rows) for name in dict.fromkeys(name for _, told in rows for name in told)}
    found = []
    for text in sources:
        pieces = _pieces(text)
        told = {name: value for name, reader in readers.items() if (value := reader(text, pieces)) is not None}
        found.append(json.dumps(told, ensure_ascii=False))
    return found


BASELINES: dict[str, Baseline] = {
    "lead": lead,
    "copy": copy,
    "frequent": frequent,
    "retrieval": retrieval,
    "dictionary": dictionary,
    "pattern": pattern,
}

Piece = tuple[str, int, int]  # a word or sign, where it begins and ends
Context = tuple[tuple[str, ...], str]  # the words before a value, and the one behind


class _FieldReader:
    """Finds one field's value in a text.

    Args:
        name: Of the field.
        rows: Pieces and fields of the training pairs.
    """

    def __init__(self, name: str, rows: Sequence[tuple[list[Piece], dict[str, Any]]]) -> None:
        values = [(pieces, told[name]) for pieces, told in rows if name in told]
        self.common = Counter(json.dumps(value, sort_keys=True) for _, value in values).most_common(1)[0][0]
        self.is_text = all(isinstance(value, str) for _, value in values)
        self.share = len(values) / len(rows)
        contexts: Counter[Context] = Counter()
        stands = 0
        for pieces, value in values:
            wanted, words = [piece for piece, *_ in _pieces(str(value))], [piece for piece, *_ in pieces]
            ends = [i for i in range(len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted]
            stands += bool(ends and wanted)
            for begin in ends[:1] if wanted else ():
                for reach in (1, 2):
                    contexts[_before(words, begin, reach), _behind(words, begin + len(wanted))] += 1
        self.in_text = 2 * stands > len(values)
        self.known: dict[tuple[str, ...], set[str]] = defaultdict(set)
        for context, count in contexts.most_common(PATTERNS) if self.in_text else ():
            if count > 1:
                self.known[context[0]].add(context[1])
        right: dict[Context, list[int]] = defaultdict(lambda: [0, 0])
        for pieces, told in rows if self.in_text else ():  # those without the field, too: there it is never right
            wanted, words = [piece for piece, *_ in _pieces(str(told.get(name, "")))], [piece for piece, *_ in pieces]
            for context, (begin, end) in self._stand(words).items():
                right[context][0] += words[begin:end] == wanted
                right[context][1] += 1
        # a pattern that was right by chance, once, is worth nothing; where a field may be missing, no guess is better
        self.worth = {context: (hit - 1) / (tried + 2) for context, (hit, tried) in right.items()}
        self.least = 0.0 if self.share > OFTEN else 0.5

    def __call__(self, text: str, pieces: list[Piece]) -> Any:
        """Return the field's value; None where the text has none."""
        if not self.in_text:
            return json.loads(self.common) if self.share > 0.5 else None
        words = [piece for piece, *_ in pieces]
        found = self._stand(words)
        best = max(found, key=lambda context: self.worth.get(context, 0.0), default=None)
        if best is None or self.worth.get(best, 0.0) <= self.least:
            return None
        begin, end = found[best]
        said = text[pieces[begin][1] : pieces[end - 1][2]]
        return said if self.is_text or not said.isdecimal() else int(said)

    def _stand(self, words: Sequence[str]) -> dict[Context, tuple[int, int]]:
        """Return of each pattern where the first value that stands in it begins and ends; the shortest that does."""
        found: dict[Context, tuple[int, int]] = {}
        for begin in range(len(words)):
            for reach in (1, 2):
                before = _before(words, begin, reach)
                behind = self.known.get(before, ())
                for end in range(begin + 1, min(begin + LONGEST_VALUE, len(words)) + 1) if behind else ():
                    if (sign := _behind(words, end)) in behind:
                        found.setdefault((before, sign), (begin, end))
        return found


def _pieces(text: str) -> list[Piece]:
    return [(found[0].lower(), *found.span()) for found in _PIECE.finditer(text)]


def _fields(answer: str) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        problem = "the baseline `pattern` fills fields, and this answer is no JSON object"
        raise InputError("baselines", answer, problem, "Make answers of {json:…}, or leave pattern out")
    return found


def _before(words: Sequence[str], place: int, reach: int) -> tuple[str, ...]:
    """Return so many words before a place; the beginning of a text counts as an empty one."""
    return tuple(words[i] if i >= 0 else "" for i in range(place - reach, place))


def _behind(words: Sequence[str], place: int) -> str:
    return words[place] if place < len(words) else ""
