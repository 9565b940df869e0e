"""Show examples as the model will get them, coloured by what is learned, before any training.

    gpt-finetune preview --tokenizer smollm2-135m-instruct \
        --data.sources '[{path: package:chatterbot-corpus/chinese.jsonl}]' --tokens

Expected: three examples, the assistant's turns in colour with the token that ends them, the rest dim; above them where
every example and token went.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.config import ExamplesConfig

if TYPE_CHECKING:
    from gpt_finetune.supervised.prepare import PreparedExamples


@dataclass
class PreviewConfig:
    """Show examples as the model will get them.

    Args:
        tokenizer: Folder or Hub id of a model or its tokenizer, or the name of one that arrives as a package.
        data: The examples.
        count: How many to show.
        tokens: Show the borders between tokens.
    """

    tokenizer: str = "smollm2-135m-instruct"
    data: ExamplesConfig = field(default_factory=ExamplesConfig)
    count: int = 3
    tokens: bool = False


def check(config: PreviewConfig) -> None:
    """Refuse what cannot work before anything is read."""
    config.data.validate()
    if config.count < 1:
        raise InputError("count", config.count, "there is nothing to show", "Give 1 or more")


def main(config: PreviewConfig) -> PreparedExamples:
    """Run the recipe; returns the examples."""
    check(config)
    from rich.console import Console

    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.supervised.prepare import prepare_examples
    from gpt_finetune.supervised.preview import show_examples

    prepared = prepare_examples(config.data, load_tokenizer(locate(config.tokenizer)))
    show_examples(prepared, config.count, Console(highlight=False), config.tokens)
    return prepared


if __name__ == "__main__":
    run(main, PreviewConfig)
