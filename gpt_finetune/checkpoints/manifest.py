"""A checkpoint's manifest: the size and SHA-256 of each of its files, written when all of them are on the disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
VERSION = 1


def sign(folder: Path, step: int) -> None:
    """Bring a checkpoint's files to the disk, and write the manifest that says what they are.

    Args:
        folder: The checkpoint; nobody writes to it any more.
        step: Optimiser steps that it stands for.
    """
    (folder / MANIFEST).unlink(missing_ok=True)
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest, size = _measure(path, sync=True)
        files[path.relative_to(folder).as_posix()] = {"bytes": size, "sha256": digest}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(_render(step, files))
        file.flush()
        os.fsync(file.fileno())
    for inner in sorted({path.parent for path in folder.rglob("*")} | {folder}):
        sync_folder(inner)


def damage(folder: Path) -> list[str]:
    """Return what is wrong with a checkpoint, one phrase a file; empty when each file is as it was signed.

    Files that the manifest does not name are passed by: they have no part in the checkpoint.
    """
    try:
        text = (folder / MANIFEST).read_text(encoding="utf-8")
    except FileNotFoundError:
        return [f"{MANIFEST} is missing, so nothing says whether the rest is whole"]
    except (OSError, UnicodeDecodeError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    if not text:
        return [f"{MANIFEST} is empty"]
    try:
        record = json.loads(text)
        whole = _render(record["step"], record["files"]) == text
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        return [f"{MANIFEST} is cut short or altered"]
    return [problem for name, said in record["files"].items() if (problem := _compare(folder, name, said))]


def _compare(folder: Path, name: str, said: dict[str, Any]) -> str | None:
    """Return what is wrong with one file, if anything."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != said["bytes"]:
            how = "is empty" if size == 0 else "is truncated" if size < said["bytes"] else "is too long"
            return f"{name} {how} ({size:,} bytes, not {said['bytes']:,})"
        if _measure(path)[0] != said["sha256"]:
            return f"{name} is altered (its SHA-256 is another)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return None


def _measure(path: Path, *, sync: bool = False) -> tuple[str, int]:
    """Return a file's SHA-256 and its size in bytes; `sync` sends it to the disk first."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def _render(step: int, files: dict[str, dict[str, Any]]) -> str:
    """Return the manifest's text, which ends in its own checksum: a bit that flips in it is found as in any file."""
    record = {"version": VERSION, "step": step, "files": files}
    own = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps(record | {"sha256": own}, indent=1, ensure_ascii=False) + "\n"


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk; a system that has no such call has no need of it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
