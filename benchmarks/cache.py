"""How much does the key-value cache hold? GPT-3's alternation of dense and banded layers against dense layers alone.

    PYTHONPATH=. python benchmarks/cache.py

Both read a text of 2,047 tokens and one more, in float32, and the memory that their caches then keep is counted, whole
storages and not only what is seen of them: right after the text, transformers' sliding layers still look into a tensor
of all of it, which the next token frees. Random weights: they change no size. Writes `benchmarks/results/cache.json`.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gpt_finetune import GPTConfig, GPTForCausalLM, preset

PRESET = "gpt3-small"


def held(config: GPTConfig) -> int:
    """Return the bytes that the cache keeps after as long a text as the model reads."""
    ids = torch.randint(config.vocab_size, (1, config.max_position_embeddings))
    model, cache = GPTForCausalLM(config).eval(), None
    for piece in (ids[:, :-1], ids[:, -1:]):
        with torch.no_grad():
            cache = model(piece, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def main() -> None:
    """Count both, print and write them down."""
    banded = held(preset(PRESET))
    dense = held(preset(PRESET, layer_types=None, sliding_window=None))
    report = {
        "preset": PRESET,
        "tokens": preset(PRESET).max_position_embeddings,
        "megabytes": round(banded / 1e6, 1),
        "megabytes_dense": round(dense / 1e6, 1),
    }
    file = Path(__file__).parent / "results" / "cache.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
