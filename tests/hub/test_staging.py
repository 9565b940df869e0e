"""What a folder must have before any byte of it goes to the Hub, and what of it never goes."""

from __future__ import annotations

import json
import shutil

import pytest
from hub.loopback import WRITE
from huggingface_hub import ModelCard

from gpt_finetune.errors import InputError
from gpt_finetune.hub import staged, verify

SECRET = "hf_" + "Ab1" * 12


@pytest.fixture
def mine(folder, tmp_path):
    """Return a copy that may be written to."""
    return shutil.copytree(folder, tmp_path / "mine")


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def break_json(folder):
    (folder / "config.json").write_text("{")


def shard_lost(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(**fields):
    def make(folder):
        (folder / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM", **fields}))

    return make


def code(line):
    return lambda folder: edit(folder / "layers_gpt.py", "import torch\n", f"import torch\n{line}\n")


BROKEN = [
    (lambda f: (f / "config.json").unlink(), "it holds neither config.json nor adapter_config.json"),
    (break_json, "it is no JSON object"),
    (lambda f: edit(f / "config.json", '"GPTForCausalLM"\n', '"Unheard"\n'), "they name no head that can be checked"),
    (lambda f: (f / "model.safetensors").unlink(), "these weights are not in the folder"),
    (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin is a pickle",
    ),
    (shard_lost, "model = 'model-00002-of-00002.safetensors': these weights are not in the folder"),
    (lambda f: (f / "tokenizer.json").unlink(), "its folder holds no tokenizer"),
    (lambda f: (f / "tokenizer_config.json").unlink(), "its folder holds no tokenizer"),
    (lambda f: (f / "heads_gpt.py").unlink(), "import = 'heads_gpt.py': this code file is not in the folder"),
    (lambda f: (f / "layers_gpt.py").unlink(), r"import = 'layers_gpt.py': this code file is not in the folder"),
    (code("from . import blocks_gpt"), r"layers_gpt.py: import = 'from . import blocks_gpt': transformers copies only"),
    (code("from ..report import redact"), r"'from ..report import redact': transformers copies only"),
    (code('"""\nfrom ..report import redact\n"""'), r"layers_gpt.py: import = '..report': .*in a docstring too"),
    (code("import gpt_finetune"), "layers_gpt.py: import = 'gpt_finetune': loading fails wherever"),
    (code("import einops"), "layers_gpt.py: import = 'einops': loading fails wherever"),
    (code("def ("), r"code = 'layers_gpt.py': it is no Python \(SyntaxError\)"),
    (adapter(base_model_name_or_path=None), "base_model_name_or_path = None: nobody can load an adapter without"),
    (adapter(base_model_name_or_path="/tmp"), "base_model_name_or_path = 'tmp': the base is a folder of this machine"),
    (adapter(base_model_name_or_path="./a/b"), "the base is a folder of this machine"),
    (adapter(base_model_name_or_path="a/b", task_type=None), "task_type = None: it says not what to load"),
    (
        lambda f: (f / "README.md").write_text("---\na: [\n---\nhi"),
        "README.md = 'mine': .*Mend the metadata",
    ),
    (lambda f: edit(f / "tokenizer_config.json", "{", f'{{"note": "{SECRET}",'), "a token is in this file"),
    (lambda f: edit(f / "config.json", "{", f'{{"note": "{WRITE}",'), "a token is in this file"),
]


@pytest.mark.parametrize(("spoil", "message"), BROKEN)
def test_what_is_refused(spoil, message, mine):
    spoil(mine)
    with pytest.raises(InputError, match=message) as caught, staged(mine, "alice/x"):
        pass
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_token_in_use_is_found_whatever_it_looks_like(mine, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "an-oddly-made-token")
    edit(mine / "generation_config.json", "{", '{"note": "an-oddly-made-token",')
    with pytest.raises(InputError, match=r"model = 'generation_config.json': a token is in this file"):
        staged(mine, "alice/x").__enter__()


def test_an_optional_import_travels(mine):
    code("try:\n    import einops\nexcept ImportError:\n    einops = None")(mine)
    with staged(mine, "alice/x") as staging:
        assert "layers_gpt.py" in staging.files


@pytest.mark.slow
def test_code_that_breaks_when_it_runs_is_found_before_it_goes(mine):
    code("torch.no_such_thing")(mine)
    with staged(mine, "alice/x") as staging, pytest.raises(InputError, match=r"AttributeError.*no_such_thing"):
        verify(staging, "alice/x")


def test_what_stays_and_why(mine):
    for name in ("training_args.bin", "optimizer.pt", "notes.txt", ".env", "helper.py"):
        (mine / name).write_text("x")
    (mine / "checkpoint-3").mkdir()
    (mine / "checkpoint-3/model.safetensors").write_text("x")
    with staged(mine, "alice/x") as staging:
        files, notes = staging.files, "\n".join(staging.notes)
    assert files.keys().isdisjoint(["training_args.bin", "optimizer.pt", "notes.txt", ".env", "helper.py"])
    assert not any("checkpoint" in name for name in files)
    assert "training_args.bin stays here: a pickle can run anything" in notes
    assert "checkpoint-3/ stays here: states of the training" in notes
    assert "notes.txt stays here: no part of a model or a run" in notes


def test_a_run_goes_without_its_secrets_and_the_folder_is_left_as_it_is(mine):
    record = {"command": f"python recipes/pretrain.py data=/data/secret-project/books hub_token={SECRET}"}
    record["data"] = {"sources": ["/data/secret-project/books/*.txt", "hub:poems/tang"]}
    record["model"] = {"base_model": "/data/secret-project/base"}
    (mine / "run.json").write_text(json.dumps(record))
    (mine / "config.yaml").write_text(f"hub_token: {SECRET}\noutput_dir: /home/alice/runs\n")
    (mine / "metrics.jsonl").write_text('{"step": 1, "split": "eval", "loss": 2.5}\n')
    with staged(mine, "alice/x", license="mit") as staging:
        notes = staging.notes
        texts = {name: (staging.folder / name).read_text() for name in ("run.json", "config.yaml", "README.md")}
    assert SECRET in (mine / "config.yaml").read_text()
    assert not (mine / "README.md").exists()
    for name, text in texts.items():
        assert SECRET not in text, name
        assert "/home/alice" not in text
    assert "config.yaml goes without the secrets and home folders in it" in notes
    json.loads(texts["run.json"])
    card = ModelCard(texts["README.md"])
    assert "secret-project" not in texts["README.md"]
    assert card.data.datasets == ["poems/tang"]
    assert card.data.license == "mit"
    assert "base_model" not in card.data.to_dict()
    assert [result.metric_value for result in card.data.eval_results] == [2.5]


def test_a_card_that_somebody_wrote_is_kept_and_completed(mine):
    text = f'---\nlicense: cc0-1.0\nlanguage: zh\n---\n# 诗\n\n```python\npath = "path/to/{mine.name}"\n```\n'
    (mine / "README.md").write_text(text)
    with staged(mine, "alice/x") as staging:
        card = ModelCard((staging.folder / "README.md").read_text())
    data = card.data.to_dict()
    assert (data["license"], data["language"], data["library_name"]) == ("cc0-1.0", "zh", "transformers")
    assert data["pipeline_tag"] == "text-generation"
    assert "# 诗" in card.text
    assert 'path = "alice/x"' in card.text


def test_a_native_export_needs_no_code(folder, tmp_path):
    from gpt_finetune import GPTForCausalLM, export_native

    export_native(GPTForCausalLM.from_pretrained(folder), tmp_path / "native")
    with staged(tmp_path / "native", "alice/x") as staging:
        assert not staging.remote_code
        assert not any(name.endswith(".py") for name in staging.files)
        card = ModelCard((staging.folder / "README.md").read_text())
    assert "trust_remote_code" not in card.text
    assert "tags" not in card.data.to_dict()
