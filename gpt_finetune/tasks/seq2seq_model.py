"""An encoder-decoder of two GPTs: from scratch, both from a checkpoint, or a finished one to go on from.

The encoder sees both ways (`is_causal=False`), the decoder attends to its states (Vaswani et al. 2017,
arXiv:1706.03762). transformers' `EncoderDecoderModel` holds them. Each half has embeddings of its own, for that class
cannot save shared ones; the decoder's input and output embeddings are shared as its configuration says. And what a
finished one writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpt_finetune.adaptation.bases import is_encoder_decoder
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.build import ModelConfig, architecture, read_architecture, require_positions
from gpt_finetune.data.tokenizer import require_tokens
from gpt_finetune.errors import InputError
from gpt_finetune.generation import Answer
from gpt_finetune.packaged import locate

if TYPE_CHECKING:
    from transformers import EncoderDecoderModel, PreTrainedTokenizerBase

    from gpt_finetune.model import GPTConfig

# What makes an encoder and a decoder of one architecture.
ENCODER, DECODER = {"is_causal": False}, {"add_cross_attention": True}


def check_model(
    config: ModelConfig, lengths: tuple[int, int], vocab_size: int = 1, **ids: int | None
) -> list[GPTConfig]:
    """Resolve the architectures of both halves, before any compute.

    Args:
        config: The model section.
        lengths: Tokens of a source, and of a target, at most.
        vocab_size: Tokens that the tokenizer has.
        **ids: The tokenizer's special tokens, see `build.architecture`.

    Returns:
        The encoder's and the decoder's.

    Raises:
        InputError: An architecture contradicts itself, or a text may be longer than its positions.
    """
    path = config.from_pretrained
    if path and config.overrides:
        remedy = "Leave them out, or train from a preset"
        raise InputError("model.overrides", config.overrides, "a checkpoint's architecture is what it is", remedy)
    if path and is_encoder_decoder(locate(path)):
        halves = _halves_of(path)
    elif path:
        halves = [_half_of(path, half) for half in (ENCODER, DECODER)]
    else:
        made = [replace(config, overrides={**config.overrides, **half}) for half in (ENCODER, DECODER)]
        halves = [architecture(half, 1, vocab_size, **ids) for half in made]
    for half, key, length in zip(halves, ("source", "target"), lengths, strict=True):
        require_positions(half, f"data.max_{key}_length", length)
    return halves


def check_adapt(adapt: AdaptConfig, config: ModelConfig) -> None:
    """Refuse to train less than all of what has not learned all yet, before any compute.

    Args:
        adapt: The section.
        config: The model section.

    Raises:
        InputError: The method does not work on an encoder-decoder, or the base is none that is finished.
    """
    adapt.validate()
    if adapt.quantization != "none":
        remedy = "Leave it out"
        raise InputError("adapt.quantization", adapt.quantization, "an encoder-decoder is not quantised here", remedy)
    if adapt.method == "full":
        return
    if not METHODS[adapt.method].pairs:
        able = ", ".join(name for name, method in METHODS.items() if method.pairs)
        problem = "it does not work on an encoder-decoder, whose halves read different texts"
        raise InputError("adapt.method", adapt.method, problem, f"Use one of {able}")
    path = config.from_pretrained
    if not path or not is_encoder_decoder(locate(path)):
        problem = "the cross-attention is new and would not be trained" if path else "a new model has learned nothing"
        remedy = "Set adapt.method=full, or give model.from_pretrained a finished encoder-decoder"
        raise InputError("adapt.method", adapt.method, problem, remedy)


def _halves_of(path: str) -> list[GPTConfig]:
    """Return the configurations of a finished encoder-decoder's halves.

    Raises:
        InputError: It cannot be read, or its halves are no models of ours.
    """
    from transformers import EncoderDecoderConfig

    from gpt_finetune import GPTConfig

    try:
        found = EncoderDecoderConfig.from_pretrained(locate(path))
        halves = [found.encoder, found.decoder]
    except Exception as error:  # transformers raises many unrelated classes for a config.json that is none
        problem = (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
        raise InputError("model.from_pretrained", path, problem, "Give the folder as a run left it") from None
    if other := next((half.model_type for half in halves if not isinstance(half, GPTConfig)), None):
        problem = f"a half of it is of type {other}"
        raise InputError("model.from_pretrained", path, problem, "Give one that recipes/seq2seq.py has trained")
    return halves


def _half_of(path: str, half: dict[str, bool]) -> GPTConfig:
    """Return a checkpoint's configuration as a half needs it.

    Raises:
        InputError: Such an architecture cannot be that half.
    """
    found = read_architecture(locate(path))
    for name, value in half.items():
        setattr(found, name, value)
    try:
        found.validate()
    except Exception as error:  # @strict wraps what it finds in errors of its own
        cause = error.__cause__ or error
        raise InputError("model.from_pretrained", path, str(cause), "Take another checkpoint") from None
    return found


def build_pair(
    config: ModelConfig, lengths: tuple[int, int], tokenizer: PreTrainedTokenizerBase, start_id: int
) -> EncoderDecoderModel:
    """Build the pair with new weights, or of a checkpoint's, whose cross-attention is then new; or load a finished one.

    Args:
        config: The model section.
        lengths: Tokens of a source, and of a target, at most.
        tokenizer: Of both halves.
        start_id: The decoder's first token.

    Raises:
        InputError: See `check_model`.
    """
    import transformers

    from gpt_finetune import GPTForCausalLM, GPTModel

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    halves = check_model(config, lengths, len(tokenizer), **ids)
    if config.from_pretrained and is_encoder_decoder(locate(config.from_pretrained)):
        return _finished(config, halves, lengths, tokenizer, start_id)
    made: list[Any] = []
    for kind, half in zip((GPTModel, GPTForCausalLM), halves, strict=True):
        if config.from_pretrained:
            level = transformers.logging.get_verbosity()
            transformers.logging.set_verbosity_error()  # it would report the cross-attention as missing, which we know
            where = locate(config.from_pretrained)
            options = {"dtype": "float32", "attn_implementation": config.attn_implementation}
            part = kind.from_pretrained(where, config=half, **options)
            transformers.logging.set_verbosity(level)
            if len(tokenizer) > part.config.vocab_size:
                part.resize_token_embeddings(len(tokenizer))
        else:
            part = kind._from_config(half, attn_implementation=config.attn_implementation)
        for name, value in ids.items():
            setattr(part.config, name, value)
        made.append(part)
    pair = transformers.EncoderDecoderModel(encoder=made[0], decoder=made[1])
    pair.config.decoder_start_token_id, pair.config.pad_token_id = start_id, tokenizer.pad_token_id
    pair.config.eos_token_id = tokenizer.eos_token_id
    pair.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=start_id, max_new_tokens=lengths[1], do_sample=False, **ids
    )
    tokenizer.model_max_length = lengths[0]
    return pair


def _finished(
    config: ModelConfig,
    halves: Sequence[GPTConfig],
    lengths: tuple[int, int],
    tokenizer: PreTrainedTokenizerBase,
    start_id: int,
) -> EncoderDecoderModel:
    """Load a finished pair to go on from.

    Raises:
        InputError: The tokenizer is not the one that it was trained with.
    """
    from gpt_finetune.adaptation.methods import load_base

    require_tokens(tokenizer, min(half.vocab_size for half in halves))
    pair: Any = load_base(str(config.from_pretrained), AdaptConfig(method="full"), config.attn_implementation)
    if pair.config.decoder_start_token_id != start_id:
        problem = f"its targets begin with token {start_id}, the model's with {pair.config.decoder_start_token_id}"
        remedy = "Use the tokenizer that was saved with the checkpoint"
        raise InputError("tokenizer.path", tokenizer.name_or_path, problem, remedy)
    pair.generation_config.max_new_tokens = lengths[1]
    tokenizer.model_max_length = lengths[0]
    return pair


def write(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
    num_beams: int = 1,
) -> list[Answer]:
    """Return what a pair writes of each text, in their order. Texts of similar length share a batch.

    Args:
        model: An encoder-decoder.
        tokenizer: Its tokenizer; what is beyond its `model_max_length` of a text is not read.
        texts: The sources.
        max_new_tokens: Longest target, in tokens.
        batch_size: Texts read at once.
        num_beams: How many targets to follow at a time; 1 is greedy.
    """
    import torch

    rows = tokenizer(list(texts), truncation=True, verbose=False)["input_ids"]
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
    end, written = tokenizer.eos_token_id, {}
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        batch = tokenizer.pad({"input_ids": [rows[i] for i in places]}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            output = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                do_sample=False,
                use_cache=True,
            )
        for place, ids in zip(places, output[:, 1:].tolist(), strict=True):
            size = ids.index(end) if end in ids else len(ids)
            text = tokenizer.decode(ids[:size], skip_special_tokens=True).strip()
            written[place] = Answer(text, size, end in ids)
    return [written[i] for i in range(len(rows))]
