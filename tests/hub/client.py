"""The real huggingface_hub, in a process of its own: it reads HF_ENDPOINT and HF_HUB_OFFLINE on import.

Takes one JSON object a line (`call`, `arguments`, `token`) and answers each with another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import gpt_finetune.hub.upload as pushing
from gpt_finetune.errors import InputError

patient = time.sleep
time.sleep = lambda seconds: patient(min(seconds, 0.01))  # the waits between attempts are no part of any test


def push(verified: bool = False, **arguments: Any) -> dict[str, Any]:
    """Push; the fresh process, which takes seconds, only where it is what is tested."""
    pushing.verify = verification if verified else lambda *_: -1.0
    return vars(pushing.push(**arguments))


def fetch(repo_id: str, revision: str = "main") -> dict[str, str]:
    """Download a repository; returns the SHA-256 of its files."""
    from huggingface_hub import snapshot_download

    with tempfile.TemporaryDirectory() as cache:
        folder = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache))
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def push_to_hub(folder: str, repo_id: str, **options: Any) -> str:
    """Push with transformers' own method: the model, then its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(folder).push_to_hub(repo_id, **options)
    return str(AutoTokenizer.from_pretrained(folder).push_to_hub(repo_id, **options).oid)


def load_adapter(path: str, ids: list[int], **options: Any) -> dict[str, Any]:
    """Load an adapter on its base; returns its first logits for some tokens, and its number of labels."""
    import torch

    from gpt_finetune.hub import load_adapter as load

    model = load(path, **options).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits
    return {"logits": logits.flatten()[:4].tolist(), "num_labels": model.config.num_labels}


def api(method: str, *words: str, **options: Any) -> str:
    """Call anything of HfApi."""
    from huggingface_hub import HfApi

    return str(getattr(HfApi(), method)(*words, **options))


if __name__ == "__main__":
    verification = pushing.verify
    for line in sys.stdin:
        order = json.loads(line)
        os.environ.pop("HF_TOKEN", None)
        if order["token"]:
            os.environ["HF_TOKEN"] = order["token"]
        try:
            answer = {"value": globals()[order["call"]](*order["words"], **order["arguments"])}
        except Exception as error:
            kind = "InputError" if isinstance(error, InputError) else type(error).__name__
            answer = {"error": kind, "message": str(error), "trace": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
