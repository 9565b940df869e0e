"""Examples as the model gets them, coloured by what is learned."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gpt_finetune.supervised.prepare import PreparedExamples

if TYPE_CHECKING:
    from rich.console import Console

# By whether a token is learned, and whether it is a special one.
STYLES = {
    (True, False): "bold green",
    (True, True): "bold green underline",
    (False, False): "dim",
    (False, True): "dim underline",
}
OPEN, CLOSE = "⟦", "⟧"  # around what is learned, where there are no colours
BORDER = "│"


def show_examples(prepared: PreparedExamples, count: int, console: Console, tokens: bool = False) -> None:
    """Print the first training examples: what is learned in colour, the rest dim, special tokens underlined.

    Args:
        prepared: The examples.
        count: How many to print.
        console: Where to. Without colours, what is learned stands between ⟦ and ⟧.
        tokens: Show the borders between tokens.
    """
    numbers = list(dict.fromkeys(number for row in prepared.train.rows for number in row))
    for place, number in enumerate(sorted(numbers)[:count], start=1):
        example = prepared.train.example(number)
        learned = int(example.learned.sum())
        size = len(example.ids)
        head = f"example {place} of {len(numbers)}: {size} tokens, {learned} learned, {size - learned} masked"
        console.print(Text(head, "bold"), soft_wrap=True)
        console.print(colour(prepared.tokenizer, example, plain=not console.is_terminal, tokens=tokens), soft_wrap=True)
        console.print()


def colour(tokenizer: Any, example: Any, plain: bool, tokens: bool) -> Text:
    """Return an example as styled text.

    Args:
        tokenizer: Reads its ids.
        example: Ids and what is learned.
        plain: Put brackets around what is learned.
        tokens: Show the borders between tokens.
    """
    text, special = Text(), set(tokenizer.all_special_ids)
    pairs = zip(example.ids.tolist(), example.learned.tolist(), strict=True)
    for learned, group in groupby(pairs, key=lambda pair: pair[1]):
        text.append(OPEN if learned and plain else "")
        for is_special, run in groupby((token for token, _ in group), key=special.__contains__):
            ids = list(run)
            written = BORDER.join(["", *_pieces(tokenizer, ids)]) if tokens else tokenizer.decode(ids)
            text.append(written, STYLES[learned, is_special])
        text.append(CLOSE if learned and plain else "")
    return text


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return each token's text; one that holds a part of a character only, by its name in the vocabulary."""
    texts = [tokenizer.decode([token]) for token in ids]
    names = tokenizer.convert_ids_to_tokens(ids)
    return [name if "�" in text else text for text, name in zip(texts, names, strict=True)]
