"""recipes/evaluate_.py beside baselines: a tiny model of ours, columns as turns, and the report of its run."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.metrics import text_metrics
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "generate").glob("*.yaml"))
TEMPLATE = "{user: 'Say: {asked}', assistant: '{json:kind,answer}'}"


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Return a file of rows with columns of their own."""
    file = tmp_path_factory.mktemp("table") / "rows.jsonl"
    rows = [{"asked": f"{a} and {b}. More", "kind": "sum", "answer": a + b} for a in range(6) for b in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tuned(finished, table, tmp_path_factory):
    """Return the folder of a finished run on it."""
    recipe, folder = load_recipe("finetune"), tmp_path_factory.mktemp("generate") / "sums"
    words = [
        f"output_dir={folder}",
        f"model={finished}",
        f"data.sources=[{{path: {table}, template: {TEMPLATE}}}]",
        "data.validation_fraction=0.3",
        "data.max_length=56",
        "adapt.method=full",
        "train.max_steps=8",
        "train.batch_size=4",
        "train.precision=float32",
        "train.learning_rate=1e-2",
        "answer.max_new_tokens=12",
        "answer.max_prompts=7",
    ]
    recipe.main(parse(recipe.FinetuneConfig, words))
    return folder


@pytest.fixture
def measure(tuned, tmp_path):
    """Return a runner of the recipe on a copy of the run; the copy's folder and what is found."""

    def run_it(*more):
        folder = tmp_path / "run"
        if not folder.exists():
            shutil.copytree(tuned, folder)
        recipe = load_recipe("evaluate_")
        words = [f"run={folder}", f"output={tmp_path / 'out.json'}", "compare.resamples=100", *more]
        return folder, recipe.main(parse(recipe.EvaluateConfig, words))

    return run_it


def test_beside_baselines_and_in_the_report(measure, tuned, tmp_path):
    names = ["lead", "copy", "frequent", "retrieval", "dictionary", "pattern"]
    folder, found = measure(f"compare.baselines=[{', '.join(names)}]", "compare.metric=triples", "compare.errors=3")
    before, after = receipt(tuned), receipt(folder)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == found
    shared = ("eval_loss", "chrf", "bleu", "rougeL", "token_f1", "exact_match")
    assert {name: found["figures"][name] for name in shared} == pytest.approx(
        {name: before["figures"][name] for name in shared}, rel=1e-4
    )
    task = after["task"]
    assert (task["name"], task["leading"], task["prompts"], task["resamples"]) == ("generation", "micro_f1", 7, 100)
    assert set(task["baselines"]) == set(names) == set(after["baselines"]) - {"before training"}
    for name in names:
        told = task["baselines"][name]
        assert told["test"] == "paired bootstrap of micro_f1"
        assert 0 < told["p"] <= 1
        assert {key: told[key] for key in after["baselines"][name]} == after["baselines"][name]
    assert after["baselines"]["lead"]["malformed_rate"] == 1
    assert after["baselines"]["pattern"]["malformed_rate"] == 0
    assert after["baselines"]["pattern"]["micro_f1"] >= 0.5  # the kind is always the same
    for name, (low, high) in task["intervals"].items():
        assert low <= after["figures"][name] <= high
    assert len(task["errors"]) <= 3
    page = (folder / "report.html").read_text(encoding="utf-8")
    for said in ("Beside simple models", "dictionary", "Malformed", "ROUGE-1", "Worst errors", "with 95% confidence"):
        assert said in page
    assert "micro_f1" in (folder / "README.md").read_text(encoding="utf-8") or "Micro F1" in page


def test_baselines_answer_the_prompts_of_the_run(measure, tuned, table):
    folder, _ = measure("compare.baselines=[copy]")
    shown = {row["prompt"]: row["reference"] for row in read_json_lines(tuned / "answers.jsonl")}
    assert len(shown) == 7  # all of those that were asked
    by_hand = text_metrics([prompt.removeprefix("Say: ") for prompt in shown], list(shown.values()))
    told = receipt(folder)["baselines"]["copy"]
    assert {name: told[name] for name in by_hand} == pytest.approx(by_hand)


def test_other_prompts_or_models_leave_the_receipt_alone(measure, tuned, finished):
    folder, found = measure("compare.baselines=[frequent]", "answer.max_prompts=3")
    assert found["task"]["prompts"] == 3
    assert "task" not in receipt(folder)
    _, found = measure("compare.baselines=[frequent]", f"model={finished}")
    assert "task" not in receipt(folder)
    assert found["figures"]["eval_loss"] > receipt(folder)["figures"]["eval_loss"]


def test_without_baselines_it_says_the_figures_by_source(measure, table):
    folder, found = measure()
    assert set(found) == {str(table)}
    assert found[str(table)]["eval_loss"] == pytest.approx(receipt(folder)["figures"]["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["compare.baselines=[leed]"], r"compare\.baselines = 'leed'.*'lead'"),
        (["compare.baselines=[lead]", "compare.metric=chrff"], r"compare\.metric = 'chrff'.*'chrf'"),
        (["compare.baselines=[lead]", "compare.column=ask"], r"compare\.column = 'ask'.*'asked'"),
        (["compare.baselines=[lead]", "answer.max_prompts=0"], r"answer\.max_prompts = 0: no prompt is asked"),
        (["compare.resamples=1"], r"compare\.resamples = 1"),
    ],
)
def test_bad_input(measure, more, message):
    with pytest.raises(InputError, match=message):
        measure(*more)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs(path):
    recipe = load_recipe("finetune")
    config = parse(recipe.FinetuneConfig, ["--config", str(path)])
    config.data.validate()
    header = path.read_text(encoding="utf-8").split("output_dir")[0]
    assert f"--config configs/generate/{path.name}" in header
    assert "Expected:" in header
    command = next(line for line in header.splitlines() if "evaluate_.py" in line).partition("evaluate_.py")[2]
    evaluate = load_recipe("evaluate_")
    words = [word.replace("'", "") for word in yaml.safe_load(f"[{_quoted(command)}]")]
    told = parse(evaluate.EvaluateConfig, words)
    assert told.run == config.output_dir
    assert told.compare.baselines
    told.compare.validate()


def _quoted(command):
    import shlex

    return ", ".join(json.dumps(word) for word in shlex.split(command))
