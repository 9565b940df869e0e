"""Which parts of a text speak for a model's label, and which for the right one: gradient times input.

Of a text's label by token; of a word's tag by word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_finetune.tasks.config import SINGLE
from gpt_finetune.tasks.tag_features import WordEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gpt_finetune.tasks.classification import PreparedTask
    from gpt_finetune.tasks.tagging import PreparedTagging

Part = tuple[str, float]


def explain(model: Any, data: PreparedTask, errors: Sequence[dict[str, Any]]) -> None:
    """Add to errors what in each text spoke for the predicted label and what for the right one, as `parts`.

    Args:
        model: The classifier, whole in this process.
        data: The rows; with several labels a text, or numbers, nothing is added.
        errors: From `judging.judge`.
    """
    if data.labels.problem != SINGLE:
        return
    number = {name: i for i, name in enumerate(data.labels.names)}
    for error in errors:
        label, other = number[error["predicted"]], number[error["label"]]
        error["parts"] = attribute(model, data.tokenizer, error["text"], label, other, data.collate.width)


def attribute(
    model: Any, tokenizer: PreTrainedTokenizerBase, text: str, label: int, other: int, max_length: int
) -> list[Part]:
    """Return the parts of a text with what each adds to the odds of one label over another.

    The embedding of each token times the gradient of the difference of the two logits (Shrikumar et al. 2016,
    arXiv:1605.01713; of a difference: Yin and Neubig 2022, arXiv:2202.10419): exact for a linear model, a first look
    at any other.

    Args:
        model: A classifier of texts, with one label a text.
        tokenizer: Its own, fast.
        text: The text.
        label: Number of the label that parts above 0 speak for.
        other: Number of the label that parts below 0 speak for.
        max_length: Tokens that the model gets to see.

    Returns:
        Parts that make up the text, each with a weight from -1 to 1, the largest of which is 1 or -1. Several tokens of
        one character are one part; what the model did not see weighs 0.
    """
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    places = [tuple(place) for place in encoded["offset_mapping"]]
    weights = weigh(model, encoded["input_ids"], lambda outputs: outputs.logits[0, label] - outputs.logits[0, other])
    return join(text, places, weights)


def explain_tags(model: Any, data: PreparedTagging, errors: Sequence[dict[str, Any]]) -> None:
    """Add to errors what in each text spoke for the tag of the word that it got most wrong, as `parts`.

    Args:
        model: The tagger, whole in this process.
        data: The rows.
        errors: From `tag_judging.judge`.
    """
    encoder = WordEncoder(
        data.tokenizer,
        data.facts["joiner"],
        data.collate.width,
        data.facts["overlap"],
        data.facts["label_subword"],
        causal=not data.facts["bidirectional"],
    )
    number = {name: i for i, name in enumerate(data.labels.names)}
    rows = {row.text: row for row in data.texts["validation"]}
    for error in errors:
        told, words = error["explained"], rows[error["text"]].target.words
        label, other = number[told["predicted"]], number[told["right"]]
        weights = attribute_tag(model, encoder, words, told["place"], label, other)
        gap = [(data.facts["joiner"], 0.0)] if data.facts["joiner"] else []
        pairs = zip(words, weights.round(3).tolist(), strict=True)
        error["parts"] = [part for pair in pairs for part in (*gap, pair)][len(gap) :]


def attribute_tag(
    model: Any, encoder: WordEncoder, words: Sequence[str], place: int, label: int, other: int
) -> np.ndarray:
    """Return what each word of a text adds to the odds of one tag of a word over another (W,).

    Args:
        model: A tagger.
        encoder: What makes its windows of words.
        words: Of the text.
        place: Number of the word whose tag is asked for.
        label: Number of the tag that words above 0 speak for.
        other: Number of the tag that words below 0 speak for.

    Returns:
        Weights from -1 to 1, the largest of which is 1 or -1; what the model does not see beside the word weighs 0.
    """
    tokens = encoder.encode([words])[0]
    found = np.zeros(len(words))
    window = next((each for each in encoder.windows(tokens)[0] if place in each.words), None)
    if window is None:  # the tokenizer makes nothing of the word
        return found
    column = window.columns[window.words.index(place)]
    by_token = weigh(model, window.ids, lambda told: told.logits[0, column, label] - told.logits[0, column, other])
    sizes = [min(len(word), encoder.room) for word in tokens]
    ends = np.cumsum(sizes)
    begin = column - (sizes[place] - 1 if encoder.last else 0)
    shift = begin - (ends[place] - sizes[place])  # from tokens of the text to columns of the window
    last = len(window.ids) - len(encoder.after)
    for word, (end, size) in enumerate(zip(ends + shift, sizes, strict=True)):
        if len(encoder.before) <= end - size and end <= last:
            found[word] = by_token[end - size : end].sum()
    return found / (np.abs(found).max(initial=0.0) or 1.0)


def weigh(model: Any, ids: Sequence[int], pick: Callable[[Any], Any]) -> np.ndarray:
    """Return embedding times gradient of each token (T,).

    Args:
        model: Left in the mode that it is in.
        ids: Tokens of a row.
        pick: Makes of the model's outputs the figure whose gradient is taken.
    """
    import torch

    row = torch.tensor([list(ids)], device=model.device)
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        inputs = model.get_input_embeddings()(row).detach().requires_grad_()
        outputs = model(inputs_embeds=inputs, attention_mask=torch.ones_like(row))
        (gradient,) = torch.autograd.grad(pick(outputs), inputs)
    model.train(was_training)
    weights: np.ndarray = (inputs.detach() * gradient).sum(-1)[0].float().cpu().numpy()
    return weights


def join(text: str, places: Sequence[tuple[int, int]], weights: np.ndarray) -> list[Part]:
    """Put weights of tokens to the parts of the text that they stand for; gaps and what comes behind weigh 0.

    Args:
        text: The text.
        places: Begin and end of each token, in order; tokens that share characters make one part.
        weights: Of each token.
    """
    scale = float(np.abs(weights).max(initial=0.0)) or 1.0
    parts: list[tuple[int, int, float]] = []
    for (begin, end), weight in zip(places, weights.tolist(), strict=True):
        if begin == end:  # special tokens stand for no text
            continue
        if parts and begin < parts[-1][1]:
            parts[-1] = (parts[-1][0], max(end, parts[-1][1]), parts[-1][2] + weight / scale)
        else:
            parts.append((begin, end, weight / scale))
    found, last = [], 0
    for begin, end, weight in [*parts, (len(text), len(text), 0.0)]:
        if last < begin:
            found.append((text[last:begin], 0.0))
        if begin < end:
            found.append((text[begin:end], round(max(-1.0, min(1.0, weight)), 3)))
        last = end
    return found
