"""Supervised examples: conversations, instructions, prompts with completions. Start at `prepare.prepare_examples`.

Only the config dataclasses are re-exported: they import in milliseconds, the rest brings torch.
"""

from gpt_finetune.supervised.config import ExamplesConfig, ExampleSourceConfig

__all__ = ["ExampleSourceConfig", "ExamplesConfig"]
