"""A saved folder works where this package is not installed: same code, same logits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support import ROOT

from gpt_finetune import (
    GPTForMaskedLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
    GPTModel,
)

CLIENT = """
import sys
sys.modules["gpt_finetune"] = None  # importing the package now raises ImportError, as where it is not installed
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM
try:
    import gpt_finetune
    raise SystemExit("the package could be imported: this test proves nothing")
except ImportError:
    pass
source, target = sys.argv[1:3]
heads = ["MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification"]
ids = torch.load(f"{source}/ids.pt", weights_only=True)
for name in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(f"{source}/{name}", trust_remote_code=True).eval()
    base = AutoModel.from_pretrained(f"{source}/{name}", trust_remote_code=True).eval()
    assert type(model).__module__.startswith("transformers_modules")
    model.save_pretrained(f"{target}/{name}")  # and it travels on from there
    with torch.no_grad():
        generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        found = {"logits": model(ids).logits, "hidden": base(ids).last_hidden_state, "generated": generated}
    torch.save(found, f"{target}/{name}.pt")
    fresh = AutoModelForCausalLM.from_config(model.config, trust_remote_code=True)  # initial weights travel too
    std = model.config.initializer_range
    for parameter_name, parameter in fresh.named_parameters():
        if parameter.numel() > 1000 and not parameter_name.endswith("bias"):
            scale = 0.5 if parameter_name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")) else 1.0
            assert 0.9 < parameter.std() / (std * scale) < 1.1, parameter_name
        elif parameter_name.endswith("sinks"):
            assert 0 < parameter.abs().max() < 10 * std
for saved in ["CausalLM", *heads]:  # any class opens what any class saved
    path = f"{source}/modern" if saved == "CausalLM" else f"{source}/For{saved}"
    for opened in heads:
        auto = getattr(transformers, f"AutoModelFor{opened}")
        options = {"num_labels": 3, "ignore_mismatched_sizes": True, "output_loading_info": True}
        options["is_causal"] = opened != "MaskedLM"
        model, loading = auto.from_pretrained(path, trust_remote_code=True, **options)
        assert type(model).__module__.startswith("transformers_modules") and type(model).__name__ == f"GPTFor{opened}"
        assert all(name.startswith(("score.", "qa_outputs.", "lm_head.")) for name in loading["missing_keys"])
        if opened == saved:
            shape = (2, 1, 9) if saved == "MultipleChoice" else (2, 9)
            assert not loading["missing_keys"] and not loading["mismatched_keys"]
            model.eval().save_pretrained(f"{target}/For{saved}")
            with torch.no_grad():
                torch.save(model(ids.view(shape))[0], f"{target}/For{saved}.pt")
torch.save(ids, f"{target}/ids.pt")
"""
NAMES = ["modern", "gpt2", "transformer-2017", "gpt-oss"]
FILES = {path.name for path in (ROOT / "gpt_finetune" / "model").glob("*_gpt.py")}
HEADS = [
    GPTForMaskedLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
]


@pytest.mark.slow
def test_plain_save_pretrained_is_enough(make_model, make_config, tmp_path):
    ids = torch.randint(2, 512, (2, 9))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    torch.save(ids, first / "ids.pt")
    expected = {}
    for name in NAMES:
        model = make_model(name)
        model.save_pretrained(first / name)
        assert {path.name for path in (first / name).glob("*.py")} == FILES
        with torch.no_grad():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
            expected[name] = model(ids).logits, generated
    expected_of_heads = {}
    for head in HEADS:
        model, name = (
            head(make_config("modern", num_labels=3, is_causal=head is not GPTForMaskedLM)).eval(),
            head.__name__.removeprefix("GPT"),
        )
        model.save_pretrained(first / name)
        assert {path.name for path in (first / name).glob("*.py")} == FILES
        with torch.no_grad():
            expected_of_heads[name] = model(ids.view((2, 1, 9) if head is GPTForMultipleChoice else (2, 9)))[0]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    for source, target in ((first, second), (second, third)):
        command = [sys.executable, "-c", CLIENT, str(source), str(target), *NAMES]
        subprocess.run(command, check=True, cwd=tmp_path, env=environment)
        for name, (logits, generated) in expected.items():
            found = torch.load(target / f"{name}.pt", weights_only=True)
            assert torch.equal(found["logits"], logits)
            assert torch.equal(found["generated"], generated)
            assert found["hidden"].shape == (2, 9, 32)
        for name, logits in expected_of_heads.items():
            assert {path.name for path in (target / name).glob("*.py")} == FILES
            torch.testing.assert_close(torch.load(target / f"{name}.pt", weights_only=True), logits)


@pytest.mark.parametrize("saves", ["base model", "config"])
def test_the_code_travels_with_whatever_is_saved(make_config, saves, tmp_path):
    config = make_config()
    (config if saves == "config" else GPTModel(config)).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == FILES


def test_installed_package_is_used_without_trust(make_model, tmp_path):
    from transformers import AutoModelForCausalLM

    from gpt_finetune import GPTForCausalLM

    make_model().save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is GPTForCausalLM
