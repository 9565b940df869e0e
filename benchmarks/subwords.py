"""Which token of a word should bear its tag in a model that reads to the right: the last one, or the first?

    PYTHONPATH=. python benchmarks/subwords.py [key=value ...]

Both are trained as configs/tag/pos-en.yaml says, but reading to the right only: same rows, tokenizer, seed and steps
(Brown corpus, parts of speech). Told are the accuracy over all held-out words, over those of several tokens, and those
of one, where the two cannot differ but by training; tested by McNemar's exact test over words, and by paired bootstrap
over texts, whose words are not independent. Writes `benchmarks/results/subwords.json`.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gpt_finetune.config import parse
from gpt_finetune.data.readers import Record
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics import sequences
from gpt_finetune.tasks.heads import padded_tokenizer
from gpt_finetune.tasks.tag_features import WordEncoder
from gpt_finetune.tasks.tag_prediction import load_tagger
from gpt_finetune.tasks.tagging import PreparedTagging, prepare_tagging

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "subwords.json"
KINDS = ("last", "first")
STEPS, SAMPLES, BATCH = 500, 1000, 16


def train(kind: str, more: list[str]) -> Any:
    """Train one tagger in this process; returns its configuration."""
    specification = importlib.util.spec_from_file_location("tag_recipe", ROOT / "recipes" / "tag.py")
    assert specification is not None
    assert specification.loader is not None
    recipe = importlib.util.module_from_spec(specification)
    sys.modules["tag_recipe"] = recipe  # where dataclasses look up their types
    specification.loader.exec_module(recipe)
    words = [
        f"output_dir={ROOT / 'runs' / f'subwords-{kind}'}",
        "overwrite=true",
        "bidirectional=false",
        f"data.label_subword={kind}",
        f"train.max_steps={STEPS}",
        "judge.baselines=false",
    ]
    config = parse(recipe.TagConfig, ["--config", str(ROOT / "configs" / "tag" / "pos-en.yaml"), *words, *more])
    recipe.main(config)
    return config


def held_out(config: Any) -> PreparedTagging:
    """Return the rows of a finished run."""
    return prepare_tagging(config.data, padded_tokenizer(load_tokenizer(config.output_dir), config.data.max_length))


def tell(config: Any, data: PreparedTagging) -> np.ndarray:
    """Return which held-out words a finished tagger gets right (M,)."""
    rows = [Record({"words": list(row.target.words)}, row.origin, "") for row in data.texts["validation"]]
    said = load_tagger(config.output_dir, "text")(rows, BATCH, None)
    names = np.array(data.labels.names)
    return np.concatenate([each["tags"] for each in said]) == names[data.right]


def sizes_of(data: PreparedTagging) -> np.ndarray:
    """Return how many tokens each held-out word has (M,)."""
    encoder = WordEncoder(data.tokenizer, data.facts["joiner"], data.collate.width, 0)
    texts = [row.target.words for row in data.texts["validation"]]
    return np.array([len(word) for text in encoder.encode(texts) for word in text])


def compare(right: dict[str, np.ndarray], data: PreparedTagging, words: np.ndarray) -> dict[str, Any]:
    """Compare both over some of the words.

    Args:
        right: Which words each gets right, bool (M,).
        data: The held-out rows.
        words: Which words count, bool (M,).
    """
    counted = np.array([part.sum() for part in data.split(words)], np.float64)
    hits = {kind: np.array([part.sum() for part in data.split(told & words)]) for kind, told in right.items()}
    draws = {}
    for kind, each in hits.items():
        sums = sequences.resample(np.stack([each, counted], axis=1), SAMPLES, seed=0)
        draws[kind] = sums[:, 0] / np.maximum(sums[:, 1], 1)
    return {
        "words": int(words.sum()),
        **{
            kind: {"accuracy": float(told[words].mean()), "interval": scores.interval(draws[kind])}
            for kind, told in right.items()
        },
        "mcnemar_p": scores.mcnemar_p(right["last"][words], right["first"][words]),
        "bootstrap_p": scores.paired_p(draws["last"], draws["first"]),
    }


def main(more: list[str]) -> None:
    """Train both, compare, write down."""
    configs = {kind: train(kind, more) for kind in KINDS}
    prepared = {kind: held_out(config) for kind, config in configs.items()}
    data = prepared["last"]
    assert [row.text for row in data.texts["validation"]] == [row.text for row in prepared["first"].texts["validation"]]
    assert (sizes_of(data) == sizes_of(prepared["first"])).all(), "the tokenizers differ"
    right = {kind: tell(config, prepared[kind]) for kind, config in configs.items()}
    sizes = sizes_of(data)
    result = {
        "cpu": platform.processor() or platform.machine(),
        "steps": configs["last"].train.max_steps,
        "seed": configs["last"].train.seed,
        "texts": len(data.texts["validation"]),
        "all": compare(right, data, np.ones(len(sizes), bool)),
        "several tokens": compare(right, data, sizes > 1),
        "one token": compare(right, data, sizes == 1),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
