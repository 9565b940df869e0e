"""Foreign checkpoints, in and out: gpt2, llama, gpt_oss and what else `DIALECTS` lists."""

from gpt_finetune.conversion.configs import config_from_native, config_to_native
from gpt_finetune.conversion.dialects import DIALECTS, Dialect
from gpt_finetune.conversion.exporting import check_is_new, export_native, find_tokenizer, new_folder
from gpt_finetune.conversion.loading import read_foreign_checkpoints

__all__ = [
    "DIALECTS",
    "Dialect",
    "check_is_new",
    "config_from_native",
    "config_to_native",
    "export_native",
    "find_tokenizer",
    "new_folder",
    "read_foreign_checkpoints",
]
