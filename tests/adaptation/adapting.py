"""What the tests of adaptation share: one batch, a few steps of training, the methods."""

from __future__ import annotations

from typing import Any

import torch

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.methods import adapt

IDS = torch.arange(2, 26).view(2, 12)
PEFT_METHODS = [name for name, method in METHODS.items() if method.peft]
MERGING = [name for name, method in METHODS.items() if method.merges]
LEARNS_TOKENS = [name for name in MERGING if METHODS[name].learns_tokens]


def adapted(model: Any, method: str = "lora", **fields: Any) -> Any:
    """Adapt a tiny model at a rank that its narrowest layer allows."""
    rows, bf16 = fields.pop("new_rows", []), fields.pop("bf16", None)
    config = AdaptConfig(**{"method": method, "rank": 4, "virtual_tokens": 3, **fields})
    return adapt(model, config, new_rows=rows, example_batches=[{"input_ids": IDS, "labels": IDS}], bf16=bf16)


def fit(model: Any, ids: torch.Tensor = IDS, steps: int = 6, bf16: bool = False) -> list[float]:
    """Fit one batch; returns the losses and leaves the model in evaluation mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
