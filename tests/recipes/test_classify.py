"""recipes/classify.py and recipes/predict.py from end to end: a tiny model of ours learns which words are kind."""

from __future__ import annotations

import json
import random
import shutil

import numpy as np
import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune.config import parse, run
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "classify").glob("*.yaml"))
KIND, UNKIND, OTHERS = ["good", "fine", "很好"], ["bad", "dull", "很差"], ["plot", "scene", "actor", "故事", "then"]


def sentences(count, label, seed=0):
    """Return rows whose label is made of how many kind and unkind words a text has."""
    chance, rows = random.Random(seed), []
    for _ in range(count):
        kind, unkind = chance.choice([(1, 0), (0, 1), (1, 1), (0, 0)][: 2 if label == "one" else 4])
        said = (
            chance.sample(KIND, kind) + chance.sample(UNKIND, unkind) + chance.choices(OTHERS, k=chance.randint(1, 5))
        )
        chance.shuffle(said)
        names = ["kind"] * kind + ["unkind"] * unkind
        value = {"one": names[:1] and names[0], "several": names, "number": kind - 0.5 * unkind}[label]
        rows.append({"text": " ".join(said), "label": value})
    return rows


@pytest.fixture(scope="session")
def reviews(tmp_path_factory):
    """Return files of rows, by what their labels are."""
    folder, files = tmp_path_factory.mktemp("reviews"), {}
    for label in ("one", "several", "number"):
        files[label] = folder / f"{label}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in sentences(160, label)]
        files[label].write_text("\n".join(lines), encoding="utf-8")
    return files


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Return a tiny checkpoint with a tokenizer, untrained."""
    import torch

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(iter([" ".join(KIND + UNKIND + OTHERS)] * 20), TokenizerConfig(vocab_size=300))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    GPTForCausalLM(preset("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def begin(base, reviews):
    """Return a starter: run the recipe into a folder with further overrides."""
    recipe = load_recipe("classify")

    def run_it(output, *more, label="one"):
        words = [
            f"output_dir={output}",
            f"model={base}",
            f"data.sources=[{{path: {reviews[label]}}}]",
            "data.validation_fraction=0.2",
            "data.max_length=32",
            "adapt.method=full",
            "train.max_steps=40",
            "train.batch_size=4",
            "train.eval_steps=20",
            "train.log_steps=20",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            "judge.resamples=100",
        ]
        return recipe.main(parse(recipe.ClassifyConfig, [*words, *more]))

    return run_it


@pytest.fixture(scope="session")
def told_apart(begin, tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("told") / "apart"
    begin(folder)
    return folder


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def ask(folder, texts, tmp_path, *more):
    """Return the answers of recipes/predict.py."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    recipe = load_recipe("predict")
    words = [f"model={folder}", f"input.path={file}", f"output={tmp_path / 'out.jsonl'}", *more]
    recipe.main(parse(recipe.PredictConfig, words))
    return read_json_lines(tmp_path / "out.jsonl")


def test_what_a_run_leaves(told_apart):
    names = {path.name for path in told_apart.iterdir()}
    assert names >= {"README.md", "config.json", "config.yaml", "model.safetensors", "report.html", "run.json"}
    assert not [name for name in names if name.startswith("checkpoint") or name.endswith((".bin", ".part"))]
    config = json.loads((told_apart / "config.json").read_text())
    assert config["id2label"] == {"0": "kind", "1": "unkind"}
    assert config["problem_type"] == "single_label_classification"


def test_it_learns_and_stands_beside_its_baselines(told_apart):
    found = receipt(told_apart)
    assert found["status"] == "finished"
    figures, task = found["figures"], found["task"]
    assert figures["accuracy"] > 0.9
    assert set(found["baselines"]) == {"majority", "TF-IDF + logistic regression"}
    assert found["baselines"]["majority"]["accuracy"] < 0.7
    assert all(figures["accuracy"] >= told["accuracy"] - 0.2 for told in found["baselines"].values())
    assert task["baselines"]["majority"]["p"] < 0.05
    low, high = task["intervals"]["accuracy"]
    assert low <= figures["accuracy"] <= high
    assert "by_text" not in task  # which only a test over folds asks for
    counts = found["data"]["ledger"]["total"]["examples"]
    assert counts["total"] == 160 == counts["train"] + counts["validation"] + counts.get("dropped", 0)
    assert np.array(task["confusion"]).sum() == counts["validation"]
    assert sum(row["support"] for row in task["by_label"]) == counts["validation"]


def test_the_report_shows_it(told_apart):
    page = (told_apart / "report.html").read_text(encoding="utf-8")
    for said in ("Confusion", "Calibration", "Lengths", "Beside simple models", "By label", "with 95% confidence"):
        assert said in page
    assert "nats per token" not in page
    assert "AutoModelForSequenceClassification" in page
    assert page.count("<svg") >= 5
    card = (told_apart / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "AutoModelForSequenceClassification" in card


TEXTS = ["good plot", "then bad scene 故事 then", "dull", "很好 actor", "a text of quite other words"] * 3


def test_a_pipeline_says_what_predict_says(told_apart, tmp_path):
    from transformers import pipeline

    answers = ask(told_apart, TEXTS, tmp_path, "batch_size=4")
    assert [answer["text"] for answer in answers] == TEXTS
    pipe = pipeline("text-classification", model=str(told_apart), trust_remote_code=True)
    for answer, said in zip(answers, pipe(TEXTS, top_k=None, batch_size=2), strict=True):
        assert answer["label"] == said[0]["label"]
        scores = {each["label"]: each["score"] for each in said}
        assert answer["scores"] == pytest.approx(scores, abs=2e-6)
    assert [answer["label"] for answer in answers[:4]] == ["kind", "unkind", "unkind", "kind"]
    one_by_one = ask(told_apart, TEXTS, tmp_path, "batch_size=1")
    assert [each["scores"] for each in one_by_one] == [pytest.approx(each["scores"], abs=2e-6) for each in answers]


def test_plain_text_and_printed_answers(told_apart, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("good plot\nbad plot\n\n", encoding="utf-8")
    recipe = load_recipe("predict")
    recipe.main(parse(recipe.PredictConfig, [f"model={told_apart}", f"input.path={file}"]))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["label"] for line in lines] == ["kind", "unkind"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_adapter_is_merged_or_stays_and_says_the_same(precision, begin, tmp_path):
    more = ["adapt.method=lora", "adapt.rank=4", "data.packing=false", f"train.precision={precision}"]
    merged = begin(tmp_path / "merged", *more)
    begin(tmp_path / "adapter", *more, "judge.merge=false")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert merged["accuracy"] == receipt(tmp_path / "adapter")["figures"]["accuracy"]
    first, second = (ask(tmp_path / name, TEXTS[:5], tmp_path) for name in ("merged", "adapter"))
    assert [each["scores"] for each in first] == [pytest.approx(each["scores"], abs=1e-5) for each in second]
    assert len({each["scores"]["kind"] for each in first}) > 1
    assert "num_labels=2" in (tmp_path / "adapter" / "report.html").read_text(encoding="utf-8")


def test_an_adapter_of_a_classifier_refuses_another_base(base, begin, tmp_path):
    import torch

    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.adaptation.bases import fingerprint_of

    own, run_folder = tmp_path / "base", tmp_path / "run"
    shutil.copytree(base, own)
    more = ["adapt.method=lora", "adapt.rank=4", "train.max_steps=2", "train.eval_steps=null", "judge.merge=false"]
    begin(run_folder, f"model={own}", "judge.baselines=false", *more)
    assert receipt(run_folder)["model"]["base_fingerprint"] == fingerprint_of(own)  # its embeddings are tied
    assert ask(run_folder, ["good"], tmp_path)
    torch.manual_seed(5)
    GPTForCausalLM(GPTForCausalLM.from_pretrained(own).config).save_pretrained(own)  # the same shapes
    with pytest.raises(InputError, match="it was trained on a base with the fingerprint"):
        ask(run_folder, ["good"], tmp_path)


@pytest.mark.slow
@pytest.mark.drawn
def test_several_labels(begin, tmp_path):
    from transformers import pipeline

    figures = begin(tmp_path / "run", label="several")
    assert figures["micro_f1"] > 0.8 > receipt(tmp_path / "run")["baselines"]["majority"]["micro_f1"]
    answers = ask(tmp_path / "run", ["good bad plot", "plot then"], tmp_path)
    assert [answer["label"] for answer in answers] == [["kind", "unkind"], []]
    said = pipeline("text-classification", model=str(tmp_path / "run"), trust_remote_code=True)("good bad", top_k=None)
    answer = ask(tmp_path / "run", ["good bad"], tmp_path)[0]
    assert answer["scores"] == pytest.approx({each["label"]: each["score"] for each in said}, abs=2e-6)


@pytest.mark.slow
@pytest.mark.drawn
def test_numbers(begin, tmp_path):
    from transformers import pipeline

    figures = begin(tmp_path / "run", "data.problem_type=regression", "train.max_steps=150", label="number")
    assert figures["mse"] < 0.5 * receipt(tmp_path / "run")["baselines"]["mean"]["mse"]
    assert figures["pearson"] > 0.7
    assert "squared error" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    answer = ask(tmp_path / "run", ["good plot"], tmp_path)[0]
    said = pipeline("text-classification", model=str(tmp_path / "run"), trust_remote_code=True)("good plot")
    assert answer["label"] == pytest.approx(said[0]["score"], abs=1e-5)


@pytest.mark.slow
def test_the_best_checkpoint_is_saved_and_a_run_without_progress_stops_early(begin, tmp_path):
    more = ["train.max_steps=60", "train.eval_steps=2", "judge.early_stopping=2", "judge.metric=accuracy"]
    figures = begin(tmp_path / "run", *more, "train.learning_rate=3e-2")
    rows = [row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if row["split"] == "eval"]
    assert figures["accuracy"] == max(row["accuracy"] for row in rows)
    assert rows[-1]["step"] < 60
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))  # the best one's figures do not pass for those of the last step


@pytest.mark.slow
def test_weights_of_labels(begin, tmp_path):
    figures = begin(tmp_path / "run", "judge.class_weights=balanced")
    assert figures["macro_f1"] > 0.8


@pytest.mark.slow
def test_resuming_ends_where_the_straight_run_does(begin, tmp_path):
    straight = begin(tmp_path / "run", "train.save_steps=20", "judge.baselines=false")
    shutil.rmtree(tmp_path / "run" / "checkpoint-40")
    resumed = begin(tmp_path / "run", "train.save_steps=20", "judge.baselines=false", "--resume")
    assert resumed["eval_loss"] == pytest.approx(straight["eval_loss"], rel=1e-5)


@pytest.mark.drawn
def test_folds_are_one_command_that_goes_on_where_it_was_killed(begin, tmp_path):
    output = tmp_path / "run"
    more = ["folds=2", "train.max_steps=6", "train.save_steps=3", "train.eval_steps=null"]
    figures = begin(output, *more)
    found, folds = receipt(output), [receipt(output / f"fold-{k}") for k in range(2)]
    accuracies = [each["figures"]["accuracy"] for each in folds]
    told = found["task"]["folds"]["figures"]["accuracy"]
    assert told["values"] == accuracies
    assert told["mean"] == pytest.approx(np.mean(accuracies)) == figures["accuracy"] == found["figures"]["accuracy"]
    assert told["std"] == pytest.approx(np.std(accuracies, ddof=1))
    counts = [each["data"]["ledger"]["total"]["examples"]["validation"] for each in folds]
    confusion = np.array(found["task"]["confusion"])
    assert confusion.sum() == sum(counts) == sum(row["support"] for row in found["task"]["by_label"])
    assert confusion.trace() == pytest.approx(np.dot(accuracies, counts))
    assert (confusion == np.sum([each["task"]["confusion"] for each in folds], axis=0)).all()
    assert set(found["baselines"]) == {"majority", "TF-IDF + logistic regression"}
    assert {told["pooled_n"] for told in found["task"]["baselines"].values()} == {sum(counts)}
    assert [sum(pair[0] == "1" for pair in each["task"]["by_text"]["ours"].split()) for each in folds] == [
        round(accuracy * count) for accuracy, count in zip(accuracies, counts, strict=True)
    ]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("Folds", "fold-1", "standard deviation", "Confusion", "texts of all folds"))
    assert not (output / "model.safetensors").exists()
    # killed in the second fold, after a checkpoint: the first stays, the second goes on
    killed = receipt(output / "fold-1") | {"status": "running"}
    (output / "fold-1" / "run.json").write_text(json.dumps(killed), encoding="utf-8")
    shutil.rmtree(output / "fold-1" / "checkpoint-6")
    metrics = output / "fold-1" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    slow = [json.dumps(row | {"elapsed_s": 1000.0}) + "\n" for row in rows]
    metrics.write_text("".join(slow), encoding="utf-8")
    before = (output / "fold-0" / "run.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="it already holds a run"):
        begin(output, *more)
    with pytest.raises(InputError, match=r"resume = True: the folds in .* have another configuration: train differ"):
        begin(output, *more, "--resume", "train.seed=7")
    resumed = begin(output, *more, "--resume")
    assert (output / "fold-0" / "run.json").stat().st_mtime_ns == before
    assert [json.loads(line)["step"] for line in (output / "fold-1" / "metrics.jsonl").open()][-1] == 6
    assert receipt(output / "fold-1")["resumed_from"] == [3]
    assert 1000 < receipt(output / "fold-1")["duration_s"] < 1600  # up to the checkpoint, and from there
    assert {receipt(output / f"fold-{k}")["status"] for k in range(2)} == {"finished"}
    assert resumed == pytest.approx(figures, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["eva", "ia3", "top_layers", "head", "prompt_tuning"])
def test_methods_run(begin, tmp_path, method):
    more = [
        "train.max_steps=2",
        "train.eval_steps=null",
        "adapt.top_layers=1",
        "adapt.virtual_tokens=4",
        "adapt.rank=4",
    ]
    packing = "data.packing=false" if method == "prompt_tuning" else "data.packing=true"
    figures = begin(tmp_path / "run", f"adapt.method={method}", packing, *more)
    assert figures["eval_loss"] > 0
    assert ask(tmp_path / "run", ["good"], tmp_path)[0]["label"] in ("kind", "unkind")
    errors = receipt(tmp_path / "run")["task"]["errors"]  # of which a model after two steps has some
    for error in errors:
        assert "".join(text for text, _ in error["parts"]) == error["text"]
        assert any(weight for _, weight in error["parts"])
    assert 'class="for"' in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_from_scratch_reading_both_ways(begin, tmp_path):
    """The tokenizer is made of the training texts; `tiny` has room for 512 tokens."""
    more = ("overrides.residual_dropout=0.01", "train.max_steps=120")  # of 40, chance decides
    figures = begin(tmp_path / "run", "model=new:tiny", "bidirectional=true", *more)
    assert figures["accuracy"] > 0.8
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["is_causal"], config["residual_dropout"]) == (False, 0.01)
    assert receipt(tmp_path / "run")["model"]["preset"] == "tiny"
    assert ask(tmp_path / "run", ["good plot"], tmp_path)[0]["label"] == "kind"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data.max_length=65"], r"data\.max_length = 65: the model has only 64 positions"),
        (["model=/nowhere"], "/nowhere"),
        (["adapt.method=lorra"], r"adapt\.method = 'lorra'.*'lora'"),
        (["adapt.method=prompt_tuning"], r"data\.packing = True: prompt_tuning puts vectors"),
        (["data.text_column=texts"], r"one\.jsonl:1.*no column 'texts'.*Did you mean 'text'"),
        (["judge.metric=mse"], r"judge\.metric = 'mse'"),
        (["judge.early_stopping=1", "train.eval_steps=null"], r"judge\.early_stopping = 1.*Set train\.eval_steps"),
        (["data.sources=[{path: /nowhere.jsonl}]"], "/nowhere"),
        (["folds=1"], "folds = 1: there must be at least 2"),
        (["folds=2", "data.folds=2"], r"folds = 2: data\.folds=2 asks for one fold"),
        (["folds=2", "data.validation=[{path: x.jsonl}]"], "held-out rows are named by validation"),
        (["folds=1000"], "no text is left to hold out"),
    ],
)
def test_bad_input_is_refused_before_training(begin, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        begin(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)


def test_what_is_no_classifier_is_refused(base, told_apart, tmp_path):
    with pytest.raises(InputError, match="it is no model of a task, but ForCausalLM"):
        ask(base, ["good"], tmp_path)
    with pytest.raises(InputError, match=r"texts\.jsonl:2 = ' ': the text is empty"):
        ask(told_apart, ["good", " "], tmp_path)
    with pytest.raises(InputError, match="batch_size = 0"):
        ask(told_apart, ["good"], tmp_path, "batch_size=0")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_to_expect(path):
    recipe = load_recipe("classify")
    config = parse(recipe.ClassifyConfig, ["--config", str(path)])
    config.data.validate()
    config.adapt.validate()
    header = path.read_text(encoding="utf-8")
    assert f"--config configs/classify/{path.name}" in header
    assert "Expected" in header
    assert config.output_dir == yaml.safe_load(header)["output_dir"]


def test_command_line_error_is_one_line(tmp_path, capsys):
    recipe = load_recipe("classify")
    with pytest.raises(SystemExit) as caught:
        run(recipe.main, recipe.ClassifyConfig, [f"output_dir={tmp_path / 'x'}", "data.problem_type=tags"])
    assert caught.value.code == 2
    assert "data.problem_type" in capsys.readouterr().err
