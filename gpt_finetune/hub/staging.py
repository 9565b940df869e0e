"""What goes up, checked and free of secrets before a byte leaves the machine; the folder itself is left as it is."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gpt_finetune.conversion.exporting import VOCABULARY_FILES
from gpt_finetune.errors import InputError
from gpt_finetune.hub.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE, Adapter, read_adapter, read_json
from gpt_finetune.hub.card import CARD, card_to_push
from gpt_finetune.hub.travel import travelling_code
from gpt_finetune.report.heads import Head, find_head
from gpt_finetune.report.redaction import redact

# What a model, its tokenizer and its code consist of.
MODEL = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    ADAPTER_CONFIG,
    BASE,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)
# What a run leaves for people to read; secrets and home folders in them are blotted out.
RUN = ("run.json", "config.yaml", "metrics.jsonl", "samples.jsonl", "curves.png", "report.html", CARD)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.joblib")
INDEX = "model.safetensors.index.json"

_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
_READ_WHOLE = 64 * 2**20  # text files above so many bytes are no text files


@dataclass(frozen=True)
class Staged:
    """What is to be pushed.

    Args:
        folder: A temporary folder: links to the model's own files, and what had to be written anew.
        head: The model's head.
        adapter: What it stands on, if it is an adapter.
        remote_code: The model's code lies beside its weights.
        notes: What stays behind or was changed, and why.
    """

    folder: Path
    head: Head
    adapter: Adapter | None
    remote_code: bool
    notes: list[str] = field(default_factory=list)

    @property
    def files(self) -> dict[str, int]:
        """Paths as they will be on the Hub, with their sizes."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.stat().st_size for path in paths}


@contextmanager
def staged(folder: str | Path, repo_id: str, license: str | None = None) -> Iterator[Staged]:
    """Check a model's folder and lay out what of it goes to the Hub.

    Args:
        folder: What `save_pretrained` of a model (or adapter) and its tokenizer wrote, or a run's folder.
        repo_id: Where it will be pushed to, for the card.
        license: The model's licence by its Hub name, for the card.

    Raises:
        InputError: A part is missing or broken, the code would not load elsewhere, or a token is in a file.
    """
    source = Path(folder)
    if not source.is_dir():
        raise InputError("model", str(folder), "there is no such folder", "Give the folder of a saved model")
    config = read_json(source / "config.json")
    adapter = read_adapter(source)
    head = adapter.head if adapter else _find_head(source, config)
    _check_weights(source, adapter)
    _check_tokenizer(source, adapter)
    code = travelling_code(source, config)
    chosen, notes = _choose(source, code)
    with tempfile.TemporaryDirectory(prefix="gpt_finetune-push-") as temporary:
        target = Path(temporary)
        staging = Staged(target, head, adapter, bool(config.get("auto_map")), notes)
        for name in chosen:
            _stage(source, name, staging)
        for name, content in (adapter.files if adapter else {}).items():
            (target / name).unlink(missing_ok=True)
            (target / name).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
        card = card_to_push(source, repo_id, license=license, head=head, adapter=adapter, native=not code)
        (target / CARD).unlink(missing_ok=True)
        (target / CARD).write_text(redact(card), encoding="utf-8")
        yield staging


def _find_head(source: Path, config: dict[str, Any]) -> Head:
    if not config:
        remedy = "Give the folder that save_pretrained wrote"
        raise InputError("model", source.name, f"it holds neither config.json nor {ADAPTER_CONFIG}", remedy)
    architectures = config.get("architectures") or []
    head = find_head(architectures[0]) if architectures else None
    if head is None:
        known = "Save the model, not its configuration alone"
        raise InputError("config.json: architectures", architectures, "they name no head that can be checked", known)
    return head


def _check_weights(source: Path, adapter: Adapter | None) -> None:
    wanted = {ADAPTER_WEIGHTS} if adapter else {"model.safetensors"}
    if not adapter and not (source / "model.safetensors").is_file() and (source / INDEX).is_file():
        wanted = set(read_json(source / INDEX).get("weight_map", {}).values())
    missing = sorted(name for name in wanted if not (source / name).is_file())
    if missing:
        pickled = [path.name for path in source.iterdir() if _matches(path.name, PICKLES)]
        problem = (
            f"{pickled[0]} is a pickle, which is never pushed" if pickled else "these weights are not in the folder"
        )
        remedy = "Save the model again with save_pretrained, which writes safetensors"
        raise InputError("model", missing[0], problem, remedy)


def _check_tokenizer(source: Path, adapter: Adapter | None) -> None:
    has_vocabulary = any((source / name).is_file() for name in VOCABULARY_FILES)
    if not adapter and not (has_vocabulary and (source / "tokenizer_config.json").is_file()):
        remedy = "Save it there too: tokenizer.save_pretrained(folder)"
        raise InputError("model", source.name, "its folder holds no tokenizer", remedy)


def _choose(source: Path, code: set[str]) -> tuple[list[str], list[str]]:
    """Return the paths to push, and why each of the others is not."""
    chosen, notes = [], []
    for path in sorted(source.iterdir()):
        if path.is_dir() and path.name == "additional_chat_templates":
            chosen += [f"{path.name}/{file.name}" for file in sorted(path.glob("*.jinja"))]
        elif path.is_dir():
            why = "states of the training" if path.name.startswith("checkpoint-") else "a folder"
            notes.append(f"{path.name}/ stays here: {why}")
        elif path.name in code or _matches(path.name, (*MODEL, *RUN)):
            chosen.append(path.name)
        elif _matches(path.name, PICKLES):
            notes.append(f"{path.name} stays here: a pickle can run anything where it is opened")
        else:
            notes.append(f"{path.name} stays here: no part of a model or a run")
    return chosen, notes


def _stage(source: Path, name: str, staging: Staged) -> None:
    """Link one file, or write it without its secrets."""
    path, target = (source / name).resolve(), staging.folder / name
    target.parent.mkdir(exist_ok=True)
    content = path.read_bytes() if path.stat().st_size <= _READ_WHOLE else b""
    if name in RUN and not name.endswith(".png"):
        text = content.decode("utf-8", errors="replace")
        if (clean := redact(text)) != text:
            target.write_text(clean, encoding="utf-8")
            staging.notes.append(f"{name} goes without the secrets and home folders in it")
            return
    elif _holds_token(content):
        raise InputError("model", name, "a token is in this file", "Take it out, and revoke it")
    target.symlink_to(path)


def _holds_token(content: bytes) -> bool:
    """Say whether a file holds something like a token of the Hub, or the very one in use."""
    from huggingface_hub import get_token

    token = get_token()
    return _TOKEN.search(content) is not None or bool(token and token.encode() in content)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
