"""What tests import from each other's folders: paths, architectures, recipes as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"

# Every axis of the architecture at least once; each must do whatever a GPT does.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt1": {"norm_position": "post", "hidden_act": "gelu"},
    "transformer-2017": {"position_embedding_type": "sinusoidal", "norm_position": "post", "hidden_act": "relu"},
    "no-positions": {"position_embedding_type": "none"},
    "llama": {
        "position_embedding_type": "rotary",
        "norm_type": "rmsnorm",
        "hidden_act": "silu",
        "gated_mlp": True,
        "num_key_value_heads": 2,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
    "modern": {
        "position_embedding_type": "rotary",
        "norm_type": "rmsnorm",
        "qk_norm": True,
        "hidden_act": "relu2",
        "attention_bias": False,
        "mlp_bias": False,
    },
    "sliding": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4},
    "multi-query": {"num_key_value_heads": 1, "head_dim": 16},
}


def load_recipe(name: str) -> ModuleType:
    """Import a recipe from its file, as `accelerate launch` would run it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
