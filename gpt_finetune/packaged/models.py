"""Models and tokenizers, as the folders that transformers opens."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path


def model_from_gguf(file: Path, folder: Path) -> None:
    """Write a quantized GGUF as an ordinary checkpoint of its architecture, and keep it beside that.

    In float32: a weight is a 4-bit step times a scale plus an offset, which 16 bits do not hold.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # What was read from a GGUF refuses to be saved; the same weights in a model that was read from nowhere do not.
    config = quantized.config
    del config.quantization_config, config._model_name_or_path
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)  # with a generation config of the file's own special tokens
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    file.replace(folder / file.name)  # opens, too, with gguf_file=


def gpt2_from_ranks(file: Path, folder: Path) -> None:
    """Write GPT-2's byte-level BPE, given as ranked byte strings, as `vocab.json` and `merges.txt`."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    end = "<|endoftext|>"
    vocabulary = {**{spell(token): rank for token, rank in ranks.items()}, end: len(ranks)}
    merges = [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": 1024,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
    }
    lines = ["#version: 0.2", *(f"{spell(left)} {spell(right)}" for left, right in merges), ""]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that a token is merged from, which are what BPE with earlier merges only leaves of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]
