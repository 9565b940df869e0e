"""Nothing is called pushed until a fresh process without this package has loaded it and found the same logits."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpt_finetune.errors import InputError
from gpt_finetune.hub import fresh
from gpt_finetune.hub.staging import Staged
from gpt_finetune.report.redaction import redact

TOLERANCE = 1e-6  # the same code, weights and tokens on the same machine: 0 is expected
log = logging.getLogger(__name__)


def verify(staging: Staged, repo_id: str, commit: str | None = None) -> float:
    """Load what was staged, and what the Hub gives back for it, where this package cannot be imported.

    Args:
        staging: What was pushed.
        repo_id: Where to.
        commit: The commit to download; None to see only that the folder itself loads there.

    Returns:
        The largest difference between two outputs.

    Raises:
        InputError: It does not load, or what arrived is not what was sent.
    """
    found = _ask(staging, repo_id, commit)
    if commit and "difference" not in found:  # a broken download, perhaps, of a sound upload
        log.warning("%s; once more", redact(found.get("error", "not all files arrived as they were sent")))
        found = _ask(staging, repo_id, commit)
    if "changed" in found:
        problem = f"what the Hub gives back for {', '.join(found['changed'])} is not what was sent"
    elif "error" in found:
        problem = f"it does not work in a fresh process without gpt_finetune: {redact(found['error'])}"
    elif not found["difference"] <= TOLERANCE:
        problem = f"its outputs differ by {found['difference']:.2g} from the folder's"
    else:
        return float(found["difference"])
    where = f"Commit {commit} stays, untagged: do not use it; push again" if commit else "Mend the folder"
    raise InputError("repo_id" if commit else "model", repo_id, problem, where)


def _ask(staging: Staged, repo_id: str, commit: str | None) -> dict[str, Any]:
    adapter = staging.adapter
    with tempfile.TemporaryDirectory(prefix="gpt_finetune-verify-") as temporary:
        cache, answer = Path(temporary) / "hub", Path(temporary) / "answer.json"
        orders = {
            "here": str(staging.folder),
            "repo_id": repo_id,
            "commit": commit,
            "cache": str(cache),
            "answer": str(answer),
            "files": {name: fresh.sha256(staging.folder / name) for name in staging.files} if commit else {},
            "auto": staging.head.auto,
            "trust": staging.remote_code,
            "base": adapter and {"repo_id": adapter.base, "commit": adapter.commit, "num_labels": adapter.num_labels},
        }
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(temporary) / "modules"),
            "HF_XET_CACHE": str(Path(temporary) / "xet"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "PYTHONPATH": "",
        }
        command = [sys.executable, "-P", str(fresh.__file__)]
        told = json.dumps(orders)
        ended = subprocess.run(command, input=told, env=environment, capture_output=True, text=True, check=False)
        if answer.is_file():
            return dict(json.loads(answer.read_text(encoding="utf-8")))
        last = (ended.stderr.strip().splitlines() or [""])[-1]
        return {"error": f"the process ended with code {ended.returncode}: {last}"}
