"""What makes a step cheaper and rounds a little more: a narrow residual stream, short rows by plain products."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_lean(model: nn.Module, arguments: Any) -> None:
    """Tell a model how its steps are computed.

    Args:
        model: One of ours, in whatever wrapper; others have no such switches.
        arguments: `ReliableArguments`; others ask for nothing.
    """
    narrow = getattr(arguments, "residual", "float32") == "bfloat16"
    products = getattr(arguments, "short_attention", "fused") == "products"
    for module in model.modules():
        if hasattr(type(module), "residual_dtype"):
            module.residual_dtype = torch.bfloat16 if narrow else None
        if hasattr(type(module), "by_products"):
            module.by_products = products
