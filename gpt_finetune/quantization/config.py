"""What is quantised, and how: the configuration that `from_pretrained` takes and config.json keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils.quantization_config import QuantizationConfigMixin

from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.quantization.kernels import GROUPS, KERNELS, choose

METHOD = "gpt_finetune_weight_only"


class WeightOnlyConfig(QuantizationConfigMixin):
    """Quantise the weights of linear layers and of the input embedding, which takes 8 bits unless `bits` is 16.

    Args:
        bits: 8, symmetric with one scale an output; 4, with a scale and a zero a group of inputs; or 16, bfloat16 in
            the layout that its product reads fastest.
        backend: What activations are computed in. `dot` (8 bits only) takes them in two times 8 bits, of float32 in
            three, and needs VNNI instructions; `split` (8 bits only) in three times 7 bits, anywhere; `packed` in
            bfloat16, or of 8 bits as `dot` where some rows are faster so. `auto` takes the fastest that this machine's
            torch has. An output layer of other bits than the backend has takes `auto`.
        group_size: Inputs that share a scale, for 4 bits.
        head_bits: Of the output layer, whose 4-bit form costs most of the quality: on SmolLM2-135M-Instruct perplexity
            rises by 4.0 to 4.5% with it, and by 0.3 to 0.6% with a head of 8 bits.
        skip_modules: Names of modules, or their last parts, that stay as they are.
        **unknown: Nothing; a field that does not exist is refused by name.

    Raises:
        InputError: A field is unknown or has a value that cannot be used here.
    """

    def __init__(
        self,
        bits: int = 8,
        backend: str = "auto",
        group_size: int = 32,
        head_bits: int = 8,
        skip_modules: Sequence[str] = (),
        **unknown: Any,
    ) -> None:
        if unknown.pop("quant_method", METHOD) != METHOD:
            raise InputError(
                "quantization_config.quant_method", METHOD, "it belongs to another method", f"Use {METHOD}"
            )
        self.quant_method = METHOD
        self.bits, self.backend, self.group_size = bits, backend, group_size
        self.head_bits = head_bits
        self.skip_modules = list(skip_modules)
        for name, value in unknown.items():
            known = set(vars(self)) - {"quant_method"}
            problem = "there is no such field"
            raise InputError(f"quantization_config.{name}", value, problem, did_you_mean(name, known))
        if bits not in {bits for bits, _ in KERNELS}:
            raise InputError("quantization_config.bits", bits, "there is no kernel for it", "Take 16, 8 or 4")
        backends = ["auto", *(name for width, name in KERNELS if width == bits)]
        if backend not in backends:
            problem = f"{bits} bits have no such backend"
            raise InputError("quantization_config.backend", backend, problem, did_you_mean(backend, backends))
        if head_bits not in {bits for bits, _ in KERNELS}:
            raise InputError("quantization_config.head_bits", head_bits, "there is no kernel for it", "Take 16, 8 or 4")
        if group_size not in GROUPS:
            problem = "the kernel has no such group"
            raise InputError("quantization_config.group_size", group_size, problem, f"Take one of {GROUPS}")

    def check_machine(self) -> None:
        """Refuse a backend that this machine's torch lacks.

        Raises:
            InputError: The kernel is missing.
        """
        kernels = [choose(bits, self.backend) for bits in (self.bits, self.head_bits)]
        missing = kernels[0].missing() or kernels[1].missing()
        if missing:
            remedy = "Take another backend, or leave the model as it is"
            raise InputError(
                "quantization_config.backend", self.backend, f"torch {torch.__version__} {missing}", remedy
            )
