"""Long texts as overlapping windows."""

from __future__ import annotations


def windows(length: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return begin and end of the windows that cover a text, each but the last of full size.

    Args:
        length: Tokens of the text; 0 has one empty window.
        size: Tokens of a window.
        overlap: Tokens that neighbours share at least, below `size`.
    """
    if length <= size:
        return [(0, length)]
    step = size - overlap
    begins = [*range(0, length - size, step), length - size]
    return [(begin, begin + size) for begin in begins]
