from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.client("transformers"), pytest.mark.slow]

HEADS = {
    "text-generation": "CausalLM",
    "text-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "feature-extraction": "",
}
ASK = """
import json
from transformers import pipeline

def ask(task, folder, **options):
    answer = pipeline(task, model=folder, **options)
    settings = {"max_new_tokens": 4, "do_sample": False} if task == "text-generation" else {}
    said = [answer(text, **settings) for text in ("the quick brown fox", "def add")]
    return type(answer.model).__module__, json.loads(json.dumps(said, default=float))
"""
ASK_ALL = """
tasks = json.loads(sys.argv[1])
print("\\n" + json.dumps({task: ask(task, folder, trust_remote_code=True) for task, folder in tasks.items()}))
"""


def test_pipelines(save, without_us):
    """Pipelines for text generation, text and token classification and feature extraction, from a folder

    `trust_remote_code=True` where gpt_finetune is not imported.
    """
    here: dict = {}
    exec(ASK, here)
    folders = {task: str(save("modern", head)) for task, head in HEADS.items()}
    there = json.loads(without_us(ASK + ASK_ALL, json.dumps(folders)).splitlines()[-1])
    for task, folder in folders.items():
        module, said = there[task]
        assert module.startswith("transformers_modules")
        assert said == here["ask"](task, folder)[1]
        assert all(said)
