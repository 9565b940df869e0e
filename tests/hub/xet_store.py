"""The storage behind xet, as far as a small file needs it: blocks of chunks, and the list of chunks of each file.

A xorb is a row of chunks: 8 bytes of header (version, compressed size, scheme, size; sizes in 3 bytes), then content.
A shard says which chunks make a file: entries of 48 bytes after a header of 48, until one whose hash is all ones.
"""

from __future__ import annotations

import struct
from typing import Any

ENTRY = 48
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30


class XetStore:
    """Blocks by hash, files by SHA-256."""

    def __init__(self) -> None:
        self.xorbs: dict[str, bytes] = {}
        self.files: dict[str, str] = {}  # SHA-256 -> xet's own hash
        self.terms: dict[str, list[dict[str, Any]]] = {}

    def add_xorb(self, name: str, content: bytes) -> None:
        """Keep a block."""
        self.xorbs[name] = content

    def add_shard(self, content: bytes) -> None:
        """Note the files of a shard."""
        at = ENTRY
        while (name := content[at : at + 32]) != b"\xff" * 32:
            flags, count = struct.unpack_from("<II", content, at + 32)
            at += ENTRY
            terms = []
            for _ in range(count):
                _, length, start, end = struct.unpack_from("<4I", content, at + 32)
                chunks = {"start": start, "end": end}
                terms.append({"hash": spell(content[at : at + 32]), "unpacked_length": length, "range": chunks})
                at += ENTRY
            at += ENTRY * count if flags & HAS_VERIFICATION else 0
            self.terms[spell(name)] = terms
            if flags & HAS_SHA256:
                self.files[spell(content[at : at + 32])] = spell(name)
                at += ENTRY

    def reconstruction(self, name: str, url: str) -> dict[str, Any]:
        """Say from which bytes of which blocks a file is made."""
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in self.terms[name]:
            offsets = chunk_offsets(self.xorbs[term["hash"]])
            begin, end = offsets[term["range"]["start"]], offsets[term["range"]["end"]]
            source = {"url": f"{url}/{term['hash']}", "url_range": {"start": begin, "end": end - 1}}
            fetch.setdefault(term["hash"], []).append({"range": term["range"], **source})
        return {"offset_into_first_range": 0, "terms": self.terms[name], "fetch_info": fetch}


def chunk_offsets(xorb: bytes) -> list[int]:
    """Return where each chunk of a block begins, and where the last one ends."""
    offsets = [0]
    while offsets[-1] < len(xorb) and xorb[offsets[-1]] == 0:  # chunks are of version 0; a footer is not
        offsets.append(offsets[-1] + 8 + int.from_bytes(xorb[offsets[-1] + 1 : offsets[-1] + 4], "little"))
    return offsets


def spell(digest: bytes) -> str:
    """Write a hash as xet does: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", digest))
