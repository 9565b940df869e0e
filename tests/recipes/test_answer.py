"""recipes/answer.py and recipes/predict.py from end to end: a tiny model of ours learns who owns what."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune.config import parse, run
from gpt_finetune.data.readers import Record
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "answer").glob("*.yaml"))
THINGS, NAMES = ["hat", "cup", "书"], ["Ann", "Bob", "小明"]


def questions(count, seed=0):
    """Return questions on who has what; a third of them asks for a thing that nobody has."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        things = chance.sample(THINGS, 2)
        names = chance.sample(NAMES, 2)
        context = ", ".join(f"{thing} of {name}" for thing, name in zip(things, names, strict=True))
        asked = chance.choice(THINGS)
        answers = [name for thing, name in zip(things, names, strict=True) if thing == asked]
        rows.append({"question": f"{asked}?", "context": context, "answers": answers})
    return rows


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory):
    """Return a file of questions."""
    file = tmp_path_factory.mktemp("questions") / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in questions(8)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Return a tiny checkpoint with a tokenizer, untrained."""
    import torch

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(iter([" of ".join(THINGS + NAMES)] * 20), TokenizerConfig(vocab_size=300))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    GPTForCausalLM(preset("tiny", vocab_size=len(tokenizer), num_hidden_layers=2, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def begin(base, rows_file):
    """Return a starter: run the recipe into a folder with further overrides; eight rows on both sides of the split."""
    recipe = load_recipe("answer")

    def run_it(output, *more):
        words = [
            f"output_dir={output}",
            f"model={base}",
            f"data.sources=[{{path: {rows_file}}}]",
            "data.validation_fraction=0.4",
            "data.max_length=48",
            "data.question_length=12",
            "data.overlap=8",
            "adapt.method=full",
            "train.max_steps=60",
            "train.batch_size=8",
            "train.eval_steps=30",
            "train.log_steps=30",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            "judge.resamples=100",
        ]
        return recipe.main(parse(recipe.AnswerConfig, [*words, *more]))

    return run_it


@pytest.fixture(scope="session")
def answered(begin, tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("answered") / "run"
    begin(folder)
    return folder


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def prepared(folder):
    """Return the rows of a run, prepared as it did."""
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.tasks.answering import prepare_answers

    config = parse(load_recipe("answer").AnswerConfig, ["--config", str(folder / "config.yaml")])
    return prepare_answers(config.data, load_tokenizer(str(folder)), config.spans)


def records(asked):
    return [Record({"question": each.question, "context": each.context}, "row") for each in asked]


def test_what_a_run_leaves(answered):
    names = {path.name for path in answered.iterdir()}
    assert names >= {"README.md", "config.json", "config.yaml", "model.safetensors", "report.html", "run.json"}
    found = receipt(answered)
    assert found["status"] == "finished"
    assert set(found["baselines"]) >= {"first sentence", "longest noun phrase"}
    task, figures = found["task"], found["figures"]
    assert set(task["baselines"]) == set(found["baselines"])
    assert all(0 < told["p"] <= 1 for told in task["baselines"].values())
    for name, (low, high) in task["intervals"].items():
        assert low <= figures[name] <= high
    assert {"exact_match", "token_f1", "no_answer_accuracy", "eval_loss"} <= figures.keys()
    assert (
        sum(side["questions"] for side in task["sides"].values())
        == found["data"]["ledger"]["total"]["examples"]["validation"]
    )
    shown = [*task["errors"], *task["examples"]]
    assert shown
    assert all(set(each) == {"text", "label", "predicted", "loss", "parts"} for each in shown)
    for each in shown:
        assert "".join(text for text, _ in each["parts"]) == each["text"]
        assert max(abs(weight) for _, weight in each["parts"]) == 1


def test_right_answers_are_shown_with_what_spoke_for_them(answered, tmp_path):
    import shutil

    import numpy as np

    from gpt_finetune.report import write_report
    from gpt_finetune.tasks.answer_attribution import explain_answers
    from gpt_finetune.tasks.answer_judging import judge
    from gpt_finetune.tasks.answering import load_answerer
    from gpt_finetune.tasks.config import JudgeConfig
    from gpt_finetune.tasks.spans import read_row

    data, said = prepared(answered), []
    for window in data.validation.windows:
        sure = np.full((2, len(window.ids)), -9.0)
        sure[0, window.start] = sure[1, window.end] = 0
        said.append(read_row(*sure, window.bounds, (window.start, window.end), data.spans))
    section = judge(data, said, {}, JudgeConfig(resamples=100)).section
    assert section["errors"] == []
    assert len(section["examples"]) == sum(bool(asked.answers) for asked in data.asked) > 0
    explain_answers(load_answerer(str(answered)).model, data, said, section["examples"])
    for each in section["examples"]:
        assert each["label"] == each["predicted"] != "no answer"
        assert "".join(text for text, _ in each["parts"]) == each["text"]
        assert max(abs(weight) for _, weight in each["parts"]) == 1
    folder = tmp_path / "run"
    shutil.copytree(answered, folder)
    told = receipt(folder)
    told["task"] |= {"errors": [], "examples": section["examples"]}
    (folder / "run.json").write_text(json.dumps(told), encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    assert "Right answers" in page
    assert "Worst errors" not in page
    assert 'class="for"' in page.split("Right answers")[1].split("<figure")[1]


def test_the_report_shows_it(answered):
    page = (answered / "report.html").read_text(encoding="utf-8")
    told = ("longest noun phrase", "Lengths", "Answer or none", "nats per position", "with 95% confidence")
    for said in (*told, "Worst errors"):
        assert said in page
    card = (answered / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: question-answering" in card
    assert "AutoModelForQuestionAnswering" in card


def test_it_learns_eight_rows_by_heart(answered):
    from gpt_finetune.metrics.answers import answer_figures, score_answers
    from gpt_finetune.tasks.answering import load_answerer

    asked = [row.target for row in prepared(answered).texts["train"]]
    answers = [said["answer"] for said in load_answerer(str(answered))(records(asked), 4, None)]
    figures = answer_figures(score_answers(answers, [each.answers for each in asked]))
    assert figures == {"exact_match": 1.0, "token_f1": 1.0, "no_answer_accuracy": 1.0}


def test_a_finished_model_says_what_the_evaluation_measured(answered):
    from gpt_finetune.metrics.answers import answer_figures, score_answers
    from gpt_finetune.tasks.answering import load_answerer

    data, answerer = prepared(answered), load_answerer(str(answered))
    said = answerer(records(data.asked), 3, None)
    figures = answer_figures(score_answers([each["answer"] for each in said], data.references))
    assert figures == {name: receipt(answered)["figures"][name] for name in figures}
    alone = answerer(records(data.asked), 1, None)
    for one, other in zip(said, alone, strict=True):
        assert one["answer"] == other["answer"]
        assert one["score"] == pytest.approx(other["score"], abs=2e-6)
    asked = data.asked[0]
    assert answerer.ask(asked.question, asked.context)["answer"] == said[0]["answer"]
    start, end = said[0]["start"], said[0]["end"]
    assert said[0]["answer"] == (asked.context[start:end] if said[0]["answer"] else "")


def test_the_auto_class_opens_it(answered):
    from transformers import AutoModelForQuestionAnswering

    model, info = AutoModelForQuestionAnswering.from_pretrained(
        answered, trust_remote_code=True, output_loading_info=True
    )
    assert type(model).__name__ == "GPTForQuestionAnswering"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_predict_answers_rows_and_refuses_others(answered, tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"question": "hat?", "context": "hat of Bob, cup of Ann. " * 9}
    file.write_text(json.dumps(row), encoding="utf-8")
    recipe = load_recipe("predict")
    words = [f"model={answered}", f"input.path={file}", f"output={tmp_path / 'out.jsonl'}"]
    recipe.main(parse(recipe.PredictConfig, words))
    (said,) = read_json_lines(tmp_path / "out.jsonl")
    assert said.keys() == {"question", "answer", "score", "start", "end", "n_best"}
    assert 1 <= len(said["n_best"]) <= 5
    file.write_text(json.dumps({"question": "hat?"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*no column 'context'"):
        recipe.main(parse(recipe.PredictConfig, words))


@pytest.mark.slow
def test_an_adapter_says_what_the_merged_model_does_and_both_ways_works(begin, tmp_path):
    from gpt_finetune.tasks.answering import load_answerer

    more = ["adapt.method=lora", "adapt.rank=4", "bidirectional=true", "train.max_steps=20", "train.learning_rate=1e-3"]
    begin(tmp_path / "merged", *more)
    begin(tmp_path / "adapter", *more, "judge.merge=false")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["is_causal"] is False
    some = [Record({"question": "hat?", "context": "cup of Ann, hat of Bob"}, "row")]
    first, second = (load_answerer(str(tmp_path / name))(some, 1, None)[0] for name in ("merged", "adapter"))
    assert first["n_best"][0]["answer"] == second["n_best"][0]["answer"]
    assert first["score"] == pytest.approx(second["score"], abs=1e-4)


@pytest.mark.slow
def test_accumulated_batches_have_the_loss_of_the_large_one(begin, tmp_path):
    more = ["train.max_steps=4", "train.eval_steps=null", "judge.baselines=false"]
    whole = begin(tmp_path / "whole", *more)
    parts = begin(tmp_path / "parts", *more, "train.batch_size=2", "train.accumulation=4")
    assert parts["eval_loss"] == pytest.approx(whole["eval_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.max_length=65"], r"data\.max_length = 65: the model has only 64 positions"),
        (["adapt.method=prompt_tuning"], r"adapt\.method = 'prompt_tuning': it puts vectors"),
        (["data.context_column=text"], r"rows\.jsonl:1.*no column 'text'"),
        (["judge.metric=mse"], r"judge\.metric = 'mse'"),
        (["data.max_length=20"], r"data\.max_length = 20: .* leave no room below 25"),
    ],
)
def test_bad_input_is_refused_before_training(begin, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        begin(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)


def test_what_answers_nothing_is_refused(base):
    from gpt_finetune.tasks.answering import load_answerer

    with pytest.raises(InputError, match="it is no model ForQuestionAnswering, but ForCausalLM"):
        load_answerer(str(base))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_to_expect(path):
    header = path.read_text(encoding="utf-8")
    recipe, kind = ("choose", "ChooseConfig") if path.stem.startswith("choice") else ("answer", "AnswerConfig")
    config = parse(getattr(load_recipe(recipe), kind), ["--config", str(path)])
    config.data.validate()
    config.adapt.validate()
    assert f"recipes/{recipe}.py --config configs/answer/{path.name}" in header
    assert "Expected" in header
    assert config.output_dir == yaml.safe_load(header)["output_dir"]


def test_command_line_error_is_one_line(tmp_path, capsys):
    recipe = load_recipe("answer")
    with pytest.raises(SystemExit) as caught:
        run(recipe.main, recipe.AnswerConfig, [f"output_dir={tmp_path / 'x'}", "data.on_missing=ignore"])
    assert caught.value.code == 2
    assert "data.on_missing" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_are_cross_validated(begin, tmp_path):
    more = ["folds=2", "train.max_steps=2", "train.eval_steps=null", "judge.resamples=100"]
    figures = begin(tmp_path / "run", *more)
    found = receipt(tmp_path / "run")
    assert figures == found["figures"]
    assert len(found["task"]["folds"]["figures"]["token_f1"]["values"]) == 2
    for told in found["task"]["baselines"].values():
        assert told["test"] == "paired bootstrap of token_f1 over the texts of all folds"
        assert 0 < told["p"] <= 1
