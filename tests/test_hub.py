from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from gpt_finetune.errors import InputError
from gpt_finetune.hub import write_card

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
RECORD: dict[str, Any] = {
    "recipe": "pretrain",
    "title": "quick | *start*",
    "command": f"accelerate launch recipes/pretrain.py out=/home/alice/q HF_TOKEN={TOKEN}",
    "status": "finished",
    "environment": {"python": "3.11.7", "torch": "2.13.0"},
    "model": {"parameters": 4_215_808, "preset": "tiny", "base_model": "openai-community/gpt2"},
    "data": {
        "sources": ["hub:poems/tang", "/home/alice/books/*.txt"],
        "ledger": {"documents": {"in": 7222, "trained": 6861, "validation": 361}},
        "validation_bytes": 111540,
    },
    "figures": {"eval_loss": 3.7123, "bits_per_byte": 1.3021, "tokens_per_second": 26214.0, "perplexity": float("nan")},
    "baselines": {"xz -9e": {"bits_per_byte": 1.65}},
}
SAMPLES = [
    {"step": 1, "prompt": "a", "text": "an early one"},
    {"step": 2, "prompt": "春眠", "text": "不觉晓\n```\n---\n````\n<script>", "seed": 3},
    {"step": 2, "prompt": "b", "text": "second\ud800"},
    {"step": 2, "prompt": "c", "text": "a third"},
]


def write_run(folder: Path, record: dict[str, Any], samples: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 2.0, "tokens": 99}\n')
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_card(write_run(tmp_path_factory.mktemp("runs") / "quick", RECORD, SAMPLES))


def test_metadata_survives_a_round_trip(path: Path) -> None:
    card = ModelCard.load(path)
    assert str(card) == path.read_text(encoding="utf-8")
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["tags"] == ["gpt_finetune", "custom_code"]
    assert data["datasets"] == ["poems/tang"]
    assert data["base_model"] == "openai-community/gpt2"
    assert "license" not in data
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"loss": 3.7123, "bits_per_byte": 1.3021}  # speed is no evaluation, nor is NaN
    assert card.data.model_name == "quick | *start*"


def test_body_says_what_it_is_and_how_good(path: Path) -> None:
    text = ModelCard.load(path).text
    assert "# quick \\| \\*start\\*\n" in text
    assert "A GPT language model of 4.22M parameters (preset tiny), trained further from openai-community/gpt2" in text
    assert "**1.302 bits per byte** on 112 kB of held-out text, 21.1% below xz -9e." in text
    assert "| xz -9e | 1.650 |" in text
    assert "| Validation loss | 3.712 | nats per token |" in text
    assert "- hub:poems/tang\n" in text
    assert "| trained | 6,861 |\n" in text
    assert "| torch | 2.13.0 |" in text
    assert "![Curves of the run](curves.png)" in text
    assert (path.parent / "curves.png").stat().st_size > 1000


def test_tables_have_one_width(path: Path) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(tables) == 4  # figures, baselines, ledger, environment
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1, table


def test_the_snippet_is_python_that_loads_with_the_auto_classes(path: Path) -> None:
    snippet = re.search(r"```python\n(.*?)\n```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert snippet is not None
    compile(snippet[1], "snippet", "exec")
    assert 'path = "path/to/quick"' in snippet[1]
    assert "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)" in snippet[1]
    assert "AutoTokenizer.from_pretrained(path, trust_remote_code=True)" in snippet[1]
    assert "gpt_finetune" not in snippet[1]


def test_the_last_two_samples_come_as_they_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "at step 2, not picked" in text
    assert "`````text\n春眠不觉晓\n```\n---\n````\n<script>\n`````\n" in text
    assert "```text\nbsecond\ufffd\n```" in text
    assert "a third" not in text
    assert "an early one" not in text


def test_no_token_and_no_home_folder(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "hf_" not in text
    assert "alice" not in text
    assert "out=~/q HF_TOKEN=[redacted]" in text


def test_an_empty_folder_gets_a_valid_card(tmp_path: Path) -> None:
    card = ModelCard.load(write_card(tmp_path, license="apache-2.0"))
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert not {"model-index", "datasets", "base_model"} & data.keys()
    assert "No evaluation was recorded." in card.text
    assert "trained from scratch" not in card.text


def test_a_head_has_its_task_and_its_metrics(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPTForSequenceClassification"]}')
    record = {"model": {"base_model": "openai-community/gpt2"}, "figures": {"eval_accuracy": 0.91, "eval_f1": 0.9}}
    record["data"] = {"sources": ["hub:stanfordnlp/sst2"]}
    card = ModelCard.load(write_card(write_run(tmp_path, record, [])))
    assert card.data.pipeline_tag == "text-classification"
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "accuracy": 0.91,
        "f1": 0.9,
    }
    assert {result.task_type for result in card.data.eval_results} == {"text-classification"}
    assert card.data.eval_results[0].dataset_type == "stanfordnlp/sst2"
    assert "A GPT text classifier, trained further from openai-community/gpt2" in card.text
    assert "AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=True)" in card.text


def test_no_way_to_a_file_of_this_machine(tmp_path: Path) -> None:
    record = {
        "command": "python recipes/pretrain.py output_dir=/data/project/out data.sources='[{path: /mnt/a/b/*.txt}]'",
        "model": {"base_model": "D:\\models\\base"},
        "data": {"sources": ["/mnt/a/b/*.txt", "https://example.org/a/b.txt", "docs/*.md"]},
    }
    text = write_card(write_run(tmp_path / "run", record, [])).read_text(encoding="utf-8")
    assert "python recipes/pretrain.py output_dir=…/out data.sources='[{path: …/*.txt}]'" in text
    assert "https://example.org/a/b.txt" in text
    assert "docs/" in text
    assert not re.search(r"/data|/mnt|D:", text)


@pytest.mark.parametrize("base", ["/home/alice/model", "./model", "C:\\model", "runs/a/b", "{folder}"])
def test_a_local_base_model_is_not_claimed_to_be_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str
) -> None:
    (tmp_path / "runs" / "pretrain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = write_run(tmp_path / "run", {"model": {"base_model": base.format(folder="runs/pretrain")}}, [])
    (folder / "curves.png").touch()
    card = ModelCard.load(write_card(folder))
    assert "base_model" not in card.data.to_dict()


def test_no_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_card(tmp_path / "nowhere")
