"""The loss of encoder-decoders that transformers puts together of two models, over all tokens of an optimiser step.

`EncoderDecoderModel` and its kin average over one forward pass whatever Trainer tells them of the others, so that under
gradient accumulation, and over several processes, a token in a short pass weighs more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

IGNORED = -100
# Their forward takes `num_items_in_batch` and does not use it.
COMPOSED = ("EncoderDecoderModel", "VisionEncoderDecoderModel", "SpeechEncoderDecoderModel")


def is_pair(model: nn.Module) -> bool:
    """Tell whether a model, or what its adapters are on, is one of transformers' composed encoder-decoders."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return any(kind.__name__ in COMPOSED for kind in type(whole).__mro__)


def decoder_inputs(model: Any, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the decoder reads to predict labels: these, one place later, behind the start token.

    Args:
        model: The pair.
        labels: Token ids (B, T), -100 where there is none.

    Returns:
        `decoder_input_ids` and `decoder_attention_mask` (B, T). The mask tells places by the labels, not by the pad id,
        which may be the start token's.
    """
    start = labels.new_full((len(labels), 1), model.config.decoder_start_token_id)
    before = labels[:, :-1]
    ids = torch.cat((start, before.masked_fill(before == IGNORED, model.config.pad_token_id)), 1)
    mask = torch.cat((torch.ones_like(start), (before != IGNORED).long()), 1)
    return {"decoder_input_ids": ids, "decoder_attention_mask": mask}


class PairLoss:
    """Cross-entropy summed over tokens, divided by those of the whole optimiser step, as Trainer calls it.

    Args:
        smoothing: Share of the probability that is spread over all tokens (Szegedy et al. 2015, arXiv:1512.00567,
            section 7), in training; what is evaluated is the plain loss.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of logits (B, T, V) and labels (B, T), which are aligned."""
        count = (labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return self.total(outputs, labels) / count

    def total(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return the loss summed over tokens."""
        smoothing = self.smoothing if torch.is_grad_enabled() else 0.0
        logits = outputs["logits"].flatten(0, 1).float()
        labels = labels.to(logits.device).flatten()
        options = {"ignore_index": IGNORED, "label_smoothing": smoothing}
        return nn.functional.cross_entropy(logits, labels, reduction="sum", **options)
