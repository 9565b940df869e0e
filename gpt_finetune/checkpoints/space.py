"""How much disk checkpoints take, asked before the start and said when there is none left."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path
from typing import Any

from gpt_finetune.errors import InputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What torch and safetensors say, whose errors carry no number.
_FULL_TEXT = re.compile(
    r"no space left|os error (28|122|27)\b|quota exceeded|file too large|unexpected pos|failed writing", re.I
)
_STATES = (("8bit", 2), ("adafactor", 0), ("sgd", 0), ("lion", 4), ("adagrad", 4), ("rmsprop", 4))  # bytes a weight
_ADAM = 8  # two moments in float32
_BESIDES = 1 << 20  # tokenizer, configuration, trainer state, random state


def checkpoint_bytes(model: Any, optimizer: str) -> int:
    """Estimate the size of one checkpoint.

    Args:
        model: What is trained; of an adapter only the adapter is written.
        optimizer: Its name; `muon`, or one of transformers'.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    written = trained if hasattr(model, "peft_config") else list(model.parameters())
    weights = sum(parameter.numel() * parameter.element_size() for parameter in written)
    if optimizer == "muon":  # matrices have one moment
        states = sum(parameter.numel() * (4 if parameter.ndim > 1 else 8) for parameter in trained)
    else:
        each = next((size for name, size in _STATES if name in optimizer), _ADAM)
        states = each * sum(parameter.numel() for parameter in trained)
    return weights + states + _BESIDES


def check_space(folder: Path, each: int, limit: int | None) -> None:
    """Refuse a run whose checkpoints do not fit: those kept, and the one that is written before the oldest goes.

    Args:
        folder: The run's; its checkpoints of before count as room.
        each: Bytes of one checkpoint.
        limit: How many are kept; None keeps all, of which two are asked for.

    Raises:
        InputError: The file system has less than that free.
    """
    count = (limit or 1) + 1
    held = sum(path.stat().st_size for path in folder.glob("checkpoint-*/**/*") if path.is_file())
    free = shutil.disk_usage(folder).free
    if each * count > free + held:
        problem = (
            f"{count} checkpoints of about {_size(each)} (one more than are kept, for a new one is whole before an old "
            f"one goes) need {_size(each * count)}, and {folder} has {_size(free)} free"
        )
        remedy = "Free space, lower it, or give an output_dir on a larger disk"
        raise InputError("train.save_total_limit", limit, problem, remedy)


def is_full(error: BaseException) -> bool:
    """Tell whether a write failed because nothing more may be written: disk or quota at its end."""
    return getattr(error, "errno", None) in _FULL or bool(_FULL_TEXT.search(str(error)))


def full(folder: Path, name: str, each: int, last: str | None) -> InputError:
    """Return the error of a checkpoint that could not be written.

    Args:
        folder: The run's.
        name: Of the checkpoint.
        each: Bytes that it needs, about.
        last: The whole checkpoint that is left, if any.
    """
    kept = f"{last} is untouched" if last else "there is none before it"
    problem = (
        f"no space for {name}: it needs about {_size(each)}, {_size(shutil.disk_usage(folder).free)} are free; {kept}"
    )
    remedy = "Free space, then go on with --resume" if last else "Free space, then start again with --overwrite"
    return InputError("output_dir", str(folder), problem, remedy)


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:.3g} TB"
