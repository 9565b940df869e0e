"""Adapters on disk: PiSSA's as plain LoRA, and no table of embeddings that the base has already."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

STARTS = "adapter_start"  # attribute of the adapted model that holds the matrices PiSSA started from
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def remember_start(adapted: Any) -> None:
    """Keep the matrices that PiSSA starts from: what they make up was taken out of the base."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    kept = {name: value.detach().cpu().clone() for name, value in state.items() if ".lora_" in name}
    setattr(adapted, STARTS, kept)


def save_adapter(adapted: Any, folder: str | Path) -> None:
    """Write an adapter so that it loads on the base that it was made for, as any LoRA does.

    PiSSA trains B A on W - B0 A0, where W is the base's weight. On W itself that is B A - B0 A0, a LoRA of twice the
    rank: [B, -B0] [A; A0] (arXiv:2404.02948 section 3).

    Args:
        adapted: What `adapt` returned, trained; not merged.
        folder: Where to; what it holds of an adapter is replaced.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    start: dict[str, torch.Tensor] | None = getattr(adapted, STARTS, None)
    if start is None:
        return
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    weights = {name: value.detach().cpu().clone() for name, value in state.items()}  # tied ones apart, for safetensors
    for name, value in start.items():
        sign, dim = (1, 0) if "lora_A" in name else (-1, 1)
        weights[name] = torch.cat((weights[name], sign * value), dim=dim)
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS, {"format": "pt"})
    record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps(_doubled(record), indent=2), encoding="utf-8")


def _doubled(record: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a LoRA of twice the rank and the same scale."""
    record = copy.deepcopy(record) | {"init_lora_weights": True, "r": 2 * record["r"]}
    # scale is alpha / rank, or alpha / sqrt(rank)
    factor = 2**0.5 if record.get("use_rslora") else 2
    record["lora_alpha"] = factor * record["lora_alpha"]
    record["rank_pattern"] = {name: 2 * rank for name, rank in (record.get("rank_pattern") or {}).items()}
    record["alpha_pattern"] = {name: factor * a for name, a in (record.get("alpha_pattern") or {}).items()}
    return record
