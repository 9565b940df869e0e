"""Adapters put on a base, combined, and written into its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gpt_finetune.adaptation.bases import check_base, read_config, weight_shapes
from gpt_finetune.adaptation.frozen import restore
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.report.heads import find_head

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

TOLERANCE = 1e-5  # of the largest logit, by which rounding the merged weights to float32 may move one
# PEFT's ways to combine adapters -> how exact they are
WAYS = {
    "cat": "exact: the rank is the sum of all ranks",
    "svd": "the nearest of the largest rank",
    "linear": "matrices are averaged by themselves; of equal rank, and the products are only near",
    "ties": "linear, where what is small or of the minority's sign is left out (arXiv:2306.01708)",
    "dare_linear": "linear, where weights are left out at random (arXiv:2311.03099)",
    "dare_ties": "both",
    "magnitude_prune": "linear, where what is small is left out",
}
PRUNING = {"ties", "dare_linear", "dare_ties", "magnitude_prune"}


def load_adapters(model: PreTrainedModel, adapters: Mapping[str, str | Path]) -> PeftModel:
    """Put adapters on a base; `set_adapter(name)` of the result chooses one, and the first is chosen.

    Embeddings grow to hold the tokens that an adapter was trained with.

    Args:
        model: The base, which is changed.
        adapters: Name -> folder.

    Raises:
        InputError: There are none, one belongs to another base, or several include one that changes the base.
    """
    from peft import PeftModel

    folders = {name: Path(folder) for name, folder in adapters.items()}
    if not folders:
        raise InputError("adapters", {}, "there are none", "Give at least one")
    for folder in folders.values():
        check_base(folder, model)
        if len(folders) > 1 and str(read_config(folder).get("init_lora_weights")).startswith("pissa"):
            problem = "it takes its start out of the base's weights, which the others need whole"
            remedy = "Save it with gpt_finetune.adaptation.saving.save_adapter, which makes it a plain LoRA"
            raise InputError("adapters", str(folder), problem, remedy)
    rows = max(map(_rows_needed, folders.values()))
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter brings the new vectors
    first, *others = folders
    adapted = PeftModel.from_pretrained(model, folders[first], adapter_name=first)
    for name in others:
        adapted.load_adapter(folders[name], adapter_name=name)
    return adapted.eval()


def combine(
    model: PeftModel, weights: Mapping[str, float], how: str = "cat", *, density: float = 0.5, name: str = "combined"
) -> PeftModel:
    """Make one adapter of several, and choose it.

    Args:
        model: What `load_adapters` returned.
        weights: Name of an adapter -> its share; shares need not add up to 1.
        how: A key of `WAYS`.
        density: Share of the weights that the ways that leave some out keep.
        name: What to call the result.

    Raises:
        InputError: There is no such way or adapter, or PEFT cannot combine these.
    """
    if how not in WAYS:
        raise InputError("how", how, "adapters are not combined in this way", did_you_mean(how, WAYS))
    if not weights:
        raise InputError("adapters", {}, "there are none", "Give at least one")
    for adapter in weights:
        if adapter not in model.peft_config:
            remedy = did_you_mean(adapter, model.peft_config)
            raise InputError("adapters", adapter, "no adapter bears this name", remedy)
        if (obstacle := _obstacle(model.peft_config[adapter])) is not None:
            remedy = "Merge it into the base by itself, or combine adapters made by lora or rslora"
            raise InputError("adapters", adapter, obstacle, remedy)
    settings = {"density": density} if how in PRUNING else {}
    try:
        model.add_weighted_adapter(
            list(weights), list(weights.values()), adapter_name=name, combination_type=how, **settings
        )
    except ValueError as error:
        raise InputError("how", how, str(error), "Use cat, which takes any ranks") from None
    model.set_adapter(name)
    return model


def merge(model: PeftModel) -> PreTrainedModel:
    """Write the chosen adapter into the weights of the base, and check that the logits stay.

    Weights are added up and compared in float64, for which there must be memory, and come out in float32. Those that
    training kept in bfloat16 are read anew first.

    Args:
        model: A model with adapters; it is used up.

    Returns:
        The base's class, with no trace of PEFT.

    Raises:
        InputError: The method cannot be merged, the base is quantised, or the logits of a probe move by more than
            `TOLERANCE`.
    """
    name = model.active_adapters[0]
    settings = model.peft_config[name]
    if settings.is_prompt_learning:
        problem = "it puts vectors in front of the input, which no weight can hold"
        remedy = "Keep the adapter beside its base, or train with lora"
        raise InputError("adapter", str(settings.peft_type.value).lower(), problem, remedy)
    if getattr(model.get_base_model(), "is_quantized", False):
        problem = "the base is quantised, and a merged weight would be rounded again"
        raise InputError("adapter", name, problem, "Load the base with quantization=none and put the adapter on that")
    from accelerate.utils import extract_model_from_parallel

    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)  # a trainer may have left autocast around it
    restore(model)
    model = model.double().eval()  # the products of a deep model differ by more than the merged weights' rounding
    experts = model.config._experts_implementation
    model.get_base_model().set_experts_implementation("eager")  # the only one that computes in float64
    probe = _probe(model)
    with torch.no_grad():
        wanted = _logits(model, probe)
        merged: Any = model.merge_and_unload(safe_merge=True)
        if getattr(merged.config, "tie_word_embeddings", False):  # an encoder-decoder's halves say it
            merged.tie_weights()
        found = _logits(merged.float().double(), probe)
    merged = merged.float()
    merged.set_experts_implementation(experts)
    error, scale = (found - wanted).abs().max().item(), wanted.abs().max().item()
    if not error <= TOLERANCE * scale:  # a NaN is no agreement either
        problem = f"merged, the logits of a probe differ by {error:.2g} where the largest is {scale:.2g}"
        raise InputError("adapter", name, problem, "Keep the adapter beside its base")
    log.info("merged: the logits of a probe differ by %.1e where the largest is %.1f", error, scale)
    merged.requires_grad_(True)
    return merged


def _obstacle(settings: Any) -> str | None:
    """Say why PEFT's sums of adapters would be wrong for this one, which they do not notice."""
    if settings.peft_type.value != "LORA":
        return f"PEFT combines LoRA only, and this is {settings.peft_type.value}"
    held = {
        "use_dora": "it has magnitudes, which do not add up",
        "target_parameters": "it adapts experts, whose stacks PEFT does not combine",
        "trainable_token_indices": "it has vectors of new tokens, which PEFT would leave out",
        "modules_to_save": "it has whole layers, which PEFT would leave out",
    }
    return next((reason for field, reason in held.items() if getattr(settings, field, None)), None)


def _rows_needed(folder: Path) -> int:
    """Return how many rows of embeddings an adapter was trained with, as far as it says."""
    record = read_config(folder)
    trained = record.get("trainable_token_indices") or []
    lists = trained.values() if isinstance(trained, dict) else [trained]
    tables = [shape[0] for name, shape in weight_shapes(folder).items() if name.endswith("embed_tokens.weight")]
    return max([0, *(row + 1 for rows in lists for row in rows), *tables])


def _logits(model: Any, probe: torch.Tensor) -> torch.Tensor:
    """Return what a model says of rows of ids, or of each row as a question's choices; starts and ends side by side.

    An encoder-decoder writes what it reads.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = find_head(type(base).__name__)
    written = {"decoder_input_ids": probe} if model.config.is_encoder_decoder else {}
    outputs = model(input_ids=probe[None] if head and head.task == "multiple-choice" else probe, **written)
    return torch.cat([value.flatten() for name, value in outputs.items() if name.endswith("logits")])


def _probe(model: Any) -> torch.Tensor:
    """Return ids from all over the vocabulary, (4, 32); the newest tokens are among them."""
    config = model.config
    halves = (config.encoder, config.decoder) if config.is_encoder_decoder else (config,)
    rows = min(model.get_input_embeddings().weight.shape[0], *(half.vocab_size for half in halves))
    length = min(32, *(half.max_position_embeddings for half in halves))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(rows, (4, length), generator=generator)
    newest = torch.arange(max(0, rows - length), rows)
    ids[0, : len(newest)] = newest
    return ids.to(next(model.parameters()).device)
