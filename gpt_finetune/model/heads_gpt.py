"""The task heads of the GPT: sequence and token classification, question answering, multiple choice.

Each is one linear layer over the last hidden states (Radford et al. 2018, "Improving Language Understanding by
Generative Pre-Training", section 3.2), named as in transformers' Llama, so that checkpoints interoperate.

Losses are the sum over items / their number, and -100 marks what is none: in every head, floats included. What an item
is, each head says; it is what transformers' Trainer counts, so accumulated batches have the loss of the big batch.

Shapes: B rows, C choices, T tokens, D hidden size, L labels (`num_labels`).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_gpt import GPTConfig
from .modeling_gpt import GPTModel, GPTPreTrainedModel

IGNORED = -100  # transformers' mark of "no label here"; its Trainer counts the others
INTEGERS = (torch.int64, torch.int32)

# -------------------------------------------------------------------------------------------------------- losses


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss of each label: (N, classes, ...), (N, ...) -> (N, ...)."""
    return nn.functional.cross_entropy(logits.float(), labels.long(), ignore_index=IGNORED, reduction="none")


# problem_type -> the losses of logits (B, L): (B,) for integers (B,), else (B, L) for numbers (B, L)
PROBLEMS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "single_label_classification": cross_entropy,
    "multi_label_classification": partial(nn.functional.binary_cross_entropy_with_logits, reduction="none"),
    "regression": partial(nn.functional.mse_loss, reduction="none"),
}


def mean_loss(losses: torch.Tensor, is_item: torch.Tensor, num_items: torch.Tensor | int | None) -> torch.Tensor:
    """Return the sum of the items' losses / their number: `num_items` of all accumulated passes, or else those here."""
    if num_items is None:
        num_items = is_item.sum()
    elif isinstance(num_items, torch.Tensor):
        num_items = num_items.to(losses.device)
    return losses.masked_fill(~is_item, 0.0).sum() / num_items


def check_labels(labels: torch.Tensor, limit: int, limit_name: str, name: str = "labels") -> None:
    """Refuse labels outside [0, limit) by name; on a GPU this would cost a synchronisation, so only on CPU."""
    if labels.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = labels[(labels != IGNORED) & ((labels < 0) | (labels > limit - 1))]
    if wrong.numel():
        raise ValueError(
            f"{name} has {wrong[0].item()}, but {limit_name} is {limit}: it runs from 0 to {limit - 1}, and {IGNORED} "
            "marks what has none; mend the labels, or build the model for as many"
        )


# ---------------------------------------------------------------------------------------------------------- heads


def real_tokens(attention_mask: Any) -> torch.Tensor | None:
    """Return which tokens, the cached ones too, are no padding, (B, past + T), if the mask is of the kind that says."""
    if not torch.is_tensor(attention_mask) or attention_mask.ndim != 2:
        return None  # a mask over pairs of tokens, or masks as `generate` builds them
    return attention_mask != 0


class GPTTaskModel(GPTPreTrainedModel):
    """What the heads share: the base model, and dropout before the head as on the residual stream (GPT-1)."""

    accepts_loss_kwargs = True  # every loss divides by num_items_in_batch

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTModel(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def encode(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the base model, uncached unless asked; positions skip padding, so neighbours' lengths do not matter."""
        real = real_tokens(attention_mask)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if position_ids is None and real is not None and given is not None:
            position_ids = (real.long().cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]  # (B, T)
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )

    def last_token(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: Any
    ) -> torch.Tensor:
        """Pick the hidden state of each row's last real token: (B, T, D) -> (B, D).

        What is padding, the mask says; without one, the pad ids at the row's end are; with neither, nothing is.
        """
        real = real_tokens(attention_mask)
        if real is None and input_ids is not None and self.config.pad_token_id is not None:
            real = input_ids != self.config.pad_token_id
        if real is None:
            return hidden_states[:, -1]
        columns = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        last = (columns * real[:, -len(columns) :].to(columns.device)).amax(-1)  # (B,)
        return hidden_states[torch.arange(len(last), device=last.device), last]


class GPTForSequenceClassification(GPTTaskModel):
    """The GPT with a label, several labels or numbers for each row (Radford et al. 2018, section 3.2).

    A decoder's token sees only what came before it, so the last one alone has seen the whole row: that is the one
    pooled (where BERT, which looks both ways, can take the first). Pass `attention_mask` with padded rows: without it
    the pad ids at a row's end count as padding, which is wrong for an end-of-text token if the two share an id.

    In a row of packed documents (`position_ids` that restart) the last document alone is classified, as the last token
    sees no other: give each document its own row.

    `config.problem_type` selects the loss; None takes regression for one label, single-label classification for
    integers, multi-label classification for floats, and keeps the choice in the config, where pipelines look it up.

    | `problem_type`                | `labels`                | loss                 | an item            |
    |-------------------------------|-------------------------|----------------------|--------------------|
    | `single_label_classification` | integers (B,)           | cross-entropy        | a row              |
    | `multi_label_classification`  | 0 and 1, (B, L)         | binary cross-entropy | a label of a row   |
    | `regression`                  | numbers (B,) or (B, L)  | squared error        | a target of a row  |
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Compute logits (B, L) and, given labels, the mean loss of the items that have one.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: See `GPTModel.forward`; with padding on any side, in any row.
            position_ids: See `GPTModel.forward`; None counts the tokens that are no padding.
            past_key_values: See `GPTModel.forward`.
            inputs_embeds: See `GPTModel.forward`.
            labels: See the table above; -100 is ignored, also among numbers.
            num_items_in_batch: Divides the summed loss instead of this batch's own number of items.
            **kwargs: As `GPTModel.forward`.

        Raises:
            ValueError: Labels have the wrong shape or type, or (on CPU) are out of range.

        Example:
            >>> from transformers import AutoModelForSequenceClassification
            >>> model = AutoModelForSequenceClassification.from_pretrained("runs/quickstart", num_labels=3)
            >>> model(**tokenizer(["good", "not so good"], padding=True, return_tensors="pt")).logits.softmax(-1)
        """
        outputs = self.encode(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        pooled = self.last_token(outputs.last_hidden_state, input_ids, attention_mask)  # (B, D)
        logits = self.score(self.dropout(pooled))  # (B, L)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            problem = self._problem_type(labels)
            labels = self._checked(labels, len(logits), problem)  # (B,) or (B, L)
            losses = PROBLEMS[problem](logits.float(), labels)
            loss = mean_loss(losses, labels != IGNORED, num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _problem_type(self, labels: torch.Tensor) -> str:
        """Return the configured kind of problem, or find it out from the first labels, as transformers does."""
        if self.config.problem_type is None:
            several = "single_label_classification" if labels.dtype in INTEGERS else "multi_label_classification"
            self.config.problem_type = "regression" if self.num_labels == 1 else several
        return self.config.problem_type

    def _checked(self, labels: torch.Tensor, rows: int, problem: str) -> torch.Tensor:
        """Return the labels as the loss takes them; refuse by name those that it cannot."""
        single = problem == "single_label_classification"
        shape = (rows,) if single else (rows, self.num_labels)
        if labels.numel() != math.prod(shape) or len(labels) != rows or (single and labels.dtype not in INTEGERS):
            raise ValueError(
                f"labels is {labels.dtype} of shape {tuple(labels.shape)}, but problem_type={problem!r} with "
                f"num_labels={self.num_labels} wants {'integers' if single else 'numbers'} of shape {shape}"
            )
        if problem != "regression":
            check_labels(labels, self.num_labels if single else 2, "num_labels" if single else "the number of classes")
        return labels.reshape(shape) if single else labels.reshape(shape).float()


class GPTForTokenClassification(GPTTaskModel):
    """The GPT with a label for each token: an item is a token with one.

    A token has seen only what came before it, so label the last piece of a word, which has seen the whole of it.
    Packed rows work: tokens see no other document.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Compute logits (B, T, L) and, given labels, the mean loss of the tokens that have one.

        `labels` (B, T) stand beside their tokens, not shifted; -100 is ignored; one out of range is a ValueError (on
        CPU). The other arguments are those of `GPTForSequenceClassification.forward`.
        """
        outputs = self.encode(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        logits = self.score(self.dropout(outputs.last_hidden_state))  # (B, T, L)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            check_labels(labels, self.num_labels, "num_labels")
            losses = cross_entropy(logits.transpose(1, 2), labels)  # (B, L, T), (B, T) -> (B, T)
            loss = mean_loss(losses, labels != IGNORED, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class GPTForQuestionAnswering(GPTTaskModel):
    """The GPT that marks where in the row an answer starts and ends: an item is a row with an answer.

    A token has seen only what came before it, so put the question first. Padding is out of the softmax (its logits are
    the lowest number), so that a row's loss does not depend on the longest row of its batch; transformers' own heads
    leave it in. In packed rows the two softmaxes are over the whole row, and positions are columns of it.

    transformers' Trainer counts `labels` only, and there are none: it averages the accumulated passes' losses. That is
    exact when each has as many rows with an answer; a trainer that passes `num_items_in_batch` is exact always.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Compute start and end logits, (B, T) each, and, given positions, the mean of the two cross-entropies.

        `start_positions` and `end_positions` (B,) are the columns, padding counted, of the answer's first and last
        token; -100 ignores the row; one outside the row is a ValueError (on CPU). The other arguments are those of
        `GPTForSequenceClassification.forward`.
        """
        outputs = self.encode(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, **kwargs)
        logits = self.qa_outputs(self.dropout(outputs.last_hidden_state))  # (B, T, 2)
        real = real_tokens(attention_mask)
        if real is not None:
            padding = ~real[:, -logits.shape[1] :, None].to(logits.device)  # (B, T, 1)
            logits = logits.masked_fill(padding, torch.finfo(logits.dtype).min)
        loss = None
        if start_positions is not None and end_positions is not None:
            ends = torch.stack((start_positions.flatten(), end_positions.flatten()), dim=-1).to(logits.device)  # (B, 2)
            check_labels(ends, logits.shape[1], "the number of tokens", "start_positions or end_positions")
            losses = cross_entropy(logits, ends)  # tokens are the classes: (B, T, 2), (B, 2) -> (B, 2)
            loss = mean_loss(losses.mean(-1), (ends != IGNORED).all(-1), num_items_in_batch)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=logits[..., 0].contiguous(),
            end_logits=logits[..., 1].contiguous(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class GPTForMultipleChoice(GPTTaskModel):
    """The GPT that scores each choice as a row of its own (Radford et al. 2018, section 3.3): an item is a question.

    A row is context, question and one answer, scored at its last real token (why: `GPTForSequenceClassification`); a
    softmax makes the choices compete. One without any token (`attention_mask` all 0) fills up, and is never chosen.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Compute logits over the choices, (B, C), and, given labels, the mean loss of the questions that have one.

        Args:
            input_ids: Token ids, (B, C, T).
            attention_mask: 1 for tokens and 0 for padding, (B, C, T).
            position_ids: Position of each token, (B, C, T); None counts the tokens that are no padding.
            inputs_embeds: Embeddings (B, C, T, D) instead of ids.
            labels: The right choice, (B,); -100 is ignored.
            num_items_in_batch: Divides the summed loss instead of this batch's own number of labels.
            **kwargs: As `GPTModel.forward`; recorded hidden states and attentions have B * C rows.

        Raises:
            ValueError: There is no dimension of choices, or a label is out of range (on CPU).
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        shape = () if given is None else tuple(given.shape)
        if len(shape) != (3 if inputs_embeds is None else 4):
            raise ValueError(f"input_ids has shape {shape}: pass one row of tokens a choice, (B, C, T)")
        inputs = (input_ids, attention_mask, position_ids, inputs_embeds)
        ids, mask, places, embeds = (None if x is None else x.flatten(0, 1) for x in inputs)  # (B * C, T, ...)
        outputs = self.encode(ids, mask, places, inputs_embeds=embeds, **kwargs)
        pooled = self.last_token(outputs.last_hidden_state, ids, mask)  # (B * C, D)
        logits = self.score(self.dropout(pooled)).view(shape[:2])  # (B, C)
        if attention_mask is not None:
            logits = logits.masked_fill((attention_mask == 0).all(-1), torch.finfo(logits.dtype).min)
        loss = None
        if labels is not None:
            labels = labels.to(logits.device).flatten()  # (B,)
            check_labels(labels, logits.shape[1], "the number of choices")
            loss = mean_loss(cross_entropy(logits, labels), labels != IGNORED, num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


GPTForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
GPTForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")
GPTForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
GPTForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")

__all__ = [
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
]
