"""The embedded corpus: the running Python's own library, code and English prose, present wherever Python is."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Test suites are half the library's bytes and unlike the rest; topics.py is a dump of the prose that follows as text.
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
SKIPPED_FILE = "pydoc_data/topics.py"


def embedded_python() -> Iterator[tuple[str, str]]:
    """Yield (origin, text) of each library source file, then of each topic of `help()`, both sorted by name."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(file.relative_to(root).as_posix() for file in root.rglob("*.py")):
        if SKIPPED_FOLDERS.isdisjoint(name.split("/")) and name != SKIPPED_FILE:
            yield f"embedded:python/{name}", (root / name).read_bytes().decode()

    from pydoc_data.topics import topics  # half a megabyte of text: loaded only where it is read

    for name in sorted(topics):
        yield f"embedded:python/help({name!r})", topics[name]
