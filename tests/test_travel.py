"""A saved folder works where this package is not installed: same code, same logits."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

CLIENT = """
import sys
sys.modules["gpt_finetune"] = None  # importing the package now raises ImportError, as where it is not installed
import torch
from transformers import AutoModel, AutoModelForCausalLM
try:
    import gpt_finetune
    raise SystemExit("the package could be imported: this test proves nothing")
except ImportError:
    pass
source, target = sys.argv[1:3]
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
torch.save(ids, f"{target}/ids.pt")
"""
NAMES = ["modern", "gpt2", "transformer-2017"]


@pytest.mark.slow
def test_plain_save_pretrained_is_enough(make_model, tmp_path):
    ids = torch.randint(2, 512, (2, 9))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    torch.save(ids, first / "ids.pt")
    expected = {}
    for name in NAMES:
        model = make_model(name)
        model.save_pretrained(first / name)
        files = {path.name for path in (first / name).glob("*.py")}
        assert files == {"configuration_gpt.py", "layers_gpt.py", "modeling_gpt.py"}
        with torch.no_grad():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
            expected[name] = model(ids).logits, generated
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


def test_installed_package_is_used_without_trust(make_model, tmp_path):
    from transformers import AutoModelForCausalLM

    from gpt_finetune import GPTForCausalLM

    make_model().save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is GPTForCausalLM
