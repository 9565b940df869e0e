"""Build, train and fine-tune GPT models inside the Hugging Face ecosystem."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .adaptation.registration import register_with_peft
from .conversion import export_native, read_foreign_checkpoints
from .model import (
    GPTConfig,
    GPTForCausalLM,
    GPTForMaskedLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)
from .presets import preset
from .saving import refuse_what_would_not_load

__version__ = "0.1.0"

AutoConfig.register(GPTConfig.model_type, GPTConfig)
AutoModel.register(GPTConfig, GPTModel)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM)
AutoModelForMaskedLM.register(GPTConfig, GPTForMaskedLM)
AutoModelForMultipleChoice.register(GPTConfig, GPTForMultipleChoice)
AutoModelForQuestionAnswering.register(GPTConfig, GPTForQuestionAnswering)
AutoModelForSequenceClassification.register(GPTConfig, GPTForSequenceClassification)
AutoModelForTokenClassification.register(GPTConfig, GPTForTokenClassification)
read_foreign_checkpoints()
register_with_peft()
refuse_what_would_not_load()

__all__ = [
    "GPTConfig",
    "GPTForCausalLM",
    "GPTForMaskedLM",
    "GPTForMultipleChoice",
    "GPTForQuestionAnswering",
    "GPTForSequenceClassification",
    "GPTForTokenClassification",
    "GPTModel",
    "export_native",
    "preset",
]
