"""The files that travel to the Hub with every checkpoint: configuration, layers, model."""

from .configuration_gpt import GPTConfig
from .modeling_gpt import GPTForCausalLM, GPTModel, GPTPreTrainedModel

__all__ = ["GPTConfig", "GPTForCausalLM", "GPTModel", "GPTPreTrainedModel"]
