"""Chat templates: choosing and checking one, the tokens that it takes, and their rows in a model."""

from __future__ import annotations

import copy
import difflib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from gpt_finetune.data.tokenizer import CorpusEncoder, require_tokens
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.rendering import Renderer, special_tokens, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FIELD = "data.chat_template"
BUILT_IN = {name: Path(__file__).with_name(f"{name}.jinja") for name in ("chatml", "plain")}
CHOICES = ("auto", "tokenizer", *BUILT_IN)
# How templates spell tokens that mark turns; what a template of the user's own writes like this becomes a token.
MARKER = re.compile(r"<\|[\w.-]+\|>|<(?:start|end)_of_turn>")
# What vocabularies call a token that fills unused places. The first is ours.
PADS = ("<|pad|>", "<pad>", "[PAD]", "<PAD>", "<|finetune_right_pad_id|>")
_ASKED, _ANSWERED = {"role": "user", "content": "Ping?"}, {"role": "assistant", "content": "Pong!"}


def ready_tokenizer(tokenizer: PreTrainedTokenizerBase, choice: str) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """Return a copy of the tokenizer that can write conversations and pad them, and the tokens that it gained.

    Args:
        tokenizer: A fast tokenizer with an end token.
        choice: auto, tokenizer, chatml, plain, or the path of a Jinja file.

    Raises:
        InputError: There is no such template, it cannot be used, or the tokenizer cannot.
    """
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError("tokenizer", name, "it is a slow tokenizer", "Give a folder that holds tokenizer.json")
    if tokenizer.eos_token_id is None:
        remedy = "Set eos_token in its tokenizer_config.json"
        raise InputError("tokenizer", name, "it has no end token, so answers could not learn to stop", remedy)
    ready, size = copy.deepcopy(tokenizer), len(tokenizer)
    chosen = _choose(ready, choice)
    if chosen is not None:
        ready.chat_template = chosen
    written = _check(ready, choice)
    if chosen is not None:  # a template that came with the tokenizer was trained with the tokens as they are
        _add(ready, list(dict.fromkeys(MARKER.findall(written))))
    _give_pad(ready)
    added = [ready.convert_ids_to_tokens(i) for i in range(size, len(ready))]
    if added:
        logger.info("The tokenizer gains the tokens %s; the model needs a row for each.", ", ".join(added))
    return ready, added


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end an answer: what the template puts behind one, and the end token."""
    ids = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        rest = Renderer(tokenizer).render([_ASKED, _ANSWERED]).rpartition(_ANSWERED["content"])[2].lstrip()
        token = next((token for token in special_tokens(tokenizer) if rest.startswith(token)), tokenizer.eos_token)
        ids.insert(0, tokenizer.convert_tokens_to_ids(token))
    return list(dict.fromkeys(ids))


def grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, added: list[str]) -> list[int]:
    """Give a model the rows of tokens that its tokenizer gained, and let it stop at the end of a turn.

    A new row is the mean of the rows of what its token's name, as ordinary text, becomes: nearer to what the model
    knows than noise. Tied weights stay tied.

    Args:
        model: The model, whose embeddings grow where they are too short.
        tokenizer: From `ready_tokenizer`.
        added: From there, too.

    Returns:
        The ids of the new tokens.

    Raises:
        InputError: The tokenizer has further tokens that the model does not embed.
    """
    import torch

    # of the configuration, since an adapter's wrapper of the table does not tell its rows
    require_tokens(tokenizer, model.config.vocab_size, added)
    ids = [int(tokenizer.convert_tokens_to_ids(token)) for token in added]
    if ids and max(ids) >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    encode = CorpusEncoder.of(tokenizer)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    tables = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
    with torch.no_grad():
        for table in {id(table): table for table in tables if table is not None}.values():
            for token, row in zip(added, ids, strict=True):
                known = torch.from_numpy(encode([token])[0].astype("int64")).to(table.device)
                table[row] = table[known].mean(0)
    stop_at_turns(model, tokenizer)
    return ids


def stop_at_turns(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a model stop at the end of a turn, and pad with the tokenizer's pad token.

    Args:
        model: The model, or an adapter on it.
        tokenizer: With the chat template that the model was trained with.
    """
    ends = end_of_turn(tokenizer)
    for config in (model.config, model.generation_config):
        if config is not None:
            config.eos_token_id = ends if len(ends) > 1 else ends[0]
            config.pad_token_id = tokenizer.pad_token_id


def _choose(tokenizer: PreTrainedTokenizerBase, choice: str) -> str | None:
    """Return the template's text, or None for the tokenizer's own."""
    if choice == "auto":
        known = tokenizer.get_vocab()
        if tokenizer.chat_template:
            choice = "tokenizer"
        else:
            choice = "chatml" if all(token in known for token in ("<|im_start|>", "<|im_end|>")) else "plain"
            logger.info("The tokenizer has no chat template; conversations are written as %s.", choice)
    if choice == "tokenizer":
        if not tokenizer.chat_template:
            raise InputError(FIELD, choice, "the tokenizer has none", f"Choose {' or '.join(BUILT_IN)}")
        return None
    if choice in BUILT_IN:
        # Whoever encodes a rendered conversation adds no special tokens, so the template brings the opening one.
        opening = "{{- bos_token }}" if _adds_bos(tokenizer) else ""
        return opening + BUILT_IN[choice].read_text(encoding="utf-8")
    try:
        return Path(choice).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = difflib.get_close_matches(choice, CHOICES, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Give {', '.join(CHOICES)} or the path of a Jinja file"
        problem = f"no such template, and no file can be read there ({getattr(error, 'strerror', error)})"
        raise InputError(FIELD, choice, problem, remedy) from None


def _check(tokenizer: PreTrainedTokenizerBase, choice: str) -> str:
    """Write a short conversation, and return the text.

    Raises:
        InputError: The template cannot be parsed, leaves turns out, or does not prompt for an answer.
    """
    try:
        renderer = Renderer(tokenizer)
        asked, prompt, whole = (
            renderer.render(*arguments) for arguments in (([_ASKED],), ([_ASKED], None, True), ([_ASKED, _ANSWERED],))
        )
    except jinja2.TemplateSyntaxError as error:
        problem = f"line {error.lineno} is no Jinja ({error.message})"
        raise InputError(FIELD, choice, problem, "Mend the template, or choose another") from None
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError) as error:
        problem = f"it cannot write a question and an answer ({error})"
        raise InputError(FIELD, choice, problem, "Mend the template, or choose another") from None
    missing = [turn["role"] for turn in (_ASKED, _ANSWERED) if turn["content"] not in whole]
    if missing:
        problem = f"it leaves out what {' and '.join(missing)} said"
        raise InputError(FIELD, choice, problem, "Mend the template, or choose another")
    follows = whole.removeprefix(asked).lstrip().startswith(_ANSWERED["content"])
    if prompt == asked and not follows:
        problem = "it has no generation prompt: nothing tells the model that it is its turn"
        remedy = "End the template with {% if add_generation_prompt %} and what opens the assistant's turn"
        raise InputError(FIELD, choice, problem, remedy)
    return whole + prompt


def _add(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    missing = [token for token in tokens if token not in special_tokens(tokenizer)]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)


def _give_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a pad token that means nothing else, where it is missing or ends answers; say so.

    A model learns nothing of its own end token where that is padding, since padding is left out of the loss.
    """
    before, ends = tokenizer.pad_token, end_of_turn(tokenizer)
    if before is not None and tokenizer.pad_token_id not in ends:
        return
    known = tokenizer.get_vocab()
    names = [name for name in PADS if name in known]
    # Byte-level vocabularies know every text, so that their token for unknown ones, if they name one, is never used.
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    unknown = tokenizer.unk_token
    if unknown and model.get("unk_token") is None and tokenizer.unk_token_id not in (*ends, tokenizer.bos_token_id):
        names.append(unknown)
    free = [name for name in names if name not in template_of(tokenizer)]
    tokenizer.add_special_tokens({"pad_token": free[0] if free else PADS[0]})
    why = "had none" if before is None else f"had {before}, which also ends answers"
    logger.info("The tokenizer's pad token is now %s: it %s.", tokenizer.pad_token, why)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] and len(ids) > 1
