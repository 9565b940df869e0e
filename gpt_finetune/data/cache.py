"""A folder of finished results, found by fingerprint. An entry is whole or it is not there."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from gpt_finetune.errors import InputError

logger = logging.getLogger(__name__)

FORMAT = 1  # raise it when the meaning of cached files changes: old entries are then never found
STALE = 7 * 24 * 3600  # seconds after which a staging folder can only be a killed run's


def fingerprint(**parts: Any) -> str:
    """Hash plain values into a key; any difference gives another key."""
    return xxhash.xxh3_128_hexdigest(json.dumps({"format": FORMAT, **parts}, sort_keys=True).encode())


class Cache:
    """Results on disk.

    An entry is written to a staging folder and renamed when it is complete, so a killed run leaves nothing that
    passes for whole, and of two processes that make the same entry one wins and both use it.

    Args:
        folder: Where to keep it. None: `$GPT_FINETUNE_CACHE`, else `~/.cache/gpt_finetune`.

    Raises:
        InputError: The folder cannot be written to.
    """

    def __init__(self, folder: str | None) -> None:
        default = os.environ.get("GPT_FINETUNE_CACHE") or "~/.cache/gpt_finetune"
        self.folder = Path(folder or default).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            raise InputError(
                "data.cache_dir",
                str(self.folder),
                f"nothing can be written there ({error.strerror})",
                "Give a folder of your own, here or in $GPT_FINETUNE_CACHE",
            ) from None
        for left in self.folder.glob(".staging-*"):
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)

    def get_or_make(
        self, kind: str, key: str, make: Callable[[Path], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any], bool]:
        """Find an entry, or make it.

        Args:
            kind: Sort of result: the first half of the entry's name.
            key: Its `fingerprint`.
            make: Fills an empty folder and returns what else is worth knowing, as plain values.

        Returns:
            The entry's folder, what `make` returned, and whether it was found rather than made.
        """
        entry = self.folder / f"{kind}-{key}"
        if (known := self._load(entry)) is not None:
            return entry, known, True
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self.folder))
        try:
            made = make(staging)
            sizes = {file.name: file.stat().st_size for file in staging.iterdir()}
            (staging / "meta.json").write_text(json.dumps({"made": made, "sizes": sizes}))
            try:
                staging.replace(entry)
            except OSError:  # another process was faster, and its entry is as good
                if (known := self._load(entry)) is None:
                    raise
                made = known
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return entry, made, False

    def _load(self, entry: Path) -> dict[str, Any] | None:
        """Return what is known about an entry; move a damaged one out of the way."""
        if not entry.is_dir():
            return None
        try:
            meta = json.loads((entry / "meta.json").read_text())
            if all((entry / name).stat().st_size == size for name, size in meta["sizes"].items()):
                return meta["made"]
            problem = "a file has another size than was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = str(error)
        logger.warning("The cache entry %s is damaged (%s); it is made again.", entry, problem)
        shutil.rmtree(entry)
        return None
