"""Which parts of a text speak for a model's label, and which for the right one: gradient times input, by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt_finetune.tasks.config import SINGLE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from gpt_finetune.tasks.classification import PreparedTask

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
    import torch

    encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    places = [tuple(place) for place in encoded["offset_mapping"]]
    ids = torch.tensor([encoded["input_ids"]], device=model.device)
    was_training = model.training
    model.eval()
    with torch.enable_grad():
        inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
        logits = model(inputs_embeds=inputs, attention_mask=torch.ones_like(ids)).logits[0]
        (gradient,) = torch.autograd.grad(logits[label] - logits[other], inputs)
    model.train(was_training)
    weights = (inputs.detach() * gradient).sum(-1)[0].float().cpu().numpy()
    return join(text, places, weights)


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
