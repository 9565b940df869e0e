"""What each head is to the Hub and its visitors: a task, an Auto class, a few lines that use it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_GENERATE = """inputs = tokenizer({prompt}, return_tensors="pt")
outputs = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8)
print(tokenizer.decode(outputs[0], skip_special_tokens=True))"""

_FILL = """inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.decode(model(**inputs).logits[0].argmax(-1)))"""

_CLASSIFY = """inputs = tokenizer({prompt}, return_tensors="pt")
scores = model(**inputs).logits[0]
print({{model.config.id2label[i]: float(score) for i, score in enumerate(scores)}})"""

_TAG = """inputs = tokenizer({prompt}, return_tensors="pt")
tags = model(**inputs).logits[0].argmax(-1)
pieces = [tokenizer.decode([i]) for i in inputs["input_ids"][0]]
print([(piece, model.config.id2label[int(tag)]) for piece, tag in zip(pieces, tags)])"""

_ANSWER = """row = "Who wrote it?\\n" + {prompt} + tokenizer.eos_token  # as in training; the end token means: not said
inputs = tokenizer(row, return_tensors="pt")
outputs = model(**inputs)
start, end = outputs.start_logits[0].argmax(), outputs.end_logits[0].argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))"""

_CHOOSE = """choices = [" there was a king.", " seven."]
rows = [tokenizer({prompt} + choice)["input_ids"] for choice in choices]
padded = tokenizer.pad({{"input_ids": rows}}, return_tensors="pt")
logits = model(**{{name: rows.unsqueeze(0) for name, rows in padded.items()}}).logits[0]
print(choices[int(logits.argmax())])"""

_WRITE = """inputs = tokenizer({prompt}, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0])"""

_EMBED = """inputs = tokenizer({prompt}, return_tensors="pt")
print(model(**inputs).last_hidden_state.shape)"""


_IMPORT = "import gpt_finetune  # makes its classes known\n"


@dataclass(frozen=True)
class Head:
    """A head of a model.

    Args:
        auto: The Auto class that opens it.
        task: The Hub's name of what it does (`pipeline_tag`).
        kind: The same in words.
        use: Code that uses `tokenizer` and `model`; `{prompt}` stands for a text.
        peft: PEFT's name of it.
        needs_package: This package must be installed to open it, whatever lies beside the weights.
    """

    auto: str
    task: str
    kind: str
    use: str
    peft: str | None = None
    needs_package: bool = False


# By the end of the architecture's name, in our models and in those of transformers.
HEADS = {
    "ForCausalLM": Head("AutoModelForCausalLM", "text-generation", "language model", _GENERATE, "CAUSAL_LM"),
    "LMHeadModel": Head("AutoModelForCausalLM", "text-generation", "language model", _GENERATE),
    "ForMaskedLM": Head("AutoModelForMaskedLM", "fill-mask", "masked language model", _FILL),
    "ForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "text-classification", "text classifier", _CLASSIFY, "SEQ_CLS"
    ),
    "ForTokenClassification": Head(
        "AutoModelForTokenClassification", "token-classification", "token classifier", _TAG, "TOKEN_CLS"
    ),
    "ForQuestionAnswering": Head(
        "AutoModelForQuestionAnswering", "question-answering", "question-answering model", _ANSWER, "QUESTION_ANS"
    ),
    "ForMultipleChoice": Head("AutoModelForMultipleChoice", "multiple-choice", "multiple-choice model", _CHOOSE),
    # transformers finds the halves' classes by their names alone, not by code beside the weights
    "EncoderDecoderModel": Head(
        "AutoModelForSeq2SeqLM", "text2text-generation", "encoder-decoder", _WRITE, "SEQ_2_SEQ_LM", needs_package=True
    ),
    "Model": Head("AutoModel", "feature-extraction", "base model", _EMBED, "FEATURE_EXTRACTION"),
}
LANGUAGE_MODEL = HEADS["ForCausalLM"]


def find_head(architecture: str) -> Head | None:
    """Return the head of an architecture, such as `GPTForCausalLM`, by the end of its name."""
    return next((head for ending, head in HEADS.items() if architecture.endswith(ending)), None)


def find_peft_head(task_type: str | None) -> Head | None:
    """Return the head that one of PEFT's task types, such as `SEQ_CLS`, adapts."""
    return next((head for head in HEADS.values() if task_type and head.peft == task_type), None)


def read_head(folder: Path) -> Head:
    """Return the head that a folder's configuration names; a language model's where there is none yet."""
    config, adapter = (_read(folder / name) for name in ("config.json", "adapter_config.json"))
    architecture = next(iter(config.get("architectures") or []), "")
    return find_head(str(architecture)) or find_peft_head(adapter.get("task_type")) or LANGUAGE_MODEL


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def load_snippet(head: Head, path: str, prompt: str, *, remote_code: bool = True) -> str:
    """Return Python code that loads a model and uses it, in a fresh process without this package unless it needs it.

    Args:
        head: The model's head.
        path: A Hub id or folder.
        prompt: A text to try it on.
        remote_code: The model's code lies beside its weights.
    """
    trust = ", trust_remote_code=True" if remote_code and not head.needs_package else ""
    package = _IMPORT if head.needs_package else ""
    return f"""from transformers import {", ".join(sorted((head.auto, "AutoTokenizer")))}
{package}
path = {quote(path)}
tokenizer = AutoTokenizer.from_pretrained(path{trust})
model = {head.auto}.from_pretrained(path{trust})

{head.use.format(prompt=quote(prompt))}"""


def adapter_snippet(
    head: Head,
    base: str,
    path: str,
    prompt: str,
    *,
    revision: str | None = None,
    num_labels: int | None = None,
    own_tokenizer: bool = False,
    new_tokens: bool = False,
) -> str:
    """Return Python code that loads a base and an adapter on it, in a fresh process without this package.

    Args:
        head: The base's head.
        base: The base's Hub id or folder.
        path: The adapter's.
        prompt: A text to try it on.
        revision: The base's commit.
        num_labels: Of a classifier.
        own_tokenizer: The adapter brings the tokenizer.
        new_tokens: It has more tokens than the base.
    """
    pinned = "base, revision=commit" if revision else "base"
    names = f'base, commit = {quote(base)}, "{revision}"' if revision else f"base = {quote(base)}"
    labels = f", num_labels={num_labels}" if num_labels else ""
    rows = "model.resize_token_embeddings(len(tokenizer))\n" if new_tokens else ""
    trust = "" if head.needs_package else ", trust_remote_code=True"
    package = _IMPORT if head.needs_package else ""
    return f"""from peft import PeftModel
from transformers import {", ".join(sorted((head.auto, "AutoTokenizer")))}
{package}
{names}
path = {quote(path)}
tokenizer = AutoTokenizer.from_pretrained({"path" if own_tokenizer else pinned}{trust})
model = {head.auto}.from_pretrained({pinned}{labels}{trust})
{rows}model = PeftModel.from_pretrained(model, path)

{head.use.format(prompt=quote(prompt))}"""


def quote(text: str) -> str:
    """Write a string as Python source."""
    return json.dumps(text, ensure_ascii=False)  # JSON's strings are Python's too
