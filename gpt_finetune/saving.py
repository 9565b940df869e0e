"""What `save_pretrained` of our models refuses to write, for it would not load where this package is not installed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gpt_finetune.model import GPTConfig, GPTPreTrainedModel


def refuse_what_would_not_load() -> None:
    """Make `save_pretrained` of `GPTConfig` and `GPTPreTrainedModel` look first, and write nothing if it refuses.

    The classes themselves know nothing of this: they travel to the Hub without us.
    """
    GPTConfig.save_pretrained = _checked(GPTConfig.save_pretrained)  # type: ignore[method-assign]
    GPTPreTrainedModel.save_pretrained = _checked(GPTPreTrainedModel.save_pretrained)


def _checked(save: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(save)
    def save_pretrained(self: GPTConfig | GPTPreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        from gpt_finetune.hub.travel import check_class, written_class  # brings much that only saving needs

        if isinstance(self, GPTPreTrainedModel):
            self.config.refuse_unknown_fields()  # saved last, asked first
            check_class(type(self.config))
        check_class(type(self))
        with _named_as(type(self), written_class(type(self))):
            return save(self, *args, **kwargs)

    return save_pretrained


@contextmanager
def _named_as(made: type, written: type) -> Iterator[None]:
    """Let a class bear another's name for a while: transformers saves the code file that a class says it is from.

    Of a model under FSDP that would be torch's, and `auto_map` would lead there.
    """
    names = made.__name__, made.__module__
    if made is not written:
        made.__name__, made.__module__ = written.__name__, written.__module__
    try:
        yield
    finally:
        if made is not written:
            made.__name__, made.__module__ = names
