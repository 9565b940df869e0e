"""A process of its own, where gpt_finetune cannot be imported: does a pushed model load, and compute what it should?

Reads its orders from standard input and writes its findings to the file that they name; `verification.py` starts it.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules["gpt_finetune"] = None  # type: ignore[assignment]  # importing it raises ImportError from here on

TEXT = "def add(a, b):\n    return a + b  # 床前明月光"


def main(orders: dict[str, Any]) -> dict[str, Any]:
    """Compare what lies on the Hub with the folder that was pushed; without `commit`, look at the folder alone.

    Args:
        orders: `here` the folder, `repo_id` and `commit` of the upload, `cache` a folder to download to, `files` with
            the SHA-256 of each, `auto` the Auto class, `trust` to run the model's code, and an adapter's `base`.

    Returns:
        The largest difference of two logits, or the files that arrived otherwise than they were sent.
    """
    from huggingface_hub import snapshot_download

    there = {"revision": orders["commit"], "cache_dir": orders["cache"]}
    if orders["commit"]:
        arrived = Path(snapshot_download(orders["repo_id"], **there))
        changed = [name for name, digest in orders["files"].items() if sha256(arrived / name) != digest]
        if changed:
            return {"changed": changed}
    ours = compute({"path": orders["here"]}, orders)
    if not all(tensor.isfinite().all() for tensor in ours[0]):
        return {"error": "its outputs are not finite numbers"}
    theirs = compute({"path": orders["repo_id"], **there}, orders) if orders["commit"] else ours
    if ours[1] != theirs[1]:
        return {"error": "its tokenizer splits text otherwise"}
    pairs = list(zip(ours[0], theirs[0], strict=True))
    if any(a.shape != b.shape for a, b in pairs):
        return {"error": "its outputs have other shapes"}
    return {"difference": max(float((a - b).abs().max()) for a, b in pairs)}


def compute(source: dict[str, Any], orders: dict[str, Any]) -> tuple[list[Any], Any]:
    """Return a model's outputs for fixed tokens, and its tokenizer's tokens for a fixed text."""
    import torch
    import transformers

    path, options = source["path"], {key: value for key, value in source.items() if key != "path"}
    trust = {"trust_remote_code": orders["trust"]}
    auto = getattr(transformers, orders["auto"])
    if orders["base"]:
        from peft import PeftModel

        base = {"revision": orders["base"]["commit"], "trust_remote_code": True}
        base |= {"num_labels": orders["base"]["num_labels"]} if orders["base"]["num_labels"] else {}
        model = PeftModel.from_pretrained(auto.from_pretrained(orders["base"]["repo_id"], **base), path, **options)
    else:
        model = auto.from_pretrained(path, **trust, **options)
        if orders["trust"] and not type(model).__module__.startswith("transformers_modules"):
            raise RuntimeError("its own code is not what runs")
    config = model.config
    shape = (2, 2, 8) if "MultipleChoice" in orders["auto"] else (2, min(16, config.max_position_embeddings))
    ids = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids))
    tokens = None
    if not orders["base"]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **trust, **options)
        tokens = [tokenizer(TEXT)["input_ids"], tokenizer.chat_template]
    return [value.float() for value in outputs.values() if torch.is_tensor(value)], tokens


def sha256(path: Path) -> str:
    """Return a file's SHA-256; that of nothing if it is not there."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    given = json.load(sys.stdin)
    try:
        found = main(given)
    except Exception as error:  # whatever it is, the model does not load there: that is the finding
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
    Path(given["answer"]).write_text(json.dumps(found), encoding="utf-8")
