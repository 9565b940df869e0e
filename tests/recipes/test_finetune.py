"""recipes/finetune.py from end to end: a tiny model of ours learns sums, asked in English and in Chinese."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from support import ROOT, load_recipe

from gpt_finetune.config import parse, run
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "finetune").glob("*.yaml"))


@pytest.fixture(scope="session")
def sums(tmp_path_factory):
    """Return a file of conversations."""
    rows = []
    for a in range(6):
        for b in range(6):
            for asked, answered in ((f"{a}+{b}?", f"{a + b}."), (f"{a}加{b}？", f"得{a + b}。")):
                rows.append([{"role": "user", "content": asked}, {"role": "assistant", "content": answered}])
    file = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def begin(finished, sums):
    """Return a starter: run the recipe into a folder with further overrides."""
    recipe = load_recipe("finetune")

    def run_it(output, *more):
        words = [
            f"output_dir={output}",
            f"model={finished}",
            f"data.sources=[{{path: {sums}}}]",
            "data.validation_fraction=0.2",
            "data.max_length=64",
            "train.max_steps=6",
            "train.batch_size=4",
            "train.eval_steps=3",
            "train.save_steps=3",
            "train.log_steps=1",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            "answer.max_prompts=4",
            "answer.max_new_tokens=8",
            "answer.batch_size=2",
        ]
        return recipe.main(parse(recipe.FinetuneConfig, [*words, *more]))

    return run_it


@pytest.fixture(scope="session")
def tuned(begin, tmp_path_factory):
    """Return the folder of a finished LoRA run with chat tokens that the base did not have."""
    folder = tmp_path_factory.mktemp("tuned") / "lora"
    begin(folder, "data.chat_template=chatml")
    return folder


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def losses(folder):
    return [row["loss"] for row in read_json_lines(folder / "metrics.jsonl") if row["split"] == "train"]


def test_what_a_run_of_adapters_leaves(tuned, finished):
    names = {path.name for path in tuned.iterdir()}
    assert names >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "answers.jsonl",
        "chat_template.jinja",
        "checkpoint-6",
        "config.yaml",
        "curves.png",
        "metrics.jsonl",
        "report.html",
        "run.json",
        "tokenizer.json",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".part"))]
    assert "model.safetensors" not in names
    assert json.loads((tuned / "adapter_config.json").read_text())["base_model_name_or_path"] == str(finished)
    assert "<|im_start|>" in (tuned / "chat_template.jinja").read_text(encoding="utf-8")


def test_the_receipt_says_what_was_trained_and_how_it_was_before(tuned, finished):
    found = receipt(tuned)
    assert found["status"] == "finished"
    assert found["model"]["base_model"] == str(finished)
    assert found["model"]["method"] == "lora"
    assert 0 < found["model"]["parameters_trained"] < found["model"]["parameters"]
    assert found["model"]["memory_estimate"]["weights"] > 0
    before, after = found["baselines"]["before training"], found["figures"]
    assert {"eval_loss", "chrf", "stop_rate", "exact_match", "answer_tokens"} <= before.keys() & after.keys()
    assert after["eval_loss"] < before["eval_loss"]
    tokens = found["data"]["ledger"]["total"]["tokens"]
    assert tokens["total"] == tokens["trained"] + tokens["validation"] + tokens["masked"] + tokens["dropped"]
    assert after["eval_tokens"] == tokens["validation"]


def test_answers_stand_beside_each_other(tuned):
    rows = read_json_lines(tuned / "answers.jsonl")
    assert [row["step"] for row in rows] == [0] * 4 + [3] * 4 + [6] * 4
    assert rows[0]["prompt"] == rows[4]["prompt"]
    page = (tuned / "report.html").read_text(encoding="utf-8")
    assert all(row["prompt"] in page for row in rows)
    assert "before training" in page
    assert "of them trained" in page


def test_the_loss_falls(tuned):
    assert losses(tuned)[-1] < losses(tuned)[0] - 0.2


def test_full_fine_tuning_leaves_a_whole_model_that_stops_and_loads(begin, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    figures = begin(tmp_path / "full", "adapt.method=full", "train.max_steps=150", "train.save_steps=null")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "full")
    assert figures["stop_rate"] == 1.0
    assert figures["chrf"] > receipt(tmp_path / "full")["baselines"]["before training"]["chrf"]
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2+3?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    # no length is given: the saved generation config alone must stop it
    answer = model.generate(**asked, do_sample=False, max_new_tokens=20)[0, asked["input_ids"].shape[1] :]
    assert len(answer) < 20


def test_a_merged_adapter_gives_the_same_logits(tuned, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.adaptation.merging import load_adapters

    recipe = load_recipe("merge")
    recipe.main(parse(recipe.MergeConfig, [f"--adapter={tuned}", f"--output_dir={tmp_path / 'merged'}"]))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer) <= merged.config.vocab_size
    base = GPTForCausalLM.from_pretrained(receipt(tuned)["model"]["base_model"])
    adapted = load_adapters(base, {"sums": tuned}).eval()
    ids = tokenizer("<|im_start|>user\n1+1?<|im_end|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)


def test_resuming_an_adapter_ends_where_the_straight_run_does(begin, tuned, tmp_path):
    import shutil

    folder = tmp_path / "resumed"
    shutil.copytree(tuned, folder)
    shutil.rmtree(folder / "checkpoint-6")
    begin(folder, "data.chat_template=chatml", "--resume")
    assert losses(folder) == pytest.approx(losses(tuned), rel=1e-6)
    straight, resumed = (load_file(path / "adapter_model.safetensors") for path in (tuned, folder))
    assert straight.keys() == resumed.keys()
    for name, weight in straight.items():
        torch.testing.assert_close(resumed[name], weight, rtol=1e-6, atol=1e-7)
    assert receipt(folder)["baselines"] == receipt(tuned)["baselines"]


def test_a_base_frozen_in_bfloat16_answers_resumes_and_merges(begin, tmp_path):
    import shutil

    folder, again, narrow = tmp_path / "narrow", tmp_path / "again", ["train.precision=bfloat16"]
    begin(folder, *narrow, "adapt.frozen_dtype=bfloat16")
    assert {row["step"] for row in read_json_lines(folder / "answers.jsonl")} == {0, 3, 6}
    shutil.copytree(folder, again)
    shutil.rmtree(again / "checkpoint-6")
    begin(again, *narrow, "--resume")  # auto is the same here
    assert losses(again) == losses(folder)
    adapter = load_file(folder / "adapter_model.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
    assert all(
        torch.equal(adapter[name], weight) for name, weight in load_file(again / "adapter_model.safetensors").items()
    )
    recipe = load_recipe("merge")
    recipe.main(parse(recipe.MergeConfig, [f"--adapter={folder}", f"--output_dir={tmp_path / 'merged'}"]))


def test_generating_with_an_adapter_and_the_tokens_that_came_with_it(tuned, capsys):
    recipe = load_recipe("generate")
    words = [f"--model={tuned}", "--chat", "temperature=0", "max_new_tokens=6", "prompt=1+1?"]
    (answer,) = recipe.main(parse(recipe.GenerateConfig, words))
    assert capsys.readouterr().out.startswith(f"1+1?\n{answer}")


def test_the_code_on_the_card_loads_the_adapter_on_its_base(tuned, finished):
    card = (tuned / "README.md").read_text(encoding="utf-8")
    assert "library_name: peft" in card
    assert "method lora" in card
    snippet = re.search(r"```python\n(.*?)\n```", card, flags=re.DOTALL)[1]
    for shown, real in (("path/to/lora", tuned), (f"path/to/{finished.name}", finished), ("tokens=100", "tokens=9")):
        assert shown in snippet
        snippet = snippet.replace(shown, str(real))
    done = subprocess.run(
        [sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tuned, env={**os.environ, "PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("Once upon a time")


def test_measuring_an_adapter_and_its_base_by_source(tuned, finished, sums, tmp_path):
    recipe = load_recipe("evaluate_")
    found = {}
    for model in (tuned, finished):
        words = [f"model={model}", f"run={tuned}", "answer.max_new_tokens=4", f"output={tmp_path / 'figures.json'}"]
        (found[model],) = recipe.main(parse(recipe.EvaluateConfig, words)).values()
        assert json.loads((tmp_path / "figures.json").read_text()) == {str(sums): found[model]}
    figures = receipt(tuned)["figures"]
    assert found[tuned]["eval_loss"] == pytest.approx(figures["eval_loss"], rel=1e-5)
    assert found[tuned]["eval_tokens"] == figures["eval_tokens"]
    before = receipt(tuned)["baselines"]["before training"]
    assert found[finished]["eval_loss"] == pytest.approx(before["eval_loss"], rel=1e-5)
    with pytest.raises(InputError, match=r"run = '/nowhere': its config\.yaml has no examples"):
        recipe.main(parse(recipe.EvaluateConfig, ["run=/nowhere"]))


@pytest.mark.parametrize("method", ["pissa", "eva"])
def test_adapters_that_start_from_data_or_weights_load_on_the_plain_base(begin, tmp_path, method):
    recipe = load_recipe("evaluate_")
    begin(tmp_path / method, f"adapt.method={method}", "adapt.rank=4", "train.save_steps=null")
    words = [f"model={tmp_path / method}", f"run={tmp_path / method}", "answer.max_prompts=0"]
    (found,) = recipe.main(parse(recipe.EvaluateConfig, words)).values()
    assert found["eval_loss"] == pytest.approx(receipt(tmp_path / method)["figures"]["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["rslora", "dora", "ia3", "prompt_tuning", "top_layers", "norms", "head"])
def test_every_method_runs(begin, tmp_path, method):
    more = ["train.max_steps=2", "train.eval_steps=null", "train.save_steps=null", "adapt.virtual_tokens=4"]
    figures = begin(tmp_path / method, f"adapt.method={method}", "adapt.top_layers=1", "data.max_length=48", *more)
    assert figures["eval_loss"] > 0
    assert receipt(tmp_path / method)["model"]["parameters_trained"] > 0


def test_padded_rows_grouped_by_length(begin, tmp_path):
    figures = begin(tmp_path / "padded", "data.packing=false", "train.save_steps=null")
    assert figures["eval_loss"] < receipt(tmp_path / "padded")["baselines"]["before training"]["eval_loss"]


def test_preview_shows_and_trains_nothing(begin, tmp_path, capsys):
    assert begin(tmp_path / "none", "preview=2", "data.chat_template=chatml") == {}
    out = capsys.readouterr().out
    assert out.count("<|im_start|>assistant") == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.max_length=65"], r"data.max_length = 65: the model has only 64 positions"),
        (["model=/nowhere"], "/nowhere"),
        (["adapt.method=lorra"], r"adapt.method = 'lorra'.*'lora'"),
        (["adapt.rank=33"], r"adapt.rank = 33"),
        (["adapt.target_modules=[qq_proj]"], r"adapt.target_modules.*'q_proj'"),
        (["data.sources=[{path: /nowhere}]"], "/nowhere"),
        (["data.chat_template=/nowhere.jinja"], r"data.chat_template"),
        (["data.max_length=4"], r"data.max_length = 4"),
        (["answer.max_new_tokens=0"], r"answer.max_new_tokens = 0"),
    ],
)
def test_bad_input_is_refused_before_training(begin, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        begin(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "bad").glob("checkpoint-*"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_to_expect(path):
    recipe = load_recipe("finetune")
    config = parse(recipe.FinetuneConfig, ["--config", str(path)])
    config.data.validate()
    config.adapt.validate()
    header = path.read_text(encoding="utf-8")
    assert f"--config configs/finetune/{path.name}" in header
    assert "Expected" in header
    assert config.output_dir == yaml.safe_load(header)["output_dir"]


def test_command_line_error_is_one_line(tmp_path, capsys):
    recipe = load_recipe("finetune")
    with pytest.raises(SystemExit) as caught:
        run(recipe.main, recipe.FinetuneConfig, [f"output_dir={tmp_path / 'x'}", "data.learn=answers"])
    assert caught.value.code == 2
    assert "data.learn" in capsys.readouterr().err
