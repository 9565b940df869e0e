"""The quantizer that `from_pretrained` calls, and what a quantised model says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from gpt_finetune.errors import InputError
from gpt_finetune.quantization.config import METHOD, WeightOnlyConfig
from gpt_finetune.quantization.joint import join
from gpt_finetune.quantization.layers import QuantizedEmbedding, QuantizedLinear, matrix_of, replacement


class WeightOnlyQuantizer(HfQuantizer):
    """Replaces layers by quantised ones: after loading whole weights, or before loading quantised ones.

    Loading whole weights takes the memory of the whole model for a moment; each layer's is freed as it is replaced.
    """

    quantization_config: WeightOnlyConfig

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what the kernels cannot do.

        Raises:
            InputError: A device other than the CPU is asked for, or this torch has no such kernel.
        """
        places = device_map.values() if isinstance(device_map, dict) else [device_map] if device_map else []
        for place in places:
            if str(place) not in {"cpu", "auto"}:
                problem = "the kernels of these weights run on CPU only"
                raise InputError("device_map", device_map, problem, "Leave it out, or load without quantisation")
        self.quantization_config.check_machine()

    def update_device_map(self, device_map: Any) -> Any:
        """Keep everything on the CPU."""
        return {"": "cpu"} if device_map is not None else None

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if self.pre_quantized:
            for name, _, new in self._replacements(model):
                model.set_submodule(name, new)
            _untie(model)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        if not self.pre_quantized:
            for name, old, new in self._replacements(model):
                matrix = matrix_of(old)
                new.quantize((old.weight if matrix is None else matrix).detach())
                model.set_submodule(name, new)
            _untie(model)
        join(model)
        for module in model.modules():
            if isinstance(module, QuantizedLinear) and module.kernel is None:
                module.pack()
        return model.eval()

    def _replacements(self, model: PreTrainedModel) -> Iterator[tuple[str, nn.Module, Any]]:
        """Yield name, layer and its quantised successor, of each layer that has one."""
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            new = replacement(name, module, self.quantization_config, module is table, module is head)
            if new is not None:
                yield name, module, new

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:
        """Say that `save_pretrained` works."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Say that `generate` may compile the model: products stay calls."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Say that neither it nor adapters on it can be trained."""
        return False


def _untie(model: PreTrainedModel) -> None:
    """Let a head and an embedding that shared their weights stand apart: each holds them in its own form now."""
    kept = dict(model.named_parameters(remove_duplicate=False))
    ties = model.all_tied_weights_keys
    model.all_tied_weights_keys = {one: other for one, other in ties.items() if one in kept and other in kept}
    if not model.all_tied_weights_keys:
        model.config.tie_word_embeddings = False


@dataclass(frozen=True)
class QuantizedSummary:
    """What a quantised model holds.

    Args:
        quantized: Weights in 8 or 4 bits.
        kept: Weights of matrices in full precision: small, of an odd shape, or of layers that have no kernel.
        nbytes: Bytes of all weights together, scales included.
    """

    quantized: int
    kept: int
    nbytes: int


def summarize(model: nn.Module) -> QuantizedSummary:
    """Count what is quantised in a model and what is not."""
    quantized, size = 0, sum(parameter.nbytes for parameter in model.parameters())
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            quantized += module.in_features * module.out_features
            size += module.scale.nbytes + (module.kernel.nbytes() if module.kernel is not None else 0)
        elif isinstance(module, QuantizedEmbedding):
            quantized += module.num_embeddings * module.embedding_dim
            size += module.weight.nbytes + module.scale.nbytes
    kept = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    return QuantizedSummary(quantized, kept, size)


def register() -> None:
    """Make transformers know the method, once."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(WeightOnlyConfig)
        register_quantizer(METHOD)(WeightOnlyQuantizer)
