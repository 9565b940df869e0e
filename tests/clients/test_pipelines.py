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
    if task == "text-classification":
        said.append(answer({"text": "the quick brown fox", "text_pair": "def add"}, top_k=None))
    return type(answer.model).__module__, json.loads(json.dumps(said, default=float))
"""
ASK_ALL = """
tasks = json.loads(sys.argv[1])
print("\\n" + json.dumps({task: ask(task, folder, trust_remote_code=True) for task, folder in tasks.items()}))
"""


def test_pipelines(save, without_us):
    """Pipelines for text generation, text, text pair and token classification, feature extraction, from a folder

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
    pair, alone = there["text-classification"][1][2], there["text-classification"][1][0][0]
    assert alone not in pair  # the second text counts


TEXTS = ["the quick brown fox jumps over", "def add"]  # of unequal length: batches are padded
NAMES = ["contradiction", "neutral", "entailment"]
LABELS = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}


@pytest.fixture
def pipe(save):
    """Return a maker of pipelines; a batch must be asked for, and is padded."""
    from transformers import AutoTokenizer, pipeline

    def make(task, head, **options):
        folder = save("modern", head, **options.pop("fields", {}))
        speaking = AutoTokenizer.from_pretrained(folder)
        speaking.add_special_tokens({"mask_token": speaking.decode([77])})
        return pipeline(task, model=str(folder), tokenizer=speaking, **options)

    return make


def test_text_generation_pipeline(pipe):
    """Text generation: batches as single prompts, several answers, full text or not, no prompt, too long a prompt"""
    ask, settings = pipe("text-generation", "CausalLM"), {"max_new_tokens": 4, "do_sample": False}
    single = [ask(text, **settings)[0]["generated_text"] for text in TEXTS]
    assert single == [answer[0]["generated_text"] for answer in ask(TEXTS, batch_size=2, **settings)]
    assert all(said.startswith(text) for said, text in zip(single, TEXTS, strict=True))
    new = ask(TEXTS[0], return_full_text=False, **settings)[0]["generated_text"]
    assert TEXTS[0] + new == single[0]
    drawn = ask(TEXTS, batch_size=2, max_new_tokens=4, do_sample=True, num_return_sequences=3)
    assert [len(answers) for answers in drawn] == [3, 3]
    assert isinstance(ask("", **settings)[0]["generated_text"], str)
    assert ask(TEXTS[0], return_tensors=True, **settings)[0]["generated_token_ids"]
    assert ask("x" * 500, handle_long_generation="hole", max_new_tokens=4)
    with pytest.raises(ValueError, match="return_full_text"):
        ask("x", return_full_text=True, return_tensors=True)


def test_text_classification_pipeline(pipe):
    """Text classification: every label's score, pairs of texts, batches as single texts"""
    import torch

    ask = pipe("text-classification", "SequenceClassification", fields=LABELS)
    with torch.no_grad():
        scores = [ask.model(**ask.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0] for text in TEXTS]
    for said, wanted in zip(ask(TEXTS, batch_size=2, top_k=None), scores, strict=True):
        assert {answer["label"]: answer["score"] for answer in said} == pytest.approx(
            dict(zip(NAMES, wanted.tolist(), strict=True)), abs=1e-5
        )
    assert ask({"text": TEXTS[0], "text_pair": TEXTS[1]}, top_k=None) != ask(TEXTS[0], top_k=None)
    with pytest.raises(ValueError, match="text"):
        ask([["a", "b", "c"]])


def test_zero_shot_classification_pipeline(pipe):
    """Zero-shot classification with one or several labels: scores add up to 1, or are each label's own"""
    ask = pipe("zero-shot-classification", "SequenceClassification", fields=LABELS)
    said = ask(TEXTS[0], candidate_labels=["animals", "code", "law"])
    assert sum(said["scores"]) == pytest.approx(1, abs=1e-5)
    assert sorted(said["labels"]) == ["animals", "code", "law"]
    several = ask(TEXTS, candidate_labels="animals, code", multi_label=True)
    assert all(0 < score < 1 for answer in several for score in answer["scores"])


def test_token_classification_pipeline(pipe):
    """Token classification: places in the text, words by their first, highest or mean token, batches as single texts"""
    ask = pipe("token-classification", "TokenClassification", fields=LABELS)
    single = [ask(text) for text in TEXTS]
    assert all(
        (a["entity"], a["word"], a["start"], a["end"]) == (b["entity"], b["word"], b["start"], b["end"])
        for one, other in zip(single, ask(TEXTS, batch_size=2), strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert all(answer["start"] < answer["end"] <= len(TEXTS[0]) for answer in single[0])
    for strategy in ("simple", "first", "max", "average"):
        groups = ask(TEXTS[0], aggregation_strategy=strategy)
        assert groups
        assert {"entity_group", "score", "word", "start", "end"} == groups[0].keys()


def test_feature_extraction_pipeline(pipe):
    """Feature extraction: last hidden states of each token, as lists or a tensor, texts cut short if asked to"""
    import torch

    ask = pipe("feature-extraction", "")
    with torch.no_grad():
        wanted = ask.model(**ask.tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state
    assert torch.allclose(ask(TEXTS[0], return_tensors=True), wanted, atol=1e-5)
    assert [len(features[0]) for features in ask(TEXTS)] == [len(ask.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert len(ask("x " * 500, truncation=True, tokenize_kwargs={"max_length": 8})[0]) == 8


def test_fill_mask_pipeline(pipe):
    """Fill-mask with a masked LM: several tokens, one of some, several masks; no mask is an error

    A mask token of the tokenizer.
    """
    ask = pipe("fill-mask", "MaskedLM", fields={"is_causal": False})
    mask = ask.tokenizer.mask_token
    said = ask(f"the {mask} fox", top_k=3)
    assert [set(answer) for answer in said] == [{"score", "token", "token_str", "sequence"}] * 3
    assert said == sorted(said, key=lambda answer: -answer["score"])
    targets = {ask.tokenizer.decode([i]) for i in (40, 50)}
    assert {answer["token_str"] for answer in ask(f"the {mask} fox", targets=sorted(targets))} == targets
    assert [len(answers) for answers in ask(f"{mask} the {mask}", top_k=2)] == [2, 2]
    with pytest.raises(Exception, match="No mask_token"):
        ask("the fox")
