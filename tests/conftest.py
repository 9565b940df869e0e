"""Shared by all tests: offline, seeded, tiny."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent

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


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch before each test, where torch is in use at all."""
    import torch

    torch.manual_seed(0)
    yield


@pytest.fixture
def make_config() -> Callable[..., Any]:
    """Return a maker of tiny configurations, by architecture name and overrides."""

    def make(architecture: str = "gpt2", **overrides: Any) -> Any:
        from gpt_finetune import preset

        fields = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        return preset("tiny", **{**fields, **ARCHITECTURES[architecture], **overrides})

    return make


@pytest.fixture
def make_model(make_config: Callable[..., Any]) -> Callable[..., Any]:
    """Return a maker of tiny models in evaluation mode, with weights large enough that every part matters."""

    def make(architecture: str = "gpt2", **overrides: Any) -> Any:
        from gpt_finetune import GPTForCausalLM

        return GPTForCausalLM(make_config(architecture, **{"initializer_range": 0.2, **overrides})).eval()

    return make


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Run the test once for each architecture."""
    return str(request.param)


@pytest.fixture
def make_tokenizer() -> Callable[..., Any]:
    """Return a maker of small byte-level tokenizers."""

    def make(vocab_size: int = 300) -> Any:
        from gpt_finetune.data.config import TokenizerConfig
        from gpt_finetune.data.tokenizer import train_tokenizer

        texts = ["def add(a, b):\n    return a + b\n" * 20, "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 20]
        return train_tokenizer(iter(texts), TokenizerConfig(vocab_size=vocab_size))

    return make
