"""The files that travel to the Hub with every checkpoint: configuration, layers, attention, blocks, model, heads."""

from .configuration_gpt import GPTConfig
from .heads_gpt import (
    GPTForMaskedLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from .modeling_gpt import GPTForCausalLM, GPTModel, GPTPreTrainedModel

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForMaskedLM",
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "GPTPreTrainedModel",
]
