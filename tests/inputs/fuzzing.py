"""How much is tried: a few examples in the gate, many in the long run; the same ones each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

# Nothing is kept between runs, so that a run depends on nothing but the code.
_SETTINGS: dict[str, Any] = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": list(HealthCheck),
}
# Marks a test whose argument `tried` decorates a property with so many examples.
amounts = pytest.mark.parametrize("tried", ["few", pytest.param("many", marks=pytest.mark.long)], indirect=True)


def trying(count: int) -> Callable[[Any], Any]:
    """Return what makes hypothesis try so many examples of a property."""
    return settings(max_examples=count, **_SETTINGS)
