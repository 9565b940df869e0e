"""Build, train and fine-tune GPT models inside the Hugging Face ecosystem.

`import gpt_finetune` tells transformers and PEFT of our classes, as soon as transformers itself is imported.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .arrival import when_transformers_is_there

if TYPE_CHECKING:
    from .conversion import export_native
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

__version__ = "0.1.0"

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

_HOMES = {name: ".model" for name in __all__ if name.startswith("GPT")}
_HOMES |= {"export_native": ".conversion", "preset": ".presets"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    """Make our classes known: to the Auto classes, to PEFT, and to themselves what does not travel with them."""
    import transformers

    from . import model
    from .adaptation.registration import register_with_peft
    from .conversion import read_foreign_checkpoints
    from .quantization.quantizer import register as register_quantizer
    from .saving import refuse_what_would_not_load

    transformers.AutoConfig.register(model.GPTConfig.model_type, model.GPTConfig)
    transformers.AutoModel.register(model.GPTConfig, model.GPTModel)
    for name in (name for name in __all__ if name.startswith("GPTFor")):
        auto = getattr(transformers, name.replace("GPT", "AutoModel"))
        auto.register(model.GPTConfig, getattr(model, name))
    read_foreign_checkpoints()
    register_with_peft()
    register_quantizer()
    refuse_what_would_not_load()


when_transformers_is_there(_register)
