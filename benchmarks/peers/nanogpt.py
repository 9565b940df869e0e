"""nanoGPT from a user's checkout: its own model, with the first weights of the others and transformers' way to call."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from peers.ways import Size

TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")  # Conv1D's layout


def is_checkout(folder: Path | None) -> bool:
    """Tell whether a folder is a checkout of nanoGPT."""
    return folder is not None and (folder / "model.py").is_file()


def load(checkout: Path) -> ModuleType:
    """Import the checkout's `model.py`."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
    assert spec is not None
    assert spec.loader is not None
    theirs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = theirs  # where dataclasses look for their own module
    spec.loader.exec_module(theirs)
    return theirs


def build(size: Size, weights: Path, checkout: Path) -> nn.Module:
    """Return its model with the weights of a saved GPT-2."""
    import transformers

    theirs = load(checkout)
    shape = {"n_layer": size.layers, "n_head": size.heads, "n_embd": size.width, "block_size": size.tokens}
    model = theirs.GPT(theirs.GPTConfig(vocab_size=size.vocabulary, dropout=0.0, bias=True, **shape))
    first = transformers.GPT2LMHeadModel.from_pretrained(weights).state_dict()
    wanted = [name for name in model.state_dict() if name in first]
    model.load_state_dict({n: first[n].t() if n.endswith(TURNED) else first[n] for n in wanted}, strict=False)
    return Called(model)


class Called(nn.Module):
    """Its model, called as transformers' are: it wants targets that are shifted already, and ignores -1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, shift_labels: torch.Tensor | None = None) -> Any:
        """Return an object with a loss."""
        targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-1) if shift_labels is None else shift_labels
        return _Output(self.model(input_ids, targets)[1])


class _Output:
    def __init__(self, loss: torch.Tensor) -> None:
        self.loss = loss
