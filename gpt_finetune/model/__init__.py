"""The files that travel to the Hub with every checkpoint: configuration, layers, model, task heads."""

from .configuration_gpt import GPTConfig
from .heads_gpt import (
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from .modeling_gpt import GPTForCausalLM, GPTModel, GPTPreTrainedModel

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "GPTPreTrainedModel",
]
