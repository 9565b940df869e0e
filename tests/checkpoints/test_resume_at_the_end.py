"""A run that was killed between its last checkpoint and its end has nothing left to train."""

from __future__ import annotations

import pytest
from surviving import same, state_of, train


@pytest.mark.parametrize("steps", [2, 3])  # in the middle of an epoch, and at its end
def test_nothing_is_trained_after_the_last_step(tmp_path, steps):
    expected = train(tmp_path, max_steps=steps).model.state_dict()
    before = state_of(tmp_path / f"checkpoint-{steps}")
    again = train(tmp_path, max_steps=steps, resume=True)
    assert again.state.global_step == steps
    assert same(dict(again.model.state_dict()), dict(expected))
    assert same(state_of(tmp_path / f"checkpoint-{steps}"), before)
    assert not (tmp_path / f"checkpoint-{steps + 1}").exists()
