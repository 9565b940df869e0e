import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import docstring_parser
import pytest

import gpt_finetune
from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig
from gpt_finetune.errors import InputError


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (DataConfig(block_size=1), ["data.block_size", "1", "nothing to predict"]),
        (DataConfig(validation_fraction=1.0), ["data.validation_fraction", "1.0"]),
        (DataConfig(validation_fraction=-0.1), ["data.validation_fraction", "-0.1"]),
        (DataConfig(validation_fraction=float("nan")), ["data.validation_fraction", "nan"]),
        (DataConfig(sources=[]), ["data.sources"]),
        (DataConfig(seed=-1), ["data.seed", "-1"]),
        (DataConfig(shuffle_buffer=0), ["data.shuffle_buffer", "0"]),
        (DataConfig(validation_documents=-1), ["data.validation_documents"]),
        (DataConfig(sources=[SourceConfig(), SourceConfig(weight=0)]), ["data.sources[1].weight", "above 0"]),
        (DataConfig(sources=[SourceConfig(weight=float("nan"))]), ["data.sources[0].weight"]),
        (DataConfig(sources=[SourceConfig(weight=float("inf"))]), ["data.sources[0].weight"]),
        (DataConfig(validation=[SourceConfig(path="")]), ["data.validation[0].path"]),
        (DataConfig(sources=[SourceConfig(separator="")]), ["separator"]),
        (DataConfig(sources=[SourceConfig(encoding="utf8x")]), ["encoding", "utf8x"]),
        (DataConfig(sources=[SourceConfig(encoding="base64")]), ["encoding", "base64"]),
        (TokenizerConfig(vocab_size=257), ["tokenizer.vocab_size", "257", "258"]),
        (TokenizerConfig(vocab_size=258, extra_special_tokens=["<|user|>"]), ["tokenizer.vocab_size", "259"]),
        (TokenizerConfig(pad_token="<|endoftext|>"), ["tokenizer.pad_token", "never learns to stop"]),
        (TokenizerConfig(eos_token="x"), ["tokenizer.eos_token", "'x'"]),
        (TokenizerConfig(pad_token=""), ["tokenizer.pad_token"]),
        (TokenizerConfig(extra_special_tokens=["<|pad|>"]), ["tokenizer.pad_token", "listed once"]),
        (TokenizerConfig(min_frequency=0), ["tokenizer.min_frequency"]),
    ],
)
def test_bad_values_are_refused_by_name(config, names):
    with pytest.raises(InputError) as error:
        config.validate()
    assert all(name in str(error.value) for name in names), str(error.value)


@pytest.mark.parametrize("config", [DataConfig(), DataConfig(validation_fraction=0), TokenizerConfig(vocab_size=258)])
def test_good_values_pass(config):
    config.validate()


@pytest.mark.parametrize("config", [DataConfig, SourceConfig, TokenizerConfig])
def test_every_field_is_documented(config):
    documented = {parameter.arg_name for parameter in docstring_parser.parse(config.__doc__).params}
    assert documented == {field.name for field in fields(config)}


def test_config_needs_nothing_heavy():
    """Help and parsing must not wait for torch: the module itself imports only the standard library."""
    code = f"""
import sys, types
package = types.ModuleType("gpt_finetune")
package.__path__ = [{str(Path(gpt_finetune.__file__).parent)!r}]
sys.modules["gpt_finetune"] = package
import gpt_finetune.data.config
heavy = {{"torch", "transformers", "datasets", "pyarrow", "numpy", "tokenizers"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
