"""What the tests of checkpoints share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_saves() -> Iterator[None]:
    """Leave out the look at what travels, which has its own tests: it is most of the time of a tiny model's save."""
    from gpt_finetune.hub import travel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(travel, "check_class", lambda kind: None)
        yield
