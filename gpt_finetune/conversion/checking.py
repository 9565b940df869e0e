"""A checkpoint's folder, looked at before any of it is loaded: shards that lie inside, and weights that are whole."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gpt_finetune.errors import InputError

_AGAIN = "Copy, download or save the checkpoint again"


def check_folder(folder: str | Path) -> None:
    """Refuse a local checkpoint whose shards lead out of its folder, are missing, or end too early.

    Reads the indices and the headers of the weights, no values. What is no folder is left to the Hub's client, which
    keeps each file in a place of its own.

    Args:
        folder: Of the checkpoint, or a Hub id.

    Raises:
        InputError: It is such a one; the message names the file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return
    files = {path.name for path in folder.glob("model*.safetensors")}
    for index in sorted(folder.glob("*.index.json")):
        files |= _shards(index)
    for name in sorted(name for name in files if name.endswith(".safetensors")):
        _check_header(folder / name)


@contextmanager
def weights_only(path: str | Path) -> Iterator[None]:
    """Say in one line that a pickle holds no plain weights; torch would advise to open it without that protection.

    Args:
        path: The checkpoint, for the message.

    Raises:
        InputError: Weights that are pickled are damaged, or hold more than weights.
    """
    try:
        yield
    except (pickle.UnpicklingError, EOFError) as error:
        problem = f"its weights are a pickle that is damaged, or would run code ({type(error).__name__})"
        remedy = "Give one with safetensors; do not open this one with weights_only=False"
        raise InputError("model", str(path), problem, remedy) from None


def _shards(index: Path) -> set[str]:
    """Return the names of the files that an index names."""
    try:
        content: Any = json.loads(index.read_text(encoding="utf-8"))
        names = set(content["weight_map"].values()) if content["metadata"] is not None else set()
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name is no text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"it is no index of weights ({type(error).__name__}: {error})"
        raise InputError(str(index), "", problem, _AGAIN) from None
    for name in sorted(names):
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
            raise InputError(str(index), name, "this shard leads out of the folder", "Do not use the checkpoint")
        if not (index.parent / name).is_file():
            raise InputError(str(index), name, "there is no such shard in the folder", _AGAIN)
    return names


def _check_header(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        problem = f"it is no whole file of weights, {file.stat().st_size:,} bytes ({error})"
        raise InputError(str(file), "", problem, _AGAIN) from None
