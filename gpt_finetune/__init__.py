"""Build, train and fine-tune GPT models inside the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .model import GPTConfig, GPTForCausalLM, GPTModel
from .presets import preset

__version__ = "0.1.0"

AutoConfig.register(GPTConfig.model_type, GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)

__all__ = ["GPTConfig", "GPTForCausalLM", "GPTModel", "preset"]
