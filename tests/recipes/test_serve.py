"""What `gpt-finetune serve` refuses before it loads a model; tests/clients/test_serving.py asks the server itself."""

from __future__ import annotations

import socket
import sys

import pytest
from support import load_recipe

from gpt_finetune import GPTForCausalLM, GPTForSequenceClassification, preset
from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.serving import write_for_server


@pytest.fixture
def serve(monkeypatch):
    """Return a caller of the recipe, as if the server's packages were there and no server could start."""
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: True)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("it went as far as the server"))
    recipe = load_recipe("serve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    return lambda *words: recipe.main(parse(recipe.ServeConfig, [f"port={free}", *words]))


@pytest.fixture
def saved(make_tokenizer, tmp_path):
    """Return a saver of a tiny model and its tokenizer, with a chat template or without."""

    def make(name="chat", head=GPTForCausalLM, template="{{ messages }}", **fields):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        head(preset("tiny", vocab_size=len(tokenizer), **fields)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def test_bad_input_is_refused_before_a_model_is_loaded(serve, saved, tmp_path, monkeypatch):
    good, quiet = saved(), saved("quiet", template=None)
    classifier = saved("classifier", GPTForSequenceClassification)
    (saved("adapter") / "adapter_config.json").write_text("{}")
    (saved("mute") / "tokenizer.json").unlink()
    monkeypatch.setattr(GPTForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it loaded the model"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, said in (
            (
                [f"model={good}", f"port={port}"],
                f"port = {port}: nothing can listen there at 127.0.0.1: Add",
            ),
            ([f"model={good}", "port=99999"], "port = 99999: nothing can listen there"),
            ([f"model={good}", "host=192.0.2.1"], "nothing can listen there at 192.0.2.1"),
            ([f"model={good}", "name=a@b"], "name = 'a@b': the server would read more than a name in it"),
            ([f"model={good}", "name=../x"], "name = '../x'"),
            ([f"model={tmp_path / 'nowhere'}", "name=x"], "nowhere"),
            ([f"model={quiet}"], "chat completions need a chat template, and its tokenizer has none"),
            ([f"model={classifier}"], "it writes no text; its class is GPTForSequenceClassification"),
            ([f"model={tmp_path / 'adapter'}"], "it is an adapter. Merge it into its base"),
            ([f"model={tmp_path / 'mute'}"], "it has no tokenizer"),
            (["modle=x"], "Did you mean 'model'"),
        ):
            with pytest.raises(InputError) as caught:
                serve(*words)
            assert said in str(caught.value)


def test_the_server_may_be_missing(serve, saved, monkeypatch):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    with pytest.raises(InputError, match=r'Run: pip install "transformers\[serving\]"'):
        serve(f"model={saved()}")


def test_what_no_architecture_can_express_goes_with_its_code_or_is_named(saved, make_tokenizer, tmp_path):
    folder = saved(block_type="post_norm", position_embedding_type="none")
    with pytest.raises(InputError, match=r"to = 'native': none can express this model.*position_embedding_type='none'"):
        write_for_server(str(folder), make_tokenizer(), tmp_path / "native", "native")
    assert write_for_server(str(folder), make_tokenizer(), tmp_path / "auto")
    assert (tmp_path / "auto" / "modeling_gpt.py").is_file()
    native = saved("plain")
    assert not write_for_server(str(native), make_tokenizer(), tmp_path / "gpt2")
    assert not list((tmp_path / "gpt2").glob("*.py"))
    assert write_for_server(str(native), make_tokenizer(), tmp_path / "ours", "ours")


def test_a_server_that_fails_ends_the_command(saved, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    recipe = load_recipe("serve")
    with pytest.raises(SystemExit, match="the server ended with code 3"):
        recipe.main(recipe.ServeConfig(model=str(saved()), port=0))
    assert not list((tmp_path / "temporary").glob("gpt_finetune-*"))
