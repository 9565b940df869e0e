"""The recipe that says what an architecture costs: of presets and checkpoints, as tables and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from support import ROOT, load_recipe
from transformers import BertConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.presets import PRESETS

recipe = load_recipe("inspect_")


def inspect(*words):
    return recipe.main(parse(recipe.InspectConfig, list(words)))


def launch(*words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=120, check=False
    )


def test_a_preset_as_tables(capsys):
    inspect("model=gpt-oss-20b")
    text = capsys.readouterr().out
    assert "arXiv:2508.10925" in text
    for row in (["total", "20.9B"], ["active", "3.61B"], ["experts", "19.1B", "91.4%"], ["positions", "131,072,"]):
        assert any(line.split()[: len(row)] == row for line in text.splitlines()), row


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_a_terminal(name, capsys):
    inspect(f"model={name}")
    _, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line.strip() == "" or len(line.split("  ")[0]) > 0 for line in lines), "a row broke in two"


def test_json_holds_plain_numbers(capsys):
    inspect("model=gpt2", "context_length=512", "format=json", "overrides.num_key_value_heads=1")
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == "gpt2"
    assert told["context_length"] == 512
    assert told["cache"] == 512 * 12 * 2 * 64 * 2
    assert told["overrides"] == {"num_key_value_heads": 1}


def test_a_checkpoint_of_ours_and_a_foreign_one(tmp_path, make_model):
    ours = make_model("gpt-oss")
    ours.save_pretrained(tmp_path / "ours")
    assert sum(inspect(f"model={tmp_path / 'ours'}").parameters.values()) == ours.num_parameters()

    config = LlamaConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    config.save_pretrained(tmp_path / "theirs")  # no weights: nothing but the configuration is read
    with torch.device("meta"):
        theirs = LlamaForCausalLM(config)
    assert sum(inspect(f"model={tmp_path / 'theirs'}").parameters.values()) == theirs.num_parameters()


def test_overrides_of_a_checkpoint(tmp_path):
    GPT2Config(n_embd=64, n_layer=2, n_head=4).save_pretrained(tmp_path)
    tied = inspect(f"model={tmp_path}").parameters
    untied = inspect(f"model={tmp_path}", "overrides.tie_word_embeddings=false").parameters
    assert untied == {**tied, "output head": tied["token embeddings"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=gpt-oss-20"], r"model = 'gpt-oss-20': there is no such preset.*'gpt-oss-20b'"),
        (["model=no/such/place"], r"model = 'no/such/place'"),
        (["overrides.n_layers=3"], r"overrides.n_layers = 3: there is no such field. Did you mean 'n_layer'"),
        (["overrides.hidden_size=65"], r"hidden_size=65 is not divisible by num_attention_heads=12"),
        (["overrides.hidden_size=wide"], r"hidden_size.*wide"),
        (["context_length=2048"], r"context_length = 2048: learned positions end at 1024"),
        (["batch_size=0"], r"batch_size = 0"),
        (["dtype=int8"], r"dtype = 'int8': expected"),
    ],
)
def test_what_cannot_be_inspected(words, message):
    with pytest.raises(InputError, match=message):
        inspect(*words)


def test_an_architecture_that_a_gpt_cannot_express(tmp_path):
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="model_type = 'bert'"):
        inspect(f"model={tmp_path}")


def test_checkpoint_and_override_that_do_not_fit(tmp_path):
    GPT2Config(n_embd=64, n_layer=2, n_head=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="layer_types has 2 entries for num_hidden_layers=3"):
        inspect(f"model={tmp_path}", "overrides.num_hidden_layers=3")


def test_175_billion_parameters_take_seconds():
    start = time.perf_counter()
    inspect("model=gpt3-175b")
    assert time.perf_counter() - start < 10


def test_no_recipe_hides_a_module_of_python():
    assert not {path.stem for path in (ROOT / "recipes").glob("*.py")} & set(sys.stdlib_module_names)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["recipes/inspect_.py"], ["-m", "gpt_finetune.cli", "inspect"]])
def test_from_the_command_line(command):
    result = launch(*command, "--model", "tiny", "--format", "json")
    assert result.returncode == 0, result.stderr
    assert sum(json.loads(result.stdout)["parameters"].values()) == 43_904


@pytest.mark.slow
def test_the_recipes_beside_it_still_find_pythons_inspect(tmp_path):
    """`convert` imports torch, which imports `inspect`, before it finds that there is no such checkpoint."""
    result = launch("recipes/convert.py", "--model", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out"))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: model = ")
