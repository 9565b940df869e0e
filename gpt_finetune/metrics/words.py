"""What counts as a word: a run of letters and digits where words are parted, one character in Chinese and Japanese."""

from __future__ import annotations

import re
import unicodedata

# Scripts that put no spaces between words: Han with its extensions, kana, bopomofo. Hangul has spaces.
_UNSPACED = "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3041-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
_UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_CHARACTER = re.compile(f"[{_UNSPACED}]")
WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def split_words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation; in ASCII, what rouge-score's own tokenizer returns."""
    return WORD.findall(text.lower())


def split_answer(text: str) -> list[str]:
    """Return the words as SQuAD's scoring script compares them (arXiv:1606.05250): punctuation and articles removed.

    Characters of unspaced scripts are words of their own, and punctuation is Unicode's.
    """
    kept = "".join(sign for sign in text.lower() if not _is_punctuation(sign))
    return _CHARACTER.sub(r" \g<0> ", _ARTICLE.sub(" ", kept)).split()


def is_unspaced(texts: list[str]) -> bool:
    """Tell whether most letters belong to scripts that put no spaces between words."""
    unspaced = sum(len(_CHARACTER.findall(text)) for text in texts)
    return 2 * unspaced > sum(sign.isalpha() for text in texts for sign in text)


def _is_punctuation(sign: str) -> bool:
    return unicodedata.category(sign).startswith("P") or sign in "$+<=>^`|~"  # the rest of string.punctuation
