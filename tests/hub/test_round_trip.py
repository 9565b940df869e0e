"""Pushed over loopback with the real client, in its three ways to send, and back again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from hub.loopback import OTHER, WRITE, Fault
from huggingface_hub import ModelCard

HEADS = ["CausalLM", "MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification"]


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lfs", "multipart", "xet"])
def test_weights_arrive_bit_for_bit_and_work(mode, hub, folder, repo_id, request):
    client = request.getfixturevalue("xet" if mode == "xet" else "lfs")
    hub.part_size = 30_000 if mode == "multipart" else None
    before = hub.requests.copy()
    if mode != "xet":
        hub.objects.pop(digests(folder)["model.safetensors"], None)
    # the fresh process takes seconds, and once is enough
    done = client("push", folder=str(folder), repo_id=repo_id, verified=mode == "lfs", tag="v1")
    assert done["value"]["difference"] == (0 if mode == "lfs" else -1)
    route = {"lfs": "put", "multipart": "part", "xet": "xorb"}[mode]
    assert hub.requests[route] > before[route]
    repo = hub.repos[repo_id]
    assert repo.tags["v1"] == repo.branches["main"] == done["value"]["commit"]
    arrived = client("fetch", repo_id, "v1")["value"]
    sent = digests(folder)
    assert arrived.keys() == sent.keys() | {"README.md", ".gitattributes"}
    assert all(arrived[name] == digest for name, digest in sent.items())


def test_second_push_of_the_same_sends_no_weights_and_makes_no_commit(hub, lfs, folder, repo_id):
    first = lfs("push", folder=str(folder), repo_id=repo_id)["value"]
    before = hub.requests.copy()
    second = lfs("push", folder=str(folder), repo_id=repo_id)["value"]
    assert first["commit"] == second["commit"]
    assert hub.requests["put"] == before["put"]
    assert hub.requests["commit"] == before["commit"]


def test_what_an_earlier_push_left_does_not_stay_beside(hub, lfs, folder, repo_id, tmp_path):
    sharded = tmp_path / "sharded"
    from gpt_finetune import GPTForCausalLM

    GPTForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="60KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sharded / name).write_bytes((folder / name).read_bytes())
    assert lfs("push", folder=str(sharded), repo_id=repo_id)["value"]
    assert "model.safetensors.index.json" in lfs("fetch", repo_id)["value"]
    assert lfs("push", folder=str(folder), repo_id=repo_id)["value"]
    weights = [name for name in lfs("fetch", repo_id)["value"] if "safetensors" in name]
    assert weights == ["model.safetensors"]


def test_branch_private_and_tag(hub, lfs, folder, repo_id):
    done = lfs("push", folder=str(folder), repo_id=repo_id, private=True, revision="dev", tag="v2")["value"]
    repo = hub.repos[repo_id]
    assert repo.private
    assert repo.branches["dev"] == repo.tags["v2"] == done["commit"]
    assert set(repo.commits[repo.branches["main"]]) == {".gitattributes"}
    assert done["url"] == f"{hub.url}/{repo_id}/tree/{done['commit']}"
    assert lfs("fetch", repo_id, "dev")["value"]["model.safetensors"] == digests(folder)["model.safetensors"]
    assert lfs("fetch", repo_id, "dev", token=OTHER)["error"] == "RepositoryNotFoundError"


def test_resumed_upload_sends_only_what_is_missing(hub, lfs, folder, repo_id):
    weights = digests(folder)["model.safetensors"]
    hub.objects.pop(weights, None)
    hub.xet.files.pop(weights, None)
    hub.faults = [Fault("commit", 503, times=5)]
    assert "out of order" in lfs("push", folder=str(folder), repo_id=repo_id)["message"]
    before = hub.requests.copy()
    assert lfs("push", folder=str(folder), repo_id=repo_id)["value"]
    assert hub.requests["put"] == before["put"]


FRESH = """
import json, sys
sys.modules["gpt_finetune"] = None
for code in json.load(sys.stdin):
    exec(code, {})
"""


@pytest.mark.slow
def test_every_head_has_a_card_whose_code_runs_elsewhere(hub, lfs, save, tmp_path):
    snippets, tasks = [], {}
    for head in HEADS:
        assert lfs("push", folder=str(save(head)), repo_id=f"alice/{head}", license="mit")["value"]
        repo = hub.repos[f"alice/{head}"]
        card = ModelCard(hub.objects[repo.commits[repo.branches["main"]]["README.md"].oid].decode())
        tasks[head] = card.data.pipeline_tag
        assert card.data.library_name == "transformers"
        assert card.data.license == "mit"
        assert card.data.tags == ["gpt_finetune", "custom_code"]
        snippet = re.search(r"```python\n(.*?)\n```", card.text, flags=re.DOTALL)
        assert snippet is not None
        assert f'path = "alice/{head}"' in snippet[1]
        snippets.append(snippet[1])
    assert list(tasks.values()) == [
        "text-generation",
        "fill-mask",
        "multiple-choice",
        "question-answering",
        "text-classification",
        "token-classification",
    ]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", FRESH]
    subprocess.run(command, input=json.dumps(snippets), text=True, env=environment, check=True, cwd=tmp_path)


CLIENT = """
import sys
sys.modules["gpt_finetune"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import AutoModelForSequenceClassification
repo_id, folder = sys.argv[1:]
theirs = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=True)
ours = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.arange(2, 12)[None]
assert torch.equal(theirs(ids).logits, ours(ids).logits)
assert AutoTokenizer.from_pretrained(repo_id, trust_remote_code=True).chat_template
AutoModelForSequenceClassification.from_pretrained(repo_id, trust_remote_code=True)
"""


@pytest.mark.slow
def test_plain_push_to_hub_is_enough_too(hub, lfs, folder, repo_id, tmp_path):
    assert lfs("push_to_hub", str(folder), repo_id, private=True)["value"]
    repo = hub.repos[repo_id]
    files = repo.commits[repo.branches["main"]]
    assert digests(folder).keys() - {"chat_template.jinja"} <= files.keys()
    assert files["model.safetensors"].oid == digests(folder)["model.safetensors"]
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": WRITE}
    command = [sys.executable, "-c", CLIENT, repo_id, str(folder)]
    subprocess.run(command, env={**os.environ, **settings}, check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["CausalLM", "SequenceClassification"])
def test_an_adapter_pins_its_base(head, hub, lfs, save, repo_id, tmp_path):
    from peft import LoraConfig, get_peft_model

    import gpt_finetune

    base = f"{repo_id}-base"
    commit = lfs("push", folder=str(save()), repo_id=base)["value"]["commit"]
    model = getattr(gpt_finetune, f"GPTFor{head}").from_pretrained(save(), num_labels=4)
    model.name_or_path = model.config._name_or_path = base
    task = {"CausalLM": "CAUSAL_LM", "SequenceClassification": "SEQ_CLS"}[head]
    adapted = get_peft_model(model, LoraConfig(task_type=task, r=2, init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["revision"] is None
    done = lfs("push", folder=str(tmp_path / "adapter"), repo_id=repo_id, verified=head != "CausalLM")
    assert done["value"]["difference"] == (0 if head != "CausalLM" else -1)
    repo = hub.repos[repo_id]
    files = {path: hub.objects.get(file.oid) for path, file in repo.commits[repo.branches["main"]].items()}
    record = json.loads(files["adapter_config.json"])
    assert (record["base_model_name_or_path"], record["revision"]) == (base, commit)
    labels = 4 if task == "SEQ_CLS" else None
    said = {"base_model": base, "revision": commit, "task_type": task, "num_labels": labels}
    assert json.loads(files["gpt_finetune.json"]) == said
    ids = list(range(2, 12))
    with torch.no_grad():
        expected = adapted.eval()(input_ids=torch.tensor([ids])).logits.flatten()[:4]
    loaded = lfs("load_adapter", repo_id, ids=ids)["value"]
    assert loaded["num_labels"] == (labels or 3)  # its own, or the base's
    assert loaded["logits"] == pytest.approx(expected.tolist(), abs=1e-6)
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.library_name) == (base, "peft")
    assert commit in card.text
    assert ("num_labels=4" in card.text) == (task == "SEQ_CLS")


@pytest.mark.slow
def test_an_adapter_of_a_gated_base(hub, lfs, save, repo_id, tmp_path):
    from peft import LoraConfig, get_peft_model

    from gpt_finetune import GPTForCausalLM

    base = f"{repo_id}-base"
    lfs("push", folder=str(save()), repo_id=base)
    hub.repos[base].gated = True
    model = GPTForCausalLM.from_pretrained(save())
    model.name_or_path = model.config._name_or_path = base
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path / "adapter")

    theirs = repo_id.replace("alice", "bob")
    refused = lfs("push", folder=str(tmp_path / "adapter"), repo_id=theirs, token=OTHER)
    assert refused["error"] == "InputError"
    named = f"adapter_config.json: base_model_name_or_path = '{base}': this repository is gated, and the account has no"
    assert refused["message"].startswith(named)
    assert "Ask for access on its page" in refused["message"]
    assert theirs not in hub.repos  # nothing was sent
    done = lfs("push", folder=str(tmp_path / "adapter"), repo_id=repo_id, verified=True)
    assert done["value"]["difference"] == 0
    assert "HTTP" not in json.dumps(lfs("load_adapter", repo_id, ids=[2, 3])["value"])


def test_what_is_no_pushed_adapter_is_not_loaded(hub, lfs, folder, repo_id):
    lfs("push", folder=str(folder), repo_id=repo_id)
    for path in (repo_id, str(folder)):
        message = lfs("load_adapter", path, ids=[2])["message"]
        assert message.startswith(f"path = '{path}': gpt_finetune.json, which says what it stands on, is not there")
