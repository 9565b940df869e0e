"""What training an adapted model takes, said before it starts: parameters, memory, and for what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gpt_finetune.costs import activations_by_part, logits_at_once
from gpt_finetune.report.summary import count, size

_LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclass(frozen=True)
class Memory:
    """What training takes; memory in bytes.

    Args:
        parameters: Of base and adapters; a shared one counts once.
        trainable: Those of them that are trained.
        parts: What holds memory -> how much; activations are an estimate.
    """

    parameters: int
    trainable: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """All memory, in bytes."""
        return sum(self.parts.values())

    def rows(self) -> list[tuple[str, str, str]]:
        """Return name, value and note of each figure."""
        share = f"{self.trainable / self.parameters:.2%} of them"
        return [
            ("parameters", count(self.parameters), f"{self.parameters:,}"),
            ("trained", count(self.trainable), f"{self.trainable:,}, {share}"),
            *((name, size(held), "estimated" if name == "activations" else "") for name, held in self.parts.items()),
            ("total", size(self.total), "estimated"),
        ]

    def __str__(self) -> str:
        width = max(len(name) for name, _, _ in self.rows())
        return "\n".join(f"{name:<{width}}  {value:>9}  {note}".rstrip() for name, value, note in self.rows())


def describe(
    model: nn.Module,
    batch_size: int,
    sequence_length: int,
    optimizer_states: int = 2,
    *,
    dtype: torch.dtype = torch.float32,
    checkpointing: bool = False,
    recompute: bool = False,
) -> Memory:
    """Return what training a model takes in one process, from what of it is trained.

    Nothing is computed. Activations are counted as if every linear layer kept its input: with adapters on few of them,
    with prompts or norms, it is down to half of that. What an allocator wastes, what a kernel borrows and dropout's
    masks are not counted.

    Args:
        model: A model of ours, with adapters or without, or an encoder-decoder of two.
        batch_size: Rows of one forward pass.
        sequence_length: Tokens of a row; of an encoder-decoder, of what each half gets.
        optimizer_states: Numbers that the optimiser keeps for each trained one: 2 of AdamW, 1 of Muon, 0 of plain SGD.
        dtype: Precision of computing; where that is not float32, autocast copies each matrix that
            is not kept in it.
        checkpointing: Layers keep their input only (gradient checkpointing).
        recompute: No outputs of norms, activations and gates are kept, nor copies (`train.recompute`).
    """
    if getattr(model.config, "is_encoder_decoder", False):
        options: dict[str, Any] = {"dtype": dtype, "checkpointing": checkpointing, "recompute": recompute}
        whole = model.get_base_model() if hasattr(model, "get_base_model") else model
        halves = [whole.get_submodule(name) for name in ("encoder", "decoder")]
        found = [describe(half, batch_size, sequence_length, optimizer_states, **options) for half in halves]
        sums = {name: sum(half.parts.get(name, 0) for half in found) for half in found for name in half.parts}
        return Memory(sum(half.parameters for half in found), sum(half.trainable for half in found), sums)
    parameters = list(model.named_parameters())
    trained = {name: parameter for name, parameter in parameters if parameter.requires_grad}
    weights = sum(_bytes(parameter) for _, parameter in parameters)
    gradients = sum(_count(parameter) * parameter.element_size() for parameter in trained.values())
    width = dtype.itemsize
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m.weight.dtype != dtype]
    sizes = [m.in_features * m.out_features for m in linear] if width < 4 else []
    copies = width * (max(sizes, default=0) if recompute else sum(sizes))
    parts = {
        "weights": weights,
        "copies to compute with": copies,
        "gradients": gradients,
        "optimiser's states": optimizer_states * gradients,
        "activations": batch_size * sequence_length * _activations(model, trained, width, checkpointing, recompute),
        "logits": logits_at_once(model.config, batch_size * sequence_length, width) if _writes(model) else 0,
    }
    held = {name: number for name, number in parts.items() if number}
    total = sum(_count(parameter) for _, parameter in parameters)
    return Memory(total, sum(_count(parameter) for parameter in trained.values()), held)


def _writes(model: Any) -> bool:
    """Tell whether a model has logits over the vocabulary."""
    return model.get_output_embeddings() is not None


def _activations(model: Any, trained: dict[str, nn.Parameter], width: int, checkpointing: bool, recompute: bool) -> int:
    """Estimate the bytes that a token leaves for the backward pass: nothing below the first trained layer."""
    config = model.config
    layer, head = activations_by_part(config, width, 4, recompute)
    reached = [_LAYER.search(name) for name in trained]
    inside = [int(found[1]) for found in reached if found]
    # of what stands in no layer, embeddings and prompts come before the first, norm and output after the last
    begins = any("embed" in name or "prompt" in name for name in trained)
    first = 0 if begins else min(inside, default=config.num_hidden_layers)
    kept = config.num_hidden_layers - first
    # what a low-rank product keeps between its two matrices; DoRA keeps both results of a layer and their mix, and what
    # is scaled by trained numbers is kept before or behind them
    narrow = sum(p.shape[0] for name, p in trained.items() if ".lora_A." in name and p.ndim == 2)
    narrow += 3 * sum(p.numel() for name, p in trained.items() if "lora_magnitude_vector" in name)
    narrow += sum(p.numel() for name, p in trained.items() if ".ia3_l." in name)
    if not trained:
        return 0
    if checkpointing and kept:
        return kept * config.hidden_size * 4 + layer + head + narrow * width // kept
    return kept * layer + head + narrow * width


def _count(parameter: torch.Tensor) -> int:
    """Count a parameter's numbers, on all processes.

    bitsandbytes packs two of 4 bits into each of its bytes; DeepSpeed's ZeRO-3 leaves nothing in the parameter itself.
    """
    packed = type(parameter).__name__ == "Params4bit" and not parameter.is_floating_point()
    return getattr(parameter, "ds_numel", parameter.numel()) * (2 * parameter.element_size() if packed else 1)


def _bytes(tensor: torch.Tensor) -> int:
    """Return what a tensor holds, that of the tensors that a quantised one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()
