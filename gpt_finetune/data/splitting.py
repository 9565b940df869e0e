"""Which texts are one and the same, and in which order they are held out."""

from __future__ import annotations

import unicodedata

import xxhash


def text_key(text: str) -> bytes:
    """Return what equal texts share: Unicode forms, case and spaces count for nothing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()


def place_of(key: bytes, seed: int) -> int:
    """Return a text's place in the order of the split, from 0 to 2**64, which depends on nothing but text and seed."""
    return xxhash.xxh3_64_intdigest(key, seed=seed)
