"""From a configuration section to a model: a preset with overrides, or a checkpoint to go on from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError
from gpt_finetune.presets import preset

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gpt_finetune.model import GPTConfig


@dataclass
class ModelConfig:
    """Which model.

    Args:
        preset: Named architecture to train from scratch; see gpt_finetune/presets.py.
        overrides: Fields of GPTConfig that replace the preset's, e.g. `model.overrides.hidden_size=512`.
        from_pretrained: Folder or Hub id of a checkpoint to go on from, instead of a preset: one of ours, or of a
            dialect that gpt_finetune/conversion reads.
        attn_implementation: Attention backend: eager, sdpa, flex_attention, flash_attention_2; null lets
            transformers choose.
    """

    preset: str = "quickstart"
    overrides: dict[str, Any] = field(default_factory=dict)
    from_pretrained: str | None = None
    attn_implementation: str | None = None


def architecture(config: ModelConfig, block_size: int, vocab_size: int, **special_ids: int | None) -> GPTConfig:
    """Resolve the architecture and check that data and tokenizer fit it; costs no compute.

    Args:
        config: The model section.
        block_size: Tokens a row of the data.
        vocab_size: Tokens that the tokenizer has, or will have; the model's vocabulary unless that is overridden.
        **special_ids: The tokenizer's bos_token_id, eos_token_id and pad_token_id: a preset's own would point at
            other tokens.

    Raises:
        InputError: A field is unknown or contradicts another, the block is longer than the model's positions, or the
            vocabulary is smaller than the tokenizer's.
    """
    if config.from_pretrained and config.overrides:
        remedy = "Leave them out, or train from a preset"
        raise InputError("model.overrides", config.overrides, "a checkpoint's architecture is what it is", remedy)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    fields = {"vocab_size": vocab_size, **ids, **special_ids, **config.overrides}
    if config.from_pretrained:
        resolved = read_architecture(config.from_pretrained)
    else:
        resolved = from_preset(
            config.preset, fields, ("model.preset", config.preset), ("model", config.overrides or config.preset)
        )

    require_positions(resolved, "data.block_size", block_size)
    if resolved.vocab_size < vocab_size:
        field_name = "model.from_pretrained" if config.from_pretrained else "model.overrides.vocab_size"
        remedy = (
            "Use the tokenizer saved with the checkpoint" if config.from_pretrained else "Leave it out, or raise it"
        )
        problem = f"the model has {resolved.vocab_size} tokens, the tokenizer {vocab_size}"
        raise InputError(field_name, config.from_pretrained or resolved.vocab_size, problem, remedy)
    return resolved


def from_preset(name: str, fields: dict[str, Any], named: tuple[str, str], mended: tuple[str, Any]) -> GPTConfig:
    """Resolve a preset with fields of its own.

    Args:
        name: Of the preset.
        fields: That replace the preset's.
        named: Key and value by which the user names it.
        mended: Key and value that are to be mended where the fields contradict each other.

    Raises:
        InputError: There is no such preset, a field is unknown or contradicts another.
    """
    try:
        return preset(name, **fields)
    except InputError as error:
        if error.field != "preset":
            raise
        raise InputError(*named, error.problem, error.remedy) from None
    except Exception as error:  # @strict wraps what it finds in errors of its own
        remedy = "Mend the overrides or choose another preset"
        raise InputError(*mended, str(error.__cause__ or error), remedy) from None


def read_architecture(path: str) -> GPTConfig:
    """Read the architecture of a checkpoint, without its weights.

    Raises:
        InputError: There is no checkpoint that we can read.
    """
    from gpt_finetune import GPTConfig

    try:
        return GPTConfig.from_pretrained(path)
    except Exception as error:  # transformers raises many unrelated classes for a config.json that is none
        problem = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise InputError("model.from_pretrained", path, problem, "Give a checkpoint folder or a Hub id") from None


def require_positions(architecture: GPTConfig, field: str, length: int) -> None:
    """Refuse rows that are longer than a model's positions.

    Args:
        architecture: The model's configuration.
        field: The key that says how long rows are, as the user writes it.
        length: Tokens a row.

    Raises:
        InputError: They are.
    """
    positions = architecture.max_position_embeddings
    if length > positions:
        remedy = f"Lower it to {positions}, or take a model with more"
        raise InputError(field, length, f"the model has only {positions} positions", remedy)


def build_model(config: ModelConfig, block_size: int, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Build the model with new weights, or load the checkpoint that `from_pretrained` names.

    The tokenizer learns the model's length on the way, so that it warns where the model would fail.

    Raises:
        InputError: See `architecture`.
    """
    from gpt_finetune import GPTForCausalLM

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    resolved = architecture(config, block_size, len(tokenizer), **ids)
    tokenizer.model_max_length = resolved.max_position_embeddings
    backend = {"attn_implementation": config.attn_implementation}
    if config.from_pretrained:
        return GPTForCausalLM.from_pretrained(config.from_pretrained, dtype="float32", **backend)
    return GPTForCausalLM._from_config(resolved, **backend)
