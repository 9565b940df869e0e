"""Shared by all tests: offline, seeded, tiny."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads cost more than they bring

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ARCHITECTURES, POEM, load_recipe


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, so that no process is left with one of them when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch before each test, where torch is in use at all."""
    import torch

    torch.manual_seed(0)
    yield


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out of reports that a test makes by the way: matplotlib takes longer than a tiny run.

    They are drawn in what fixtures of a module or session make, in other processes, and in tests marked `drawn`.
    """
    if "drawn" in request.keywords:
        return
    from PIL import Image

    from gpt_finetune.report import page, tasks

    monkeypatch.setattr(page, "write_curves", lambda folder: Image.new("1", (1, 1)).save(folder / "curves.png"))
    monkeypatch.setattr(page, "svg_panels", lambda run: [])
    monkeypatch.setattr(tasks, "_pictures", lambda task: [])


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


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of forty small files, English, code and Chinese."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(40):
        lines = [f"def function_{i}_{j}(a, b):\n    return a + {j} * b\n" for j in range(30)]
        (folder / f"{i:02}.txt").write_text("\n".join([f"# 第{i}首", POEM, *lines]), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def words(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a maker of the command line of a tiny pretraining run into a folder."""
    cache = tmp_path_factory.mktemp("cache")

    def make(output: Path, *more: str) -> list[str]:
        return [
            f"output_dir={output}",
            "model.preset=tiny",
            "model.overrides={num_hidden_layers: 1}",
            f"data.sources=[{{path: {corpus}}}]",
            "data.validation_fraction=0.1",
            "data.block_size=32",
            f"data.cache_dir={cache}",
            "tokenizer.vocab_size=300",
            "train.max_steps=6",
            "train.batch_size=4",
            "train.eval_steps=3",
            "train.save_steps=3",
            "train.log_steps=1",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            "sample.prompts=[def, 床前]",
            "sample.max_new_tokens=8",
            *more,
        ]

    return make


@pytest.fixture(scope="session")
def finished(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished tiny run; read it, do not write to it."""
    from gpt_finetune.config import parse

    recipe = load_recipe("pretrain")
    output = tmp_path_factory.mktemp("runs") / "tiny"
    recipe.main(parse(recipe.PretrainConfig, words(output)))
    return output
