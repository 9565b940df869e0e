from __future__ import annotations

import pytest


@pytest.fixture
def save(make_model, tmp_path):
    """Return a maker of tiny checkpoints: the folder of an architecture, always with the same weights."""

    def make(architecture: str = "llama", **overrides):
        import torch

        torch.manual_seed(0)
        folder = tmp_path / "base"
        make_model(architecture, **overrides).save_pretrained(folder)
        return folder

    return make
