"""Weights in 8 or 4 bits, or laid out anew, for generation on CPU, through the quantizer interface of transformers.

`AutoModelForCausalLM.from_pretrained(path, quantization_config=WeightOnlyConfig(bits=8))` quantises while it loads.
"""

from __future__ import annotations

from typing import Any

from gpt_finetune.errors import InputError, did_you_mean

# What `--quantize` may say -> fields of WeightOnlyConfig.
QUANTIZE: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int4": {"bits": 4},
    "bf16": {"bits": 16, "head_bits": 16},
}


def quantization_config(name: str | None) -> Any:
    """Return the configuration behind a name of `QUANTIZE`, or None for None.

    Raises:
        InputError: There is no such name.
    """
    if name is None:
        return None
    if name not in QUANTIZE:
        raise InputError("quantize", name, "there is no such quantisation", did_you_mean(name, QUANTIZE))
    from gpt_finetune.quantization.config import WeightOnlyConfig  # brings transformers

    return WeightOnlyConfig(**QUANTIZE[name])
