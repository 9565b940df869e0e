"""A cache that grows in blocks: transformers' dynamic one copies all that it holds for each token.

Shapes: B batch, G key-value heads, T new tokens, S tokens in all, K head size.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer

_BLOCK = 128  # tokens of room, at least; a longer cache gets a quarter of what it holds


class GrowingLayer(DynamicLayer):
    """Keys and values that stand at the beginning of rooms with places for the next ones."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rooms: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values of new tokens: (B, G, T, K) -> (B, G, S, K).

        Where they are differentiated or compiled, they are copied as in transformers' own.
        """
        if key_states.requires_grad or value_states.requires_grad or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._grown(0, self.keys, key_states)
        self.values = self._grown(1, self.values, value_states)
        return self.keys, self.values

    def _grown(self, which: int, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        room, past = self.rooms[which], held.shape[-2] if held.numel() else 0
        length = past + new.shape[-2]
        # what beam search and the like have made of the cache stands elsewhere
        stays = room is not None and held.data_ptr() == room.data_ptr() and held.stride() == room.stride()
        if not stays or room is None or room.shape[0] != len(new) or room.shape[-2] < length:
            more = max(_BLOCK, length // 4)
            room = self.rooms[which] = new.new_empty((*new.shape[:2], length + more, new.shape[-1]))
            if past:
                room[:, :, :past] = held
        room[:, :, past:length] = new
        return room[:, :, :length]

    def reset(self) -> None:
        """Let go of everything."""
        super().reset()
        self.rooms = [None, None]


class GrowingCache(DynamicCache):
    """transformers' dynamic cache with layers that grow in blocks, but for sliding ones, which keep a window.

    Example:
        >>> model.generate(**inputs, past_key_values=GrowingCache(model.config))

    Args:
        config: The model's.
    """

    layers: list[Any]

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        self.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in self.layers]
