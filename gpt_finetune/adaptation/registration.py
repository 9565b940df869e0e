"""What PEFT needs to know of our models: which of their layers each of its methods adapts unless told."""

from __future__ import annotations

from peft.utils import constants

from gpt_finetune.model import GPTConfig

# PEFT looks the model type up in one table a method, and refuses a type that is not there.
TABLES = "TRANSFORMERS_MODELS_TO_"
TWIN = "llama"  # its layers bear the same names, and PEFT has chosen among them in every table


def register_with_peft() -> None:
    """Give our model type an entry wherever PEFT has one for Llama, so that a plain `LoraConfig()` is enough."""
    for name, table in vars(constants).items():
        if name.startswith(TABLES) and TWIN in table:
            table.setdefault(GPTConfig.model_type, table[TWIN])
