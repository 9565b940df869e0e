"""Prompts in, continuations out: the batching, padding and lengths that `model.generate` leaves to its caller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A question with the answer that its data gives.

    Args:
        text: As the model gets it, chat template and all.
        reference: The answer, without special tokens.
        shown: As a person reads it: the last user's turn.
    """

    text: str
    reference: str
    shown: str


def load(path: str, *, trust_remote_code: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id.
        trust_remote_code: Run code that comes with a model that is not one of ours.

    Raises:
        InputError: There is no such model, or it has no tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError("model", path, problem, "Give a model's folder or Hub id; `make train` makes one") from None
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return model.to(device).eval() if device is not None else model.eval(), tokenizer


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int, **options: Any
) -> list[str]:
    """Return one continuation a prompt, without the prompt and without special tokens.

    Rows are padded on the left, so that every continuation starts where its prompt ends. A prompt that leaves no room
    for `max_new_tokens` in the model's positions is an error, never cut silently.

    Args:
        model: Any causal language model.
        tokenizer: The model's.
        prompts: One text a row; an empty one starts from the end-of-text token.
        max_new_tokens: Length of an answer, in tokens.
        **options: Passed to `model.generate`.

    Raises:
        InputError: A prompt is too long for the model.
    """
    import torch

    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id] for prompt in prompts]
    longest = max(map(len, rows))
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and longest + max_new_tokens > limit:
        prompt = prompts[[len(row) for row in rows].index(longest)]
        problem = f"its {longest} tokens and max_new_tokens={max_new_tokens} pass the model's {limit} positions"
        raise InputError("prompt", prompt, problem, f"Shorten it, or give at most {max(0, limit - longest)} new tokens")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.no_grad():
        output = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            **{"pad_token_id": pad, "use_cache": True, **options},
        )
    return tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
