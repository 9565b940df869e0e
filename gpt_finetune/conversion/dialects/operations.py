"""Rearrangements of weights that transformers' own operations do not cover; each knows its reverse.

Each is called with the configuration of ours that the weights are for.

Shapes: D inputs, H query heads, G key-value heads, K head size, R how many of a head's coordinates turn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers.core_model_loading import ConversionOps

# Given R, for each turning coordinate of a head of ours, which one of theirs it is.
Order = Callable[[int], torch.Tensor]


def alternating(turned: int) -> torch.Tensor:
    """Pairs (2i, 2i + 1) turn, where ours are (i, i + R/2) (GPT-J)."""
    return torch.arange(turned).view(-1, 2).T.flatten()


def swapped(turned: int) -> torch.Tensor:
    """Pairs (i + R/2, i) turn, which is to turn ours backwards (nanochat)."""
    return torch.arange(turned).roll(turned // 2)


class ReorderTurned(ConversionOps):
    """Reorder the turning coordinates of each head, for a projection to queries or keys.

    Attention compares queries with keys, so any order will do, if both have the one that the rotation expects.

    Args:
        order: Theirs.
        inverse: From ours to theirs.
    """

    def __init__(self, order: Order, inverse: bool = False) -> None:
        self.order = order
        self.inverse = inverse

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Reorder a weight (H * K, D) or a bias (H * K,), whose name stays."""
        heads = _only(input_dict).unflatten(0, (-1, config.head_dim))  # (H, K, …)
        order = self.order(_turned(config))
        turned = heads[:, order.argsort() if self.inverse else order]  # (H, R, …)
        return {target_patterns[0]: torch.cat((turned, heads[:, len(order) :]), dim=1).flatten(0, 1)}

    @property
    def reverse_op(self) -> ReorderTurned:
        """The way back."""
        return ReorderTurned(self.order, not self.inverse)


class SplitGroups(ConversionOps):
    """Take apart what stacks, for each key-value head in turn, its query heads, its key and its value.

    With as many key-value heads as query heads the three alternate (GPT-NeoX); with one they are three blocks.
    """

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Split (G * (H/G + 2) * K, …) into queries (H * K, …), keys (G * K, …) and values (G * K, …)."""
        groups = _only(input_dict).unflatten(0, (config.num_key_value_heads, -1, config.head_dim))  # (G, H/G + 2, K, …)
        parts = groups.split((groups.shape[1] - 2, 1, 1), dim=1)
        return {name: part.flatten(0, 2).contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> JoinGroups:
        """The way back."""
        return JoinGroups()


class JoinGroups(ConversionOps):
    """The reverse of `SplitGroups`."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        *,
        config: Any,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        """Stack queries (H * K, …), keys (G * K, …) and values (G * K, …) as (G * (H/G + 2) * K, …)."""
        groups = (config.num_key_value_heads, -1, config.head_dim)
        parts = [_tensor(input_dict[name]).unflatten(0, groups) for name in source_patterns]  # (G, H/G or 1, K, …)
        return {target_patterns[0]: torch.cat(parts, dim=1).flatten(0, 2)}

    @property
    def reverse_op(self) -> SplitGroups:
        """The way back."""
        return SplitGroups()


def _turned(config: Any) -> int:
    """Return R; "proportional" positions turn all coordinates, and a share of them by no angle."""
    rope = config.rope_parameters
    share = 1.0 if rope["rope_type"] == "proportional" else rope.get("partial_rotary_factor", 1.0)
    return int(config.head_dim * share)


def _only(input_dict: dict[str, Any]) -> torch.Tensor:
    (collected,) = input_dict.values()
    return _tensor(collected)


def _tensor(collected: Any) -> torch.Tensor:
    """Return the tensor of a name: loading collects lists of one."""
    return collected[0] if isinstance(collected, list) else collected
