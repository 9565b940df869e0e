"""Which token of a source a token of its target translates, by counting; and a decoder that is told so as it learns.

From a few thousand pairs, an encoder-decoder takes most of its steps to find out where to look. One head of its
cross-attention is given what counting knows (Chen et al. 2016, arXiv:1607.01628; Garg et al. 2019, arXiv:1909.02074).

Shapes: B batch, T tokens of a target, S tokens of a source, H heads, K head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpt_finetune.data.packing import IGNORED
from gpt_finetune.model.attention_gpt import GPTCrossAttention
from gpt_finetune.tasks.generation_baselines import count_links
from gpt_finetune.training.pairs import PairLoss

if TYPE_CHECKING:
    from gpt_finetune.tasks.seq2seq import PreparedPairs
    from gpt_finetune.tasks.seq2seq_config import AlignConfig

log = logging.getLogger(__name__)

ROUNDS = 6
TENSION = 4.0  # how much likelier a token is to translate what stands at its own place
MOST_LINKS = 24_000_000  # possible links to count, of 40 bytes each; pairs beyond are left out of the count
_LEAST = 1e-9  # a probability below which nothing is said of a token


class Alignment:
    """How likely each source token is what a target token translates.

    Args:
        keys: The links known of, in order: source token x `size` + target token.
        odds: Of each, the probability of the target token given the source's.
        size: Tokens of the vocabulary.
    """

    def __init__(self, keys: np.ndarray, odds: np.ndarray, size: int) -> None:
        self.keys, self.odds, self.size = torch.from_numpy(keys), torch.from_numpy(odds).float(), size

    @classmethod
    def learn(cls, sources: Sequence[np.ndarray], targets: Sequence[np.ndarray], size: int) -> Alignment:
        """Count over pairs of token rows, as many of them as `MOST_LINKS` allows.

        Args:
            sources: Tokens of each source.
            targets: Tokens of each target.
            size: Tokens of the vocabulary.
        """
        links: list[np.ndarray] = []
        owners: list[np.ndarray] = []
        prior: list[np.ndarray] = []
        words = total = 0
        for i in np.random.default_rng(0).permutation(len(sources)):
            given, wanted = sources[i].astype(np.int64), targets[i].astype(np.int64)
            if links and total + len(given) * len(wanted) > MOST_LINKS:
                break
            total += len(given) * len(wanted)
            links.append((given * size + wanted[:, None]).ravel())
            owners.append(np.repeat(np.arange(words, words + len(wanted)), len(given)))
            there, here = (torch.arange(len(side), dtype=torch.float64) / len(side) for side in (wanted, given))
            prior.append(_nearness(there, here).flatten().numpy())
            words += len(wanted)
        log.info("Counting which token translates which: %d of %d pairs, %d rounds.", len(links), len(sources), ROUNDS)
        keys, odds = count_links(np.concatenate(links), np.concatenate(owners), size, ROUNDS, np.concatenate(prior))
        return cls(keys, odds, size)

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the share of each source token in what each target token translates, and where that is known.

        Args:
            ids: Source tokens (B, S).
            mask: Which of them are text (B, S).
            labels: Target tokens (B, T), -100 where there is none.

        Returns:
            Shares (B, T, S), which add up to 1 where anything is known, and where that is (B, T).
        """
        self.keys, self.odds = self.keys.to(ids.device), self.odds.to(ids.device)
        asked = ids[:, None, :] * self.size + labels[:, :, None].clamp_min(0)
        place = torch.searchsorted(self.keys, asked).clamp_max(len(self.keys) - 1)
        odds = torch.where(self.keys[place] == asked, self.odds[place], 0)
        ends = (labels != IGNORED).sum(1), mask.sum(1)
        there, here = (
            torch.arange(row.shape[1], device=ids.device) / end[:, None]
            for row, end in zip((labels, ids), ends, strict=True)
        )
        shares = odds * _nearness(there, here) * mask[:, None, :]
        total = shares.sum(-1, keepdim=True)
        known = (total[..., 0] > _LEAST) & (labels != IGNORED)
        return shares / total.clamp_min(_LEAST), known


def _nearness(there: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """Return how likely tokens (..., T) translate those at (..., S), from where both stand in their texts, 0 to 1."""
    return torch.exp(-TENSION * (there[..., :, None] - here[..., None, :]).abs())


class Guide:
    """Listens to an encoder-decoder as it trains, and tells how far its first head looks from where it should.

    Args:
        pair: The model, with adapters or without.
        alignment: Where to look.
        layer: Whose cross-attention, from 0.
    """

    def __init__(self, pair: Any, alignment: Alignment, layer: int) -> None:
        self.alignment = alignment
        self.heard: dict[str, torch.Tensor] = {}
        whole = pair.get_base_model() if hasattr(pair, "get_base_model") else pair
        attention = [module for module in whole.modules() if isinstance(module, GPTCrossAttention)][layer]
        self.scaling = attention.scaling
        whole.register_forward_pre_hook(self._read, with_kwargs=True)
        for name in ("q_norm", "k_norm"):
            attention.get_submodule(name).register_forward_hook(self._listener(name))

    def _read(self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if module.training:
            self.heard = {name: kwargs[name] for name in ("input_ids", "attention_mask")}

    def _listener(self, name: str) -> Any:
        def listen(module: torch.nn.Module, args: Any, heads: torch.Tensor) -> None:
            if module.training:
                self.heard[name] = heads[:, :, 0]  # of (B, T or S, H, K)

        return listen

    def loss(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of where it looked in the last forward pass, summed over target tokens.

        Args:
            labels: Of that pass (B, T).
        """
        ids, mask = self.heard["input_ids"], self.heard["attention_mask"]
        shares, known = self.alignment(ids, mask, labels.to(ids.device))
        scores = torch.matmul(self.heard["q_norm"], self.heard["k_norm"].transpose(1, 2)).float() * self.scaling
        looked = scores.masked_fill(mask[:, None, :] == 0, torch.finfo(scores.dtype).min).log_softmax(-1)
        return -(shares * looked).sum(-1)[known].sum()


class GuidedLoss(PairLoss):
    """A pair's loss and, in training, `weight` times the mean cross-entropy of where one head looks.

    Args:
        guide: Tells the latter.
        weight: Of it.
        smoothing: As `PairLoss`.
    """

    def __init__(self, guide: Guide, weight: float, smoothing: float = 0.0) -> None:
        super().__init__(smoothing)
        self.guide, self.weight = guide, weight
        self._shares = torch.zeros(2)  # of the guide, and of both, in the last loss
        self._heard = torch.zeros(2)  # the guide's losses and all of them, since they were asked for

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of logits (B, T, V) and labels (B, T), and remember what part of it is the guide's."""
        loss = super().__call__(outputs, labels, num_items_in_batch)
        if torch.is_grad_enabled():
            parts = loss.detach() * self._shares
            self._heard = self._heard.to(loss.device) + torch.where(parts.isfinite(), parts, 0)  # else it is skipped
        return loss

    def total(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return both losses summed over tokens."""
        total = super().total(outputs, labels)
        if not torch.is_grad_enabled():
            return total
        guided = self.weight * self.guide.loss(labels)
        whole = total + guided
        self._shares = (torch.stack([guided, whole]) / whole).detach()
        return whole

    def told_apart(self, logs: dict[str, float], reduce: Callable[..., torch.Tensor]) -> None:
        """Make a logged training loss that of the tokens, as evaluation has it; the guide's stands beside it.

        Args:
            logs: What Trainer logs of the steps since the last time, with their mean loss; changed.
            reduce: Sums a tensor over processes.
        """
        guided, whole = reduce(self._heard, reduction="sum").tolist()
        self._heard.zero_()
        part = logs["loss"] * guided / (whole or 1)
        logs |= {"loss": logs["loss"] - part, "align_loss": part / self.weight}


def guided_loss(config: AlignConfig, pair: Any, data: PreparedPairs, smoothing: float) -> GuidedLoss | None:
    """Return the loss that guides a pair, learned from its training pairs; None where nothing is to guide it.

    Args:
        config: The section.
        pair: The model, with adapters or without.
        data: The pairs.
        smoothing: Of the labels.
    """
    if not config.weight:
        return None
    alignment = Alignment.learn(data.train.sources, data.train.targets, len(data.tokenizer))
    layer = config.layer_of(pair.config.decoder.num_hidden_layers)
    return GuidedLoss(Guide(pair, alignment, layer), config.weight, smoothing)
