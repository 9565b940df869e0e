"""recipes/merge.py: base and adapter in, one model out, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from adapting import IDS, adapted, fit, logits
from support import ROOT, load_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gpt_finetune import GPTForCausalLM
from gpt_finetune.adaptation.bases import fingerprint_of
from gpt_finetune.adaptation.saving import save_adapter
from gpt_finetune.config import parse
from gpt_finetune.errors import InputError

merge = load_recipe("merge")


def start(*words):
    return merge.main(parse(merge.MergeConfig, [str(word) for word in words]))


@pytest.fixture
def trained(save, make_tokenizer, tmp_path):
    """Return a maker of adapters, as a run leaves them: folder and logits. With a token that the base has not."""

    def make(name="adapter", seed=1, grow=True):
        tokenizer = make_tokenizer(510)
        folder = save("llama", vocab_size=len(tokenizer))
        tokenizer.save_pretrained(folder)
        base = GPTForCausalLM.from_pretrained(folder)
        fingerprint = fingerprint_of(base)
        new = []
        if grow:
            tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
            new = [len(tokenizer) - 1]
            base.resize_token_embeddings(len(tokenizer))
        tokenizer.chat_template = "{{ messages[0]['content'] }}<|turn|>"
        torch.manual_seed(seed)
        model = adapted(base, new_rows=new)
        ids = torch.cat((IDS, torch.tensor([new, new]).long()), dim=1)
        fit(model, ids)
        adapter = tmp_path / name
        save_adapter(model, adapter)
        tokenizer.save_pretrained(adapter)
        (adapter / "run.json").write_text(json.dumps({"model": {"base_fingerprint": fingerprint}}))
        return adapter, ids, logits(model, ids)

    return make


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_merged_gives_the_logits_of_the_adapter(trained, tmp_path):
    adapter, ids, wanted = trained()
    folder = start(f"--adapter={adapter}", f"--output_dir={tmp_path / 'out'}")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    close(logits(model, ids), wanted)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids("<|turn|>") == len(tokenizer) - 1 == model.config.vocab_size - 1
    assert tokenizer.chat_template.endswith("<|turn|>")
    assert not list(folder.glob("adapter*"))


def test_native(trained, tmp_path):
    adapter, ids, wanted = trained()
    folder = start(f"--adapter={adapter}", f"--output_dir={tmp_path / 'out'}", "--to=native")
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    close(logits(model, ids), wanted)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    assert "<|turn|>" in AutoTokenizer.from_pretrained(folder).get_vocab()


@pytest.mark.long
def test_as_a_command(trained, tmp_path):
    adapter, _, _ = trained()
    words = [f"adapter={adapter}", f"output_dir={tmp_path / 'out'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "recipes/merge.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "parameters in" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].startswith("error: output_dir = ")


def test_several(trained, tmp_path):
    first, ids, wanted = trained("a", grow=False)
    second, _, _ = trained("b", seed=2, grow=False)
    both = f"[{{path: {first}, weight: 1.0}}, {{path: {second}, weight: 0.0}}]"
    folder = start(f"--adapters={both}", f"--output_dir={tmp_path / 'out'}")
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(folder).eval(), ids), wanted, atol=5e-5, rtol=0
    )
    half = f"[{{path: {first}, weight: 0.5}}]"
    weaker = AutoModelForCausalLM.from_pretrained(start(f"--adapters={half}", f"--output_dir={tmp_path / 'half'}"))
    assert (logits(weaker.eval(), ids) - wanted).abs().max() > 0.01


def test_another_base_is_refused_and_nothing_is_written(trained, save, tmp_path):
    adapter, _, _ = trained()
    base = tmp_path / "base"
    other = GPTForCausalLM.from_pretrained(base)
    with torch.no_grad():
        other.lm_head.weight += 0.01
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"it was trained on a base with the fingerprint"):
        start(f"--adapter={adapter}", f"--base={tmp_path / 'other'}", f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
    start(f"--adapter={adapter}", f"--base={base}", f"--output_dir={tmp_path / 'out'}")


def test_nothing_is_left_when_writing_fails(trained, tmp_path, monkeypatch):
    adapter, _, _ = trained()

    def fail(*args, **kwargs):
        raise OSError("no space left")

    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(PreTrainedTokenizerBase, "save_pretrained", fail)
    before = set(tmp_path.iterdir())
    with pytest.raises(OSError, match="no space left"):
        start(f"--adapter={adapter}", f"--output_dir={tmp_path / 'out'}")
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"adapter = None: it takes one adapter, or a list of several"),
        (["--adapter={adapter}", "--adapters=[{{path: {adapter}}}]"], r"it takes one adapter, or a list"),
        (["--adapter={folder}/none"], r"adapter = .*there is no adapter_config.json"),
        (["--adapter={adapter}", "--base={folder}/none"], r"model.from_pretrained = .*none"),
        (["--adapters=[{{path: {adapter}}}, {{path: {adapter}}}]", "--combination=sum"], r"how = 'sum'"),
    ],
)
def test_refusals(words, message, trained, tmp_path):
    adapter, _, _ = trained(grow=False)
    words = [word.format(adapter=adapter, folder=tmp_path) for word in words]
    with pytest.raises(InputError, match=message):
        start(*words, f"--output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
