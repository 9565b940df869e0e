from __future__ import annotations

import json

import pytest
import torch

pytestmark = [pytest.mark.client("lm_eval"), pytest.mark.slow]

QUESTIONS = [{"text": "the quick", "choices": [" brown fox", " lazy dog"], "label": i % 2} for i in range(6)]
TASK = """
task: local_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.json}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
"""
RUN = 'sys.argv[0] = "lm_eval"\nfrom lm_eval.__main__ import cli_evaluate\ncli_evaluate()'


@torch.no_grad()
def score(model, tokenizer, text, choice):
    """Return the log-probability of a choice after a text, as the paper of the harness has it."""
    start = len(tokenizer(text).input_ids)
    ids = tokenizer(text + choice, return_tensors="pt").input_ids
    said = model(ids).logits.log_softmax(-1)[0, start - 1 : -1]
    return said.gather(-1, ids[0, start:, None]).sum().item()


def test_lm_eval(save, without_us, tmp_path):
    """`lm_eval --model hf` on a local multiple-choice task: each choice's log-likelihood is ours (1e-4)

    `--model_args pretrained=<folder>,trust_remote_code=True`, and the task's folder by `--include_path`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save("modern")
    (tmp_path / "questions.json").write_text("\n".join(json.dumps(question) for question in QUESTIONS))
    (tmp_path / "local_choices.yaml").write_text(TASK.format(folder=tmp_path))
    words = ["run", "--model", "hf", "--model_args", f"pretrained={folder},trust_remote_code=True,dtype=float32"]
    words += ["--tasks", "local_choices", "--include_path", tmp_path, "--device", "cpu", "--batch_size", "2"]
    words += ["--log_samples", "--output_path", tmp_path / "out"]
    without_us(RUN, *words)
    samples = next((tmp_path / "out").rglob("samples_*.jsonl")).read_text().splitlines()
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for sample, question in zip(map(json.loads, samples), QUESTIONS, strict=True):
        found = [float(answer[0]) for answer in sample["filtered_resps"]]
        wanted = [score(model, tokenizer, question["text"], choice) for choice in question["choices"]]
        assert found == pytest.approx(wanted, abs=1e-4)
