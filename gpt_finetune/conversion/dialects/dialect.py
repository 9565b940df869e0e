"""What a dialect is, and the pieces that several share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers.core_model_loading import Chunk, Transpose, WeightConverter, WeightRenaming, WeightTransform

from gpt_finetune.conversion.dialects.operations import Order, ReorderTurned, SplitGroups
from gpt_finetune.model import GPTConfig

Reader = Callable[[Any], dict[str, Any]]  # their config -> fields of ours
Writer = Callable[[Any], dict[str, Any]]  # our config -> fields of theirs


@dataclass(frozen=True)
class Dialect:
    """One architecture of transformers in terms of ours.

    Args:
        fields: Our config field -> theirs.
        constants: Our fields that the architecture fixes.
        requires: Their fields of which GPTConfig can express one value only, with that value, or a function of their
            config that returns it.
        synonyms: Our field -> their spelling of a value -> ours; the first spelling is the one written.
        read: Each returns our fields that need more than one of theirs, from their config; replaces what `fields` gave.
        write: The way back: each returns their fields, from our config.
        prefix: What their class calls its base model; some call it as we do.
        on_disk: Their part of a weight's name in files -> theirs in memory, where transformers itself renames it on
            the way in and out.
        renames: Their part of a weight's name -> ours, whole words, applied in this order.
        blocks: A block type of ours -> renames for it alone, applied after `renames`.
        heads: A head of ours -> renames for it alone, applied last.
        transposed: Our layers whose matrix they keep as (in, out).
        fused: Their layer, (in, out) -> our layers that it stacks, of equal size.
        grouped: Their layer that stacks our queries, keys and values head by head (see `SplitGroups`).
        order: Their order of a head's turning coordinates (see `ReorderTurned`); None means ours.
        ignored: Patterns of weights, in our names but for what has none, that hold nothing learned.
    """

    fields: Mapping[str, str]
    constants: Mapping[str, Any]
    requires: Mapping[str, Any] = field(default_factory=dict)
    synonyms: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)
    read: tuple[Reader, ...] = ()
    write: tuple[Writer, ...] = ()
    prefix: str = "transformer"
    on_disk: Mapping[str, str] = field(default_factory=dict)
    renames: Mapping[str, str] = field(default_factory=dict)
    blocks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    heads: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    transposed: tuple[str, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    grouped: str | None = None
    order: Order | None = None
    ignored: tuple[str, ...] = ()

    def weights(self, model_class: type, config: GPTConfig, prefix: str | None = None) -> list[WeightTransform]:
        """Return what turns their checkpoint into ours while transformers loads it; each step can be reversed.

        Renaming comes first, so `transposed` speaks of our names and `fused` of theirs, with no rename in common.

        Args:
            model_class: The class of ours that is loaded or exported.
            config: Its configuration.
            prefix: What the class of theirs that is exported calls its base model; None means that a file is loaded,
                where a name that does not occur does no harm.
        """
        first = {self.prefix: "model", **self.on_disk} if prefix is None else {prefix: "model"}
        for_block, for_head = self.blocks.get(config.block_type, {}), self.heads.get(model_class.__name__, {})
        renames = {**first, **self.renames, **for_block, **for_head}
        return [_rename(theirs, ours) for theirs, ours in renames.items()] + self._rearrangements()

    def _rearrangements(self) -> list[WeightTransform]:
        steps: list[WeightTransform] = []
        for layer in self.transposed:
            steps.append(WeightConverter(f"{layer}.weight", f"{layer}.weight", [Transpose(0, 1)]))
        for theirs, ours in self.fused.items():
            steps.append(WeightConverter(f"{theirs}.weight", _all(ours, "weight"), [Transpose(0, 1), Chunk(0)]))
            steps.append(WeightConverter(f"{theirs}.bias", _all(ours, "bias"), [Chunk(0)]))
        for kind in ("weight", "bias"):
            query, key, value = _all(QKV, kind)
            if self.grouped is not None:
                steps.append(WeightConverter(f"{self.grouped}.{kind}", [query, key, value], [SplitGroups()]))
            if self.order is not None:
                steps.append(WeightConverter(query, query, [ReorderTurned(self.order)]))
                steps.append(WeightConverter(key, key, [ReorderTurned(self.order)]))
        return steps


def _all(layers: tuple[str, ...], kind: str) -> list[str]:
    return [f"{layer}.{kind}" for layer in layers]


def _rename(theirs: str, ours: str) -> WeightRenaming:
    return WeightRenaming(rf"(?<!\w){re.escape(theirs)}", rf"(?<!\w){re.escape(ours)}")


def same(*names: str) -> dict[str, str]:
    """Return fields that bear one name on both sides."""
    return {name: name for name in names}


# What stacked projections are taken apart into.
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
COMMON = same("vocab_size", "initializer_range", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")

# transformers' activations by the function that they compute
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
