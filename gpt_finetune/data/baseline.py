"""What a general compressor makes of the held-out text: a number any model should beat."""

from __future__ import annotations

import lzma

from tqdm import tqdm

LIMIT = 64 << 20  # bytes; xz -9e takes about a minute for as much, and its window is no larger
STEP = 1 << 20  # bytes between two updates of the progress bar


def xz_bits_per_byte(documents: list[str]) -> float | None:
    """Compress the documents, one behind the other, with `xz -9e`.

    Returns:
        Compressed bits per UTF-8 byte; None when there is no text or more than `LIMIT` bytes of it.
    """
    data = "".join(documents).encode()
    if not 0 < len(data) <= LIMIT:
        return None
    xz = lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)
    with tqdm(total=len(data), desc="xz baseline", unit="B", unit_scale=True, delay=2) as bar:
        size = 0
        for start in range(0, len(data), STEP):
            part = data[start : start + STEP]
            size += len(xz.compress(part))
            bar.update(len(part))
        size += len(xz.flush())
    return 8 * size / len(data)
