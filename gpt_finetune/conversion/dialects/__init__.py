"""The dialects: how transformers spells each architecture that a GPT can express, as tables.

A new dialect is one entry of a family; nothing else knows its name. Whether a model can be written in a dialect is not
in the tables: it can if what is written reads back as the same `GPTConfig`.
"""

from gpt_finetune.conversion.dialects.dialect import Dialect
from gpt_finetune.conversion.dialects.gpt2 import GPT2_FAMILY
from gpt_finetune.conversion.dialects.llama import LLAMA_FAMILY

# In the order in which an export tries them.
DIALECTS: dict[str, Dialect] = {**GPT2_FAMILY, **LLAMA_FAMILY}

__all__ = ["DIALECTS", "Dialect"]
