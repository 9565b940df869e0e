"""Classification by prompt, without training: of the words that name labels, the likeliest behind a text.

Brown et al. 2020 (GPT-3, arXiv:2005.14165), section 2.1: none, or a few examples before the text. Contextual
calibration: Zhao et al. 2021, arXiv:2102.09690, section 4; by real texts: Zhou et al. 2023, arXiv:2309.17249.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_finetune.errors import InputError
from gpt_finetune.tasks.prompt_config import SLOT, PromptConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gpt_finetune.tasks.classification import PreparedTask


def draw_examples(data: PreparedTask, texts: Sequence[str], words: Sequence[str], config: PromptConfig) -> list[Any]:
    """Return the examples that stand before each text: training texts with the words of their labels.

    Args:
        data: The rows.
        texts: The training texts, cut to size.
        words: Of each label.
        config: How many, and the seed.

    Raises:
        InputError: There are fewer training texts than that.
    """
    chance = random.Random(config.seed)
    by_label: dict[int, list[int]] = {label: [] for label in range(len(words))}
    for i, label in enumerate(data.targets["train"].tolist()):
        by_label[label].append(i)
    for rows in by_label.values():
        chance.shuffle(rows)
    queues = list(by_label.items())
    chance.shuffle(queues)
    turns = zip_longest(*([(i, label) for i in rows] for label, rows in queues))
    chosen = [pair for turn in turns for pair in turn if pair is not None][: config.shots]
    if len(chosen) < config.shots:
        raise InputError("prompt.shots", config.shots, f"there are {len(chosen)} training texts", "Lower it")
    chance.shuffle(chosen)
    return [(texts[i], words[label]) for i, label in chosen]


def calibration_texts(texts: Sequence[str], config: PromptConfig) -> list[str]:
    """Return the texts to calibrate by: those that say nothing, or so many of the training texts given.

    Raises:
        InputError: There are fewer training texts than that.
    """
    if not config.calibration_texts:
        return config.content_free
    if config.calibration_texts > len(texts):
        problem = f"there are {len(texts)} training texts"
        raise InputError("prompt.calibration_texts", config.calibration_texts, problem, "Lower it")
    return random.Random(config.seed).sample(list(texts), config.calibration_texts)


def cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], most: int) -> list[str]:
    """Return the beginnings of texts, of so many tokens at most."""
    ends = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [text if len(spans) <= most else text[: spans[most - 1][1]] for text, spans in zip(texts, ends, strict=True)]


def score_words(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], words: Sequence[str], config: PromptConfig
) -> np.ndarray:
    """Return the log-likelihood of each label's words behind each prompt, float64 (N, L).

    Labels of one token share a forward pass; each other one takes a pass of its own.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its own.
        prompts: N prompts.
        words: Of L labels.
        config: Template, batch size, and whether to divide by tokens.

    Raises:
        InputError: A prompt leaves no room for the words, or two labels become the same tokens.
    """
    from gpt_finetune.generation import positions

    opening = _opening(tokenizer)
    rows = [opening + tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    behind = [_continuation(tokenizer, config.template.split(SLOT)[1], one) for one in words]
    if len({tuple(ids) for ids in behind}) < len(behind):
        raise InputError("prompt.words", list(words), "two labels become the same tokens", "Give other words")
    limit, longest = positions(model), max(map(len, rows)) + max(map(len, behind))
    if limit is not None and longest > limit:
        problem = f"a prompt with its label takes {longest} tokens, and the model has {limit} positions"
        raise InputError("prompt.shots", config.shots, problem, "Lower prompt.shots or data.max_length")
    found = np.zeros((len(rows), len(words)))
    short = [label for label, ids in enumerate(behind) if len(ids) == 1]
    passes = [(short, [behind[label][0] for label in short])] if short else []
    for labels, ids in [*passes, *(([label], ids) for label, ids in enumerate(behind) if len(ids) > 1)]:
        several = len(labels) == 1 and len(behind[labels[0]]) > 1
        for some, odds in _passes(model, tokenizer, rows, ids[:-1] if several else [], config.batch_size):
            picked = odds[:, range(len(ids)), ids].sum(1, keepdims=True) if several else odds[:, 0, ids]
            found[np.ix_(some, labels)] = picked
    return found / np.array([len(ids) for ids in behind]) if config.normalise else found


def calibrated(scores: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Return scores (N, L) as they would be if the texts to calibrate by (M, L) made all labels equally likely."""
    from gpt_finetune.tasks.labels import softmax

    return scores - np.log(softmax(behind).mean(0))


def describe(words: Mapping[str, str], examples: Sequence[tuple[str, str]], config: PromptConfig) -> dict[str, Any]:
    """Return what a run's receipt says of the prompt."""
    by = f"{config.calibration_texts} training texts" if config.calibration_texts else config.content_free
    told = {"template": config.template, "words": dict(words), "shots": len(examples)}
    return told | {"calibrate": by if config.calibrate else False}


def _passes(model: Any, tokenizer: Any, rows: list[list[int]], tail: list[int], batch_size: int) -> Any:
    """Yield numbers of rows, and log-probabilities (B, 1 + tail, V) behind their prompts and each token of the tail.

    Rows are padded on the left: what is asked for then stands in the same columns. The longest go first, so that a lack
    of memory shows at once.
    """
    import torch
    from tqdm import tqdm

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    with torch.no_grad(), tqdm(total=len(rows), desc="prompts", delay=2, leave=False) as bar:
        for begin in range(0, len(order), batch_size):
            some = order[begin : begin + batch_size]
            given = [rows[i] + tail for i in some]
            width = len(given[0])
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in given], device=model.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in given], device=model.device)
            places = (mask.cumsum(1) - 1).clamp(min=0)
            said = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=len(tail) + 1)
            yield some, said.logits.double().log_softmax(-1).cpu().numpy()
            bar.update(len(some))


def _opening(tokenizer: Any) -> list[int]:
    """Return what the tokenizer puts before a text by itself: a token that opens it, or nothing."""
    whole, content = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return whole[: next(i for i in range(len(whole)) if whole[i : i + len(content)] == content)]


def _continuation(tokenizer: Any, before: str, words: str) -> list[int]:
    """Return the tokens of words as they go on behind a text."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, before + words, words)]
    return ids[1][len(ids[0]) :] if ids[1][: len(ids[0])] == ids[0] and len(ids[1]) > len(ids[0]) else ids[2]
