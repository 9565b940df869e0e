"""The task heads of the GPT: sequence and token classification, question answering, multiple choice, masked words.

Each is one linear layer over the last hidden states (Radford et al. 2018, "Improving Language Understanding by
Generative Pre-Training", section 3.2), named as in transformers' Llama, so that checkpoints interoperate. All share one
forward pass; a head says what its logits are and, where it differs, what losses it makes of them.

Losses are the sum over items / their number, and -100 marks what is none: in every head, floats included. What an item
is, each head says; it is what transformers' Trainer counts, so accumulated batches have the loss of the big batch.

Shapes: B rows, N documents, C choices, T tokens, D hidden size, L labels (`num_labels`), V vocabulary.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    MaskedLMOutput,
    ModelOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .configuration_gpt import GPTConfig
from .dropout_gpt import GPTDropout
from .modeling_gpt import GPTModel, GPTPreTrainedModel, GPTWithLMHead

IGNORED = -100  # transformers' mark of "no label here"; its Trainer counts the others
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8)
NUMBER_LOSSES = {  # problem_type -> the loss of labels that are no classes
    "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
    "regression": nn.functional.mse_loss,
}


def check_labels(labels: torch.Tensor, limit: int, limit_name: str, name: str = "labels") -> None:
    """Refuse labels outside [0, limit) by name; on a GPU this would cost a synchronisation, so only on CPU."""
    wrong = (labels != IGNORED) & ((labels < 0) | (labels > limit - 1))
    if wrong.device.type == "cpu" and not torch.compiler.is_compiling() and wrong.any():
        raise ValueError(
            f"{name} has {labels[wrong][0].item()}, but {limit_name} is {limit}: it runs from 0 to {limit - 1}, and "
            f"{IGNORED} marks what has none; mend the labels, or build the model for as many"
        )


class Rows(NamedTuple):
    """The rows of tokens that a head was given, as `GPTModel.forward` takes them."""

    input_ids: torch.Tensor | None
    attention_mask: Any
    position_ids: torch.Tensor | None
    past_key_values: Cache | None
    inputs_embeds: torch.Tensor | None

    def tokens(self) -> torch.Tensor | None:
        """Return the ids (B, T) or their embeddings (B, T, D), whichever there are."""
        return self.input_ids if self.inputs_embeds is None else self.inputs_embeds

    def real(self) -> torch.Tensor | None:
        """Return which tokens, the cached ones too, are no padding, (B, past + T), if the mask is one that says so."""
        if not torch.is_tensor(self.attention_mask) or self.attention_mask.ndim != 2:
            return None  # a mask over pairs of tokens, or masks as `generate` builds them
        return self.attention_mask != 0

    def flat(self) -> "Rows":
        """Return choices as rows: (B, C, T, ...) -> (B * C, T, ...)."""
        return Rows(*(x.flatten(0, 1) if torch.is_tensor(x) else x for x in self))


class GPTTaskModel(GPTPreTrainedModel):
    """What all heads share: the forward pass, with hooks for logits and losses."""

    accepts_loss_kwargs = True  # every loss divides by num_items_in_batch
    output_type: type[ModelOutput]
    labels_name, limit_name = "labels", "num_labels"  # how errors call the labels, and the number of their classes

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
    ) -> ModelOutput:
        """Compute logits and, given labels, the mean loss of the items that have one; their shapes, the class says.

        The first five arguments and `kwargs` are those of `GPTModel.forward`, with padding on any side of any row, and
        without a cache unless `use_cache` asks for one. `num_items_in_batch` divides the summed loss instead of this
        batch's own number of items. Labels of a wrong shape, type or (on CPU) range are a ValueError.
        """
        rows = Rows(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        return self.run(rows, labels, num_items_in_batch, **kwargs)

    def run(self, rows: Rows, labels: torch.Tensor | None, num_items: Any, **kwargs: Any) -> ModelOutput:
        """Encode the rows, make logits of the hidden states and, given labels, a loss of the logits."""
        outputs = self.encode(rows, **kwargs)
        logits, loss = self.score_rows(outputs.last_hidden_state, rows), None
        if labels is not None:
            losses, is_item = self.losses(logits, labels.to(logits.device))
            count = is_item.sum() if num_items is None else torch.as_tensor(num_items, device=logits.device)
            loss = losses.masked_fill(~is_item, 0.0).sum() / count
        recorded = {name: value for name, value in outputs.items() if name in self.output_type.__annotations__}
        return self.output_type(loss=loss, **self.named(logits), **recorded)

    def encode(self, rows: Rows, use_cache: bool = False, **kwargs: Any) -> BaseModelOutputWithPast:
        """Run the base model, uncached unless asked; positions skip padding, so neighbours' lengths do not matter."""
        real, tokens = rows.real(), rows.tokens()
        if rows.position_ids is None and real is not None and tokens is not None:
            positions = (real.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]  # (B, T)
            rows = rows._replace(position_ids=positions)
        return self.model(**rows._asdict(), use_cache=use_cache, return_dict=True, **kwargs)

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Return the logits, classes last, of hidden states (B, T, D)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its logits are")

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each label's cross-entropy, and whether it is an item: (..., classes), (...) -> (...), (...)."""
        labels = self.shaped(labels, logits.shape[:-1], type(self).__name__)
        check_labels(labels, logits.shape[-1], self.limit_name, self.labels_name)
        scores = logits.float().movedim(-1, 1)
        losses = nn.functional.cross_entropy(scores, labels.long(), ignore_index=IGNORED, reduction="none")
        return losses, labels != IGNORED

    def shaped(self, labels: torch.Tensor, shape: torch.Size, who: str, whole: bool = True) -> torch.Tensor:
        """Return the labels in this shape; refuse by name those that do not fit, or are to be integers and are none."""
        fits = labels.shape[:1] == shape[:1] and labels.numel() == shape.numel()
        if not fits or (whole and labels.dtype not in INTEGERS):
            raise ValueError(
                f"{self.labels_name} is {labels.dtype} of shape {tuple(labels.shape)}, but {who} wants "
                f"{'integers' if whole else 'numbers'} of shape {tuple(shape)}"
            )
        return labels.reshape(shape)

    def named(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits under the names that they have in the output."""
        return {"logits": logits}


class GPTClassifier(GPTTaskModel):
    """A head with a layer of its own, behind dropout as on the residual stream (GPT-1)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTModel(config)
        self.dropout = GPTDropout(config.residual_dropout)

    def last_tokens(self, hidden_states: torch.Tensor, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row and column, (N,) each, of every document's last token that is no padding, in reading order.

        What is padding, the mask says; without one, the pad ids at the row's end are; with neither, nothing is. A row
        is one document, unless positions were given (and no cache): one then begins where they do not grow.
        """
        (B, T), pad, real = hidden_states.shape[:2], self.config.pad_token_id, rows.real()
        positions = rows.position_ids if rows.past_key_values is None else None
        columns = torch.arange(T, device=hidden_states.device)
        if real is None and positions is None and rows.input_ids is not None and pad is not None:
            real = rows.input_ids != pad
        real = (columns >= 0).expand(B, T) if real is None else real[:, -T:].to(columns.device)
        last = (columns * real).amax(-1)  # (B,)
        if positions is None:
            return torch.arange(B, device=columns.device), last
        row, column = (real | (columns == last[:, None])).nonzero(as_tuple=True)  # of a row of padding, one token
        restarts = positions.to(columns.device).expand(B, T)[row, column].diff() <= 0
        ends = nn.functional.pad(restarts | (row.diff() > 0), (0, 1), value=True)
        return row[ends], column[ends]

    def refuse_packed(self, hidden_states: torch.Tensor, rows: Rows) -> None:
        """Refuse rows of several documents by name, on CPU, as `check_labels` does."""
        if rows.position_ids is None or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return
        found, wanted = len(self.last_tokens(hidden_states, rows)[0]), len(hidden_states)
        if found > wanted:
            raise ValueError(
                f"position_ids restarts, which packs {found} documents into {wanted} rows, but {type(self).__name__} "
                "takes one a row: give each its own, padded by attention_mask"
            )


class GPTForSequenceClassification(GPTClassifier):
    """The GPT with a label, several labels or numbers for each document (Radford et al. 2018, section 3.2).

    A decoder's token sees only what came before it, so the last one alone has seen the whole document: that is the one
    pooled (where BERT, which looks both ways, can take the first). Pass `attention_mask` with padded rows: without it
    the pad ids at a row's end count as padding, which is wrong for an end-of-text token if the two share an id.

    A row is a document, or packs several, each beginning where its `position_ids` restart: logits (N, L) and labels are
    those of the documents in reading order, row by row. Given positions and no mask, nothing counts as padding; on a
    GPU they cost a synchronisation.

    `config.problem_type` selects the loss; None takes regression for one label, single-label classification for
    integers, multi-label classification for floats, and keeps the choice in the config, where pipelines look it up.

    | `problem_type`                | `labels`                | loss                 | an item                |
    |-------------------------------|-------------------------|----------------------|------------------------|
    | `single_label_classification` | integers (N,)           | cross-entropy        | a document             |
    | `multi_label_classification`  | 0 and 1, (N, L)         | binary cross-entropy | a label of a document  |
    | `regression`                  | numbers (N,) or (N, L)  | squared error        | a target of a document |

    Example:
        >>> from transformers import AutoModelForSequenceClassification
        >>> model = AutoModelForSequenceClassification.from_pretrained("runs/quickstart", num_labels=3)
        >>> model(**tokenizer(["good", "not so good"], padding=True, return_tensors="pt")).logits.softmax(-1)
    """

    output_type = SequenceClassifierOutputWithPast

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score the last token of each document: (B, T, D) -> (N, L)."""
        return self.score(self.dropout(hidden_states[self.last_tokens(hidden_states, rows)]))

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the losses of the table, and which are items; find an unknown kind of problem out as transformers."""
        if self.config.problem_type is None:
            several = "single_label_classification" if labels.dtype in INTEGERS else "multi_label_classification"
            self.config.problem_type = "regression" if self.num_labels == 1 else several
        problem = self.config.problem_type
        whole = problem not in NUMBER_LOSSES
        who = f"problem_type={problem!r} for {len(logits)} documents with num_labels={self.num_labels}"
        labels = self.shaped(labels, logits.shape[:1] if whole else logits.shape, who, whole)
        if whole:
            return super().losses(logits, labels)
        if problem == "multi_label_classification":
            check_labels(labels, 2, "the number of classes")
        return NUMBER_LOSSES[problem](logits.float(), labels.float(), reduction="none"), labels != IGNORED


class GPTForTokenClassification(GPTClassifier):
    """The GPT with a label for each token: logits (B, T, L), labels (B, T) not shifted; an item is a token with one.

    A token has seen only what came before it, so label the last piece of a word, which has seen the whole of it.
    Packed rows work: tokens see no other document.
    """

    output_type = TokenClassifierOutput

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score each token: (B, T, D) -> (B, T, L)."""
        return self.score(self.dropout(hidden_states))


class GPTForMaskedLM(GPTTaskModel, GPTWithLMHead):
    """The GPT that reads both ways and restores words (Devlin et al. 2018, arXiv:1810.04805, section 3.1, task 1).

    Logits are (B, T, V); labels (B, T) stand beside the masked tokens, not shifted; an item is a token with one. The
    head is that of `GPTForCausalLM`, whose checkpoints open here with `is_causal=False`; True is refused.
    """

    output_type, limit_name = MaskedLMOutput, "vocab_size"

    def __init__(self, config: GPTConfig) -> None:
        if config.is_causal:
            raise ValueError(
                "is_causal=True: GPTForMaskedLM restores a token from both sides, so set is_causal=False in the "
                "configuration (or pass it to from_pretrained); GPTForCausalLM reads one way"
            )
        super().__init__(config)

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score the vocabulary at each token: (B, T, D) -> (B, T, V)."""
        return self.logits(hidden_states)


class GPTForQuestionAnswering(GPTClassifier):
    """The GPT that marks where in the row an answer starts and ends: an item is a row with an answer.

    Start and end logits are (B, T) each; `start_positions` and `end_positions` (B,) are the columns, padding counted,
    of the answer's first and last token, and -100 ignores the row. A token has seen only what came before it, so put
    the question first. Padding is out of the softmax (its logits are the lowest number), so that a row's loss does not
    depend on the longest row of its batch; transformers' own heads leave it in. A row holds one document.

    transformers' Trainer counts `labels` only, and there are none: it averages the accumulated passes' losses. That is
    exact when each has as many rows with an answer; a trainer that passes `num_items_in_batch` is exact always.
    """

    output_type, limit_name = QuestionAnsweringModelOutput, "the number of tokens"
    labels_name = "start_positions or end_positions"

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
    ) -> ModelOutput:
        """Compute start and end logits and, given both positions, the mean of the two cross-entropies.

        The other arguments are those of `GPTTaskModel.forward`; several documents in a row are (on CPU) a ValueError.
        """
        rows, ends = Rows(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds), None
        if start_positions is not None and end_positions is not None:
            ends = torch.stack((start_positions.flatten(), end_positions.flatten()), dim=-1)  # (B, 2)
        return self.run(rows, ends, num_items_in_batch, **kwargs)

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score each token as start and as end, tokens being the classes: (B, T, D) -> (B, 2, T)."""
        self.refuse_packed(hidden_states, rows)
        logits = self.qa_outputs(self.dropout(hidden_states)).transpose(1, 2).contiguous()
        real = rows.real()
        if real is None:
            return logits
        padding = ~real[:, None, -logits.shape[-1] :].to(logits.device)  # (B, 1, T)
        return logits.masked_fill(padding, torch.finfo(logits.dtype).min)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of the two losses, and whether both are items: (B, 2, T), (B, 2) -> (B,), (B,)."""
        losses, is_item = super().losses(logits, labels)
        return losses.mean(-1), is_item.all(-1)

    def named(self, logits: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the logits of starts and of ends, (B, T) each."""
        start_logits, end_logits = logits.unbind(1)
        return {"start_logits": start_logits.contiguous(), "end_logits": end_logits.contiguous()}


class GPTForMultipleChoice(GPTClassifier):
    """The GPT that scores each choice as a row of its own (Radford et al. 2018, section 3.3): an item is a question.

    Inputs are (B, C, T), logits (B, C), labels (B,) the right choice; recorded hidden states and attentions have B * C
    rows. A row is context, question and one answer, in one document, scored at its last real token (why:
    `GPTForSequenceClassification`); a softmax makes the choices compete. One without any token (`attention_mask` all 0)
    fills up, and is never chosen.
    """

    output_type, limit_name = MultipleChoiceModelOutput, "the number of choices"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.post_init()

    def encode(self, rows: Rows, use_cache: bool = False, **kwargs: Any) -> BaseModelOutputWithPast:
        """Run the base model, each choice a row: hidden states are (B * C, T, D)."""
        tokens = rows.tokens()
        shape = () if tokens is None else tuple(tokens.shape)
        if len(shape) != (3 if rows.inputs_embeds is None else 4):
            raise ValueError(f"input_ids has shape {shape}: pass one row of tokens a choice, (B, C, T)")
        return super().encode(rows.flat(), use_cache, **kwargs)

    def score_rows(self, hidden_states: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Score the last token of each choice: (B * C, T, D) -> (B, C)."""
        choices, rows = rows.tokens().shape[1], rows.flat()
        self.refuse_packed(hidden_states, rows)
        last = self.last_tokens(hidden_states, rows._replace(position_ids=None))
        logits, real = self.score(self.dropout(hidden_states[last])), rows.real()  # (B * C, 1)
        if real is not None:
            empty = ~real.any(-1, keepdim=True).to(logits.device)
            logits = logits.masked_fill(empty, torch.finfo(logits.dtype).min)
        return logits.view(-1, choices)


GPTForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")
GPTForMultipleChoice.register_for_auto_class("AutoModelForMultipleChoice")
GPTForQuestionAnswering.register_for_auto_class("AutoModelForQuestionAnswering")
GPTForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
GPTForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

__all__ = [
    "GPTForMaskedLM",
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
]
