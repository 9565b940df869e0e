"""Prompts in, continuations out: the batching, padding and lengths that `model.generate` leaves to its caller."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError
from gpt_finetune.quantization import quantization_config

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """A question with the answer that its data gives.

    Args:
        text: As the model gets it, chat template and all.
        reference: The answer, without special tokens.
        shown: As a person reads it: the last user's turn.
        columns: Of the row, those that this turn was made of, where a template made it.
    """

    text: str
    reference: str
    shown: str
    columns: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Args:
        text: Without special tokens.
        tokens: Its length, the end token not counted.
        stopped: The model ended it by an end token; otherwise the limit cut it.
    """

    text: str
    tokens: int
    stopped: bool


# Fields of a generation config that would choose something else than the likeliest token, and their silencers.
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


def load(
    path: str, *, trust_remote_code: bool = False, quantize: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id.
        trust_remote_code: Run code that comes with a model that is not one of ours.
        quantize: A name of `gpt_finetune.quantization.QUANTIZE`; the model then stays on the CPU.

    Raises:
        InputError: There is no such model or quantisation, or it has no tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more = {} if quantize is None else {"quantization_config": quantization_config(quantize)}
    try:
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=trust_remote_code, **more)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError("model", path, problem, "Give a model's folder or Hub id; `make train` makes one") from None
    quantized = getattr(model, "is_quantized", False)  # its kernels decide where it stands
    device = None if quantized or not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
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
    rows = encode(tokenizer, prompts)
    longest = max(map(len, rows))
    limit = positions(model)
    if limit is not None and longest + max_new_tokens > limit:
        prompt = prompts[[len(row) for row in rows].index(longest)]
        problem = f"its {longest} tokens and max_new_tokens={max_new_tokens} pass the model's {limit} positions"
        raise InputError("prompt", prompt, problem, f"Shorten it, or give at most {max(0, limit - longest)} new tokens")
    output = _continue(model, tokenizer, rows, max_new_tokens, options)
    return tokenizer.batch_decode(output, skip_special_tokens=True)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    batch_size: int = 16,
    stop_ids: Sequence[int] | None = None,
    **options: Any,
) -> list[Answer]:
    """Return one answer a prompt, in the order of the prompts, and how each came to its end.

    Prompts of similar length share a batch. Near the end of the model's positions an answer may be no longer than what
    is left of them, and counts as cut there. An answer does not depend on what shares its batch.

    Args:
        model: Any causal language model, with PEFT's adapters or without.
        tokenizer: The model's.
        prompts: One text a row, special tokens spelt out as a chat template leaves them; none are added.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts generated at once.
        stop_ids: Tokens that end an answer; None takes those of the model's generation config, else the tokenizer's.
        **options: Passed to `model.generate`, e.g. `**GREEDY`.

    Raises:
        InputError: A prompt leaves no position for an answer; see `fits`.
    """
    from tqdm import tqdm

    rows = encode(tokenizer, prompts)
    ends = set(end_tokens(model, tokenizer) if stop_ids is None else stop_ids)
    if ends:
        options = {**options, "eos_token_id": sorted(ends)}
    limit = positions(model)
    for row, prompt in zip(rows, prompts, strict=True):
        if limit is not None and len(row) >= limit:
            problem = f"its {len(row)} tokens leave no room in the model's {limit} positions"
            raise InputError("prompt", prompt, problem, "Shorten it")
    alike = _virtual_tokens(model) > 0  # PEFT then ignores the positions of padded rows: a batch must need no padding
    answers: dict[int, Answer] = {}
    batches = list(_batches(rows, limit, max_new_tokens, batch_size, alike))
    total = sum(len(batch) * length for batch, length in batches)
    with tqdm(total=total, desc="answering", unit=" tokens", delay=2, leave=False) as bar:

        def tick(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            bar.update(len(ids))
            return ids.new_zeros(len(ids), dtype=bool)  # ends nothing

        for batch, length in batches:
            asked = [rows[index] for index in batch]
            output = _continue(model, tokenizer, asked, length, {**options, "stopping_criteria": [tick]})
            for index, ids in zip(batch, output.tolist(), strict=True):
                end = next((place for place, token in enumerate(ids) if token in ends), None)
                text = tokenizer.decode(ids[:end], skip_special_tokens=True)
                answers[index] = Answer(text, len(ids) if end is None else end, end is not None)
            bar.update(len(batch) * (length - output.shape[1]))  # what ended early
    return [answers[index] for index in range(len(rows))]


def fits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[bool]:
    """Tell of each prompt whether it leaves the model a position for an answer."""
    limit = positions(model)
    return [limit is None or len(row) < limit for row in encode(tokenizer, prompts)]


def encode(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Return the ids of each prompt as it stands; an empty one becomes the end-of-text token."""
    return [tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id] for prompt in prompts]


def positions(model: PreTrainedModel) -> int | None:
    """Return how many positions prompt and answer may fill together; None where the model names no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    return None if limit is None else limit - _virtual_tokens(model)


def _virtual_tokens(model: PreTrainedModel) -> int:
    """Return how many learned vectors PEFT's prompt methods put before a prompt."""
    adapter = getattr(model, "active_peft_config", None)
    return adapter.num_virtual_tokens if adapter is not None and adapter.is_prompt_learning else 0


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens at which the model's generation stops."""
    ends = model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [ends]


def _batches(
    rows: list[list[int]], limit: int | None, max_new_tokens: int, batch_size: int, alike: bool
) -> Iterator[tuple[list[int], int]]:
    """Yield indices of rows of similar length, or of one, with how many tokens each of them may be continued by.

    The longest come first, so that a lack of memory shows at once.
    """
    room = [max_new_tokens if limit is None else min(max_new_tokens, limit - len(row)) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    for _, group in groupby(order, key=lambda index: (room[index], len(rows[index]) if alike else 0)):
        same = list(group)
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size], room[same[0]]


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[list[int]],
    max_new_tokens: int,
    options: dict[str, Any],
) -> Tensor:
    """Return the ids that follow each row, (B, new tokens); rows are padded on the left."""
    import torch

    longest = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=model.device)
    with torch.no_grad():
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            **{"pad_token_id": pad, "use_cache": True, **options},
        )
    return output[:, longest:]
