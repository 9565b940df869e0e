"""What tests import from each other's folders: paths, architectures, recipes as modules."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"

# Every axis of the architecture at least once; each must do whatever a GPT does.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "gpt1": {"block_type": "post_norm", "hidden_act": "gelu"},
    "transformer-2017": {"position_embedding_type": "sinusoidal", "block_type": "post_norm", "hidden_act": "relu"},
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
    "gpt-j": {
        "block_type": "parallel_shared_norm",
        "position_embedding_type": "rotary",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        "attention_bias": False,
        "lm_head_bias": True,
        "tie_word_embeddings": False,
    },
    "gpt-neox": {
        "block_type": "parallel",
        "position_embedding_type": "rotary",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
        "attention_output_bias": False,
    },
    "gpt-oss": {
        "position_embedding_type": "rotary",
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1.5e5,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 16,
        },
        "norm_type": "rmsnorm",
        "hidden_act": "quick_gelu",
        "gated_mlp": True,
        "swiglu_limit": 7.0,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "attention_sinks": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "block_type": "sandwich_norm",
        "position_embedding_type": "rotary",
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
        "scale_embeddings": True,
        "norm_type": "zero_centered_rmsnorm",
        "qk_norm": True,
        "gated_mlp": True,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "nanochat": {
        "position_embedding_type": "rotary",
        "embedding_norm": True,
        "norm_type": "rmsnorm",
        "norm_affine": False,
        "qk_norm": True,
        "hidden_act": "relu2",
        "attention_bias": False,
        "mlp_bias": False,
        "final_logit_softcapping": 15.0,
        "tie_word_embeddings": False,
    },
}


def put_wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    """Write a wheel of version 1.0 that pip accepts, into a folder that it may look in."""
    files: dict[str, str | bytes] = {
        **members,
        f"{name}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{name}-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{name}-1.0.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)


def is_mapped(folder: Path) -> bool:
    """Tell whether a file of a folder lies in this process's memory; Linux alone says so."""
    return str(folder) in Path("/proc/self/maps").read_text(encoding="utf-8")


def load_recipe(name: str) -> ModuleType:
    """Import a recipe from its file, as `accelerate launch` would run it."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "recipes" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def kept_bytes(model: Any, again: bool, monkeypatch: Any, **inputs: Any) -> int:
    """Count what the graph of one forward pass keeps besides the weights: each storage once.

    Args:
        model: In training mode, or not.
        again: Whether outputs of norms, activations and gates are computed again.
        monkeypatch: pytest's.
        **inputs: Of the forward pass.
    """
    import torch

    from gpt_finetune.training.recompute import recomputed

    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}
    true = torch.autograd.graph.saved_tensors_hooks

    def counting(pack: Any, unpack: Any) -> Any:
        def counted(given: Any) -> Any:
            kept = pack(given)
            maker = getattr(getattr(kept, "func", None), "__self__", None)
            for held in [given] if maker is None else maker.inputs:
                storages.setdefault(held.untyped_storage().data_ptr(), held.untyped_storage().nbytes())
            return kept

        return true(counted, unpack)

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", counting)
        with recomputed(least=0) if again else counting(lambda given: given, lambda given: given):
            outputs = model(**inputs)
    assert outputs[0].requires_grad
    return sum(storages.values())
