"""What a process says when another one, or the network between them, is gone."""

from __future__ import annotations

import os
import re

from gpt_finetune.errors import InputError

# gloo's errors have no class of their own: where they come from, or what else it says of a connection that has ended.
_GLOO = re.compile(r"gloo/|Application timeout caused pair closure|Connection closed by peer")
_PLACE = re.compile(r"^\[[^]]*\] *")  # the line of gloo's source


def lost(error: BaseException | None) -> InputError | None:
    """Translate what torch raises when processes do not meet, or one does not answer; None for all other errors.

    Args:
        error: What ended this process's work, if anything did.
    """
    from torch import distributed

    if not distributed.is_available() or not isinstance(error, RuntimeError):
        return None
    if not isinstance(error, distributed.DistError) and not _GLOO.search(str(error)):
        return None
    told = _PLACE.sub("", str(error)).splitlines()[0].split(". This is typically")[0].rstrip(".")
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    problem = f"another process has ended, hangs or is out of reach: {told}"
    remedy = (
        "See what the others have said, look after machine and network, then go on with --resume; "
        "train.trainer.ddp_timeout is how many seconds processes wait for each other"
    )
    return InputError("accelerate launch", f"process {rank} of {processes}", problem, remedy)
