"""The section of the configuration: everything that cannot work is refused by name."""

from __future__ import annotations

import peft
import pytest

from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.errors import InputError


@pytest.mark.parametrize("method", METHODS)
def test_defaults_work_with_every_method(method):
    AdaptConfig(method=method).validate()


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.peft])
def test_the_table_speaks_of_fields_that_peft_has(name):
    method = METHODS[name]
    known = set(getattr(peft, method.peft).__dataclass_fields__)
    assert set(method.sizes) | set(method.fixed) <= known
    assert set(method.sizes.values()) <= set(AdaptConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "lorra"}, r"adapt.method = 'lorra': there is no such method. Did you mean 'lora'\?"),
        ({"rank": 0}, r"adapt.rank = 0: it must be at least 1"),
        ({"top_layers": 0}, r"adapt.top_layers = 0: it must be at least 1"),
        ({"virtual_tokens": 0}, r"adapt.virtual_tokens = 0: it must be at least 1"),
        ({"alpha": 0}, r"adapt.alpha = 0: it must be above 0"),
        ({"dropout": 1.0}, r"adapt.dropout = 1.0: it is a probability below 1"),
        ({"dropout": -0.1}, r"adapt.dropout = -0.1"),
        ({"target_modules": []}, r"adapt.target_modules = \[\]: there is nothing to adapt"),
        ({"quantization": "nf"}, r"adapt.quantization = 'nf': there is no such format. Did you mean 'nf4'\?"),
        ({"method": "full", "quantization": "int8"}, r"adapt.quantization = 'int8': full changes the weights"),
        ({"method": "pissa", "quantization": "nf4"}, r"adapt.quantization = 'nf4': pissa changes the weights"),
        ({"options": {"biass": "all"}}, r"adapt.options.biass = 'all': PEFT's LoraConfig .* Did you mean 'bias'\?"),
        ({"options": {"r": 4}}, r"adapt.options.r = 4: it has a field of its own. Set adapt.rank"),
        ({"options": {"target_modules": "all-linear"}}, r"it has a field of its own. Set adapt.target_modules"),
        ({"method": "dora", "options": {"use_dora": False}}, r"dora is use_dora=True. Leave it out"),
        ({"method": "pissa", "options": {"init_lora_weights": "eva"}}, r"pissa is init_lora_weights=pissa"),
        ({"method": "norms", "options": {"bias": "all"}}, r"adapt.options .* norms does not use PEFT"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(InputError, match=message):
        AdaptConfig(**fields).validate()


def test_the_prefix_opens_the_message():
    with pytest.raises(InputError, match=r"^model.adapt.rank = 0"):
        AdaptConfig(rank=0).validate("model.adapt")
