"""The recipe that pushes: a finished run to a Hub on this machine, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub.loopback import WRITE, Loopback
from huggingface_hub import ModelCard
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError

recipe = load_recipe("push")


def call(*words):
    return recipe.main(parse(recipe.PushConfig, list(words)))


@pytest.mark.slow
def test_a_finished_run_is_pushed_and_verified(finished, tmp_path):
    with Loopback() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": WRITE}
        environment |= {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        words = [f"model={finished}", "repo_id=alice/tiny", "--private", "tag=v1", "license=apache-2.0"]
        command = [sys.executable, str(ROOT / "recipes/push.py"), *words]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        repo = hub.repos["alice/tiny"]
        files = repo.commits[repo.tags["v1"]]
    assert "outputs equal to the last bit" in ended.stdout
    assert f"done: {hub.url}/alice/tiny/tree/{repo.tags['v1']}" in ended.stdout
    assert "stays here: states of the training" in ended.stderr
    assert WRITE not in ended.stdout + ended.stderr
    assert repo.private
    assert {"run.json", "metrics.jsonl", "samples.jsonl", "curves.png", "report.html", "config.yaml"} <= files.keys()
    card = ModelCard(hub.objects[files["README.md"].oid].decode())
    assert card.data.license == "apache-2.0"
    assert {result.metric_type for result in card.data.eval_results} == {"loss", "perplexity", "bits_per_byte"}
    assert 'path = "alice/tiny"' in card.text
    assert str(finished.parent) not in card.text


@pytest.mark.slow
def test_dry_run_lists_and_loads_and_sends_nothing(finished, capsys):
    assert call(f"model={finished}", "repo_id=alice/tiny", "--dry_run") is None  # offline, without a token
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed
    assert "It loads in a fresh process without gpt_finetune. Nothing was sent." in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["token=hf_abcDEF1234567"], "token = '…': a token belongs neither in a command nor in a file"),
        ([], "repo_id = '': it says where to push to"),
        (["repo_id=quickstart"], "repo_id = 'quickstart': it names no owner"),
        (["repo_id=a b/c"], "repo_id = 'a b/c': the Hub allows no such name"),
        (["repo_id=alice/x", "model=nowhere"], "model = 'nowhere': there is no such folder"),
        (["repo_id=alice/x", "privat=true"], "Did you mean 'private'"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(InputError, match=message) as caught:
        call(*words)
    assert "hf_" not in str(caught.value)


def test_a_token_in_a_file_is_refused_without_being_printed(tmp_path):
    (tmp_path / "push.yaml").write_text("repo_id: alice/x\ntoken: hf_abcDEF1234567\n")
    with pytest.raises(InputError, match=r"token = '…'") as caught:
        call("--config", str(tmp_path / "push.yaml"))
    assert "abcDEF" not in str(caught.value)
