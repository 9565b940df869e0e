"""A tiny checkpoint with its tokenizer, and recipes as their users start them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import load_recipe

TEXTS = ["the answer is good, the plot is bad, and all is well.\n" * 20, "天气很好，我们去公园。" * 20]

# What each recipe is given besides its data: as little as a run needs.
TRAIN = ("train.max_steps=2", "train.batch_size=2", "train.log_steps=1", "train.precision=float32")
TUNE = (*TRAIN, "model={base}", "data.max_length=64", "adapt.method=full")
WORDS: dict[str, tuple[str, ...]] = {
    "pretrain": (
        *TRAIN,
        "model.preset=tiny",
        "model.overrides={{num_hidden_layers: 1}}",
        "tokenizer.path={base}",
        "data.block_size=16",
        "data.cache_dir={folder}/cache",
    ),
    "finetune": TUNE,
    "classify": TUNE,
    "tag": (*TUNE, "data.overlap=8"),
    "answer": (*TUNE, "data.question_length=16", "data.overlap=8"),
    "choose": TUNE,
    "seq2seq": (*TRAIN, "model.preset=tiny", "tokenizer.path={base}", "data.max_length=64"),
    "predict": ("model={base}",),
    "generate": ("model={base}",),
}


recipe_of = functools.cache(load_recipe)


@pytest.fixture(scope="session", autouse=True)
def quick_saves() -> Iterator[None]:
    """Leave out the look at what travels, which has its own tests: it is most of the time of a tiny model's save."""
    from gpt_finetune.hub import travel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(travel, "check_class", lambda kind: None)
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of one layer, untrained, beside its tokenizer of 300 tokens."""
    import torch

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(iter(TEXTS), TokenizerConfig(vocab_size=300))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    config = preset("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, max_position_embeddings=128, **ids)
    GPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def start(base: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a starter of recipes, as the command line does it; `{folder}` in a word is the test's, `{base}` the model.

    It returns what the recipe returns, or lets SystemExit pass with the line that the user would read on stderr.
    """
    from gpt_finetune.config import run

    def start(recipe: str, *words: str, output: str = "run") -> Any:
        module = recipe_of(recipe)
        config = next(kind for name, kind in vars(module).items() if name.lower() == f"{recipe}config")
        given = [word.format(base=base, folder=tmp_path) for word in WORDS.get(recipe, ())]
        given += [word.replace("{base}", str(base)).replace("{folder}", str(tmp_path)) for word in words]
        if recipe not in ("predict", "generate"):
            given = [f"output_dir={tmp_path / output}", *given]
        return run(module.main, config, given)

    return start


@pytest.fixture
def tried(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Return a decorator for a property: `few` examples in the gate, `many` in the long run."""
    from fuzzing import trying

    def of(few: int, many: int) -> Any:
        return trying(few if request.param == "few" else many)

    return of
