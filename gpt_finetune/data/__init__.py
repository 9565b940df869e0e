"""The data room: sources, tokenizer, packing and the ledger. Start at `prepare.prepare`.

Only the config dataclasses are re-exported: they import in milliseconds, the rest brings torch.
"""

from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig

__all__ = ["DataConfig", "SourceConfig", "TokenizerConfig"]
