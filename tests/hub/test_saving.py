"""What `save_pretrained` refuses: code that would not load elsewhere, attributes that would not load anywhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types

import pytest
import torch
from support import ROOT

from gpt_finetune import GPTConfig, GPTForCausalLM, preset
from gpt_finetune.errors import InputError
from gpt_finetune.hub.travel import check_class

# A user's module, and what happens in a process of its own that saves a model of its class.
SAVE = """
import sys
from mine import Mine
from gpt_finetune import preset
Mine(preset("tiny")).save_pretrained(sys.argv[1])
"""
SAVE_OWN = """
import sys
from package.mine import Mine
Mine(Mine.config_class(num_hidden_layers=1, hidden_size=32, num_attention_heads=2)).save_pretrained(sys.argv[1])
"""
ABROAD = """
import sys
sys.modules["gpt_finetune"] = None
from transformers import AutoModelForCausalLM
print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__)
"""
PLAIN = "from gpt_finetune import GPTForCausalLM\n\n\nclass Mine(GPTForCausalLM):\n    pass\n"


def run(script, folder, *paths, cwd):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_MODULES_CACHE": str(cwd / "cache")}
    command = [sys.executable, "-c", script, str(folder)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_class_that_would_not_load_elsewhere_is_not_saved(tmp_path):
    (tmp_path / "mine.py").write_text(PLAIN)
    ended = run(SAVE, tmp_path / "saved", ROOT, tmp_path, cwd=tmp_path)
    assert ended.returncode == 1
    assert "mine.py: import = 'gpt_finetune': loading fails wherever this package is not installed" in ended.stderr
    assert "`from .modeling_gpt import name`" in ended.stderr
    assert not (tmp_path / "saved").exists()

    (tmp_path / "mine.py").write_text(PLAIN.replace("pass", "_auto_class = None"))  # the weights alone
    assert run(SAVE, tmp_path / "saved", ROOT, tmp_path, cwd=tmp_path).returncode == 0
    assert run(ABROAD, tmp_path / "saved", cwd=tmp_path).stdout == "GPTForCausalLM\n"


@pytest.mark.slow
def test_a_class_beside_the_files_that_travel_is_saved_and_loads_elsewhere(tmp_path):
    """As the error says: the file among copies of ours, in a package of the user's."""
    package = tmp_path / "package"
    shutil.copytree(ROOT / "gpt_finetune/model", package, ignore=shutil.ignore_patterns("__*"))
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(PLAIN.replace("gpt_finetune", ".modeling_gpt"))
    ended = run(SAVE_OWN, tmp_path / "saved", tmp_path, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert run(ABROAD, tmp_path / "saved", cwd=tmp_path).stdout == "Mine\n"


CODE = [
    ("import yaml\nfrom .modeling_gpt import GPTForCausalLM\n", "= 'yaml': loading fails wherever"),
    ("from .helper import help\n", "mine.py: import = 'helper.py': this code file is not in the folder"),
    ("from . import helper\n", "transformers copies only what `from .file import name` names"),
    ("try:\n    import yaml\nexcept ImportError:\n    yaml = None\nimport numpy, math\n", None),
]


@pytest.mark.parametrize(("code", "said"), CODE)
def test_what_a_class_may_import(code, said, tmp_path, monkeypatch):
    path = tmp_path / "mine.py"
    path.write_text("pass\n".ljust(len(code)))
    module = types.ModuleType("mine")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "mine", module)
    mine = type("Mine", (GPTForCausalLM,), {"__module__": "mine"})
    check_class(mine)
    path.write_text(code)  # as long as before, and looked at again
    if said is None:
        check_class(mine)
    else:
        with pytest.raises(InputError, match=re.escape(said)):
            check_class(mine)


def test_a_sharded_model_is_saved_with_the_code_of_the_class_that_was_sharded(tmp_path):
    model = GPTForCausalLM(preset("tiny"))
    sharded = type("FSDPGPTForCausalLM", (GPTForCausalLM,), {"__module__": "torch.distributed.fsdp"})
    model.__class__ = sharded  # as fully_shard does
    model.save_pretrained(tmp_path)
    assert (sharded.__name__, sharded.__module__) == ("FSDPGPTForCausalLM", "torch.distributed.fsdp")
    saved = GPTConfig.from_pretrained(tmp_path)
    assert saved.auto_map == preset("tiny").auto_map
    assert saved.architectures == ["GPTForCausalLM"]
    code = {path.name for path in (ROOT / "gpt_finetune/model").glob("*_gpt.py")}
    assert {path.name for path in tmp_path.glob("*.py")} == code


@pytest.mark.parametrize(
    ("name", "hint"), [("foo", "see GPTConfig's fields"), ("hiden_size", "did you mean hidden_size?")]
)
def test_an_attribute_that_is_no_field_is_not_saved(name, hint, tmp_path):
    model = GPTForCausalLM(preset("tiny"))
    setattr(model.config, name, 1)
    for save in (model.save_pretrained, model.config.save_pretrained):
        with pytest.raises(ValueError, match=re.escape(f"{name}=1: there is no such field; {hint}")):
            save(tmp_path / "saved")
        assert not (tmp_path / "saved").exists()
    delattr(model.config, name)
    model.save_pretrained(tmp_path / "saved")
    GPTForCausalLM.from_pretrained(tmp_path / "saved")


HABITS = {
    "use_cache": False,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "_name_or_path": "elsewhere",
    "_attn_implementation": "eager",
    "architectures": ["GPTForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_gpt.GPTConfig"},
    "dtype": torch.bfloat16,
    "id2label": {0: "bad", 1: "good"},
    "num_labels": 5,
    "problem_type": "regression",
    "quantization_config": {"quant_method": "torchao"},
    "task_specific_params": {"a": 1},
    "tokenizer_class": "PreTrainedTokenizerFast",
    "transformers_weights": "model.safetensors",
    "n_layer": 2,
}


@pytest.mark.parametrize("name", HABITS)
def test_what_libraries_and_notebooks_set_is_saved_and_loads(name, tmp_path):
    config = preset("tiny")
    setattr(config, name, HABITS[name])
    config.save_pretrained(tmp_path)
    loaded = GPTConfig.from_pretrained(tmp_path)
    if not name.startswith("_") and name != "transformers_weights":  # of the file and the process, not of the model
        assert getattr(loaded, name) == HABITS[name]
