"""recipes/zero_shot.py: label words by likelihood, calibration, examples in the prompt, and what a run leaves."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.tasks import prompting
from gpt_finetune.tasks.labels import softmax
from gpt_finetune.tasks.prompt_config import PromptConfig
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "zero_shot").glob("*.yaml"))
PROMPTS = ["def f(a", "床前明月光，疑是", "x = 1\nreturn x", "a"]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_scores_are_likelihoods_of_whole_texts(make_model, tokenizer, architecture):
    model = make_model(architecture, vocab_size=len(tokenizer))
    words = ["a", " b", "月光 return"]  # one token, and several
    config = PromptConfig("{text}:", batch_size=3)
    prompts = [config.write(text) for text in PROMPTS]
    found = prompting.score_words(model, tokenizer, prompts, words, config)
    opening = tokenizer("a")["input_ids"][:-1]
    assert found.shape == (4, 3)
    lengths = []
    for i, prompt in enumerate(prompts):
        for j, word in enumerate(words):
            begin = opening + tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([begin + tokenizer(word, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                odds = model(input_ids=ids).logits.double().log_softmax(-1)[0]
            by_hand = sum(float(odds[t - 1, ids[0, t]]) for t in range(len(begin), ids.shape[1]))
            assert found[i, j] == pytest.approx(by_hand, abs=1e-4)
            lengths.append(ids.shape[1] - len(begin))
    mean = prompting.score_words(model, tokenizer, prompts, words, PromptConfig("{text}:", normalise=True))
    assert mean * np.array(lengths[:3]) == pytest.approx(found, abs=1e-4)


def test_calibration_by_hand():
    """A label that a text without content makes twice as likely must be twice as likely to win."""
    free = np.log([[0.5, 0.25, 0.25]])
    scores = np.log([[0.5, 0.25, 0.25], [0.6, 0.1, 0.3]])
    assert softmax(prompting.calibrated(scores, free)) == pytest.approx(
        np.array([[1 / 3, 1 / 3, 1 / 3], [1.2 / 2.8, 0.4 / 2.8, 1.2 / 2.8]])
    )


def test_texts_to_calibrate_by():
    texts = [f"text {i}" for i in range(9)]
    assert prompting.calibration_texts(texts, PromptConfig(content_free=["N/A", ""])) == ["N/A", ""]
    drawn = prompting.calibration_texts(texts, PromptConfig(calibration_texts=4))
    assert len(set(drawn)) == 4
    assert set(drawn) <= set(texts)
    assert drawn != prompting.calibration_texts(texts, PromptConfig(calibration_texts=4, seed=1))
    with pytest.raises(InputError, match=r"prompt\.calibration_texts = 10: there are 9 training texts"):
        prompting.calibration_texts(texts, PromptConfig(calibration_texts=10))


def test_calibrated_by_the_texts_themselves_no_label_is_favoured():
    """A model that likes one label everywhere is told by the others by what the texts add to that."""
    scores = np.log([[0.99, 0.01], [0.9, 0.1], [0.98, 0.02], [0.8, 0.2]])
    assert prompting.calibrated(scores, scores).argmax(1).tolist() == [0, 1, 0, 1]


def test_texts_are_cut_where_tokens_end(tokenizer):
    texts = ["def add(a, b):" * 5, "short", "床前明月光" * 9]
    for text, kept in zip(texts, prompting.cut_texts(tokenizer, texts, 6), strict=True):
        assert text.startswith(kept)
        assert len(tokenizer(kept, add_special_tokens=False)["input_ids"]) <= 6
    assert prompting.cut_texts(tokenizer, texts, 10**6) == texts


def test_words_of_labels():
    config = PromptConfig(words={"tech": " technology"})
    assert config.words_of(["tech", "sport"]) == [" technology", " sport"]
    with pytest.raises(InputError, match=r"prompt\.words = 'tech': there is no such label.*'teck'"):
        config.words_of(["teck", "sport"])
    with pytest.raises(InputError, match="same words"):
        PromptConfig(words={"a": " b"}).words_of(["a", "b"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"template": "Label:"}, r"prompt\.template"),
        ({"template": "{text}{text}:"}, r"prompt\.template"),
        ({"template": "Label: {text}"}, r"prompt\.template"),
        ({"content_free": []}, r"prompt\.content_free"),
        ({"shots": -1}, r"prompt\.shots = -1"),
        ({"calibration_texts": -1}, r"prompt\.calibration_texts = -1"),
        ({"calibration_texts": 4, "calibrate": False}, r"prompt\.calibration_texts = 4: calibrate is false"),
        ({"batch_size": 0}, r"prompt\.batch_size = 0"),
        ({"words": {"a": " "}}, r"prompt\.words\.a"),
    ],
)
def test_bad_sections(fields, message):
    with pytest.raises(InputError, match=message):
        PromptConfig(**fields).validate()


def test_too_long_or_ambiguous(make_model, tokenizer):
    model = make_model(vocab_size=len(tokenizer), max_position_embeddings=16)
    with pytest.raises(InputError, match=r"prompt\.shots = 0: a prompt with its label takes .* 16 positions"):
        prompting.score_words(model, tokenizer, ["床前明月光" * 20], [" a", " b"], PromptConfig())
    with pytest.raises(InputError, match="same tokens"):
        prompting.score_words(model, tokenizer, ["a"], [" a", " a"], PromptConfig())


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Return a file of labelled texts."""
    chance, file = random.Random(0), tmp_path_factory.mktemp("labelled") / "rows.jsonl"
    made = [{"text": f"def f{i}(a)", "label": chance.choice(["return", "else"])} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return file


@pytest.fixture
def ask(finished, rows, tmp_path):
    """Return a runner of the recipe; its folder, and the figures."""
    recipe = load_recipe("zero_shot")

    def run_it(*more, name="run"):
        words = [f"output_dir={tmp_path / name}", f"model={finished}", f"data.sources=[{{path: {rows}}}]"]
        words += ["data.validation_fraction=0.3", "data.max_length=16", "judge.resamples=100"]
        return tmp_path / name, recipe.main(parse(recipe.ZeroShotConfig, [*words, *more]))

    return run_it


@pytest.mark.drawn
def test_what_a_run_leaves(ask, rows):
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.tasks.classification import prepare_task
    from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig
    from gpt_finetune.tasks.heads import padded_tokenizer

    folder, figures = ask()
    found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert found["status"] == "finished"
    assert found["figures"] == figures
    assert set(found["baselines"]) == {"majority", "TF-IDF + logistic regression"}
    assert found["task"]["baselines"]["majority"]["test"] == "McNemar's exact test"
    low, high = found["task"]["intervals"]["accuracy"]
    assert low <= figures["accuracy"] <= high
    assert found["task"]["prompt"]["words"] == {"else": " else", "return": " return"}
    told = read_json_lines(folder / "predictions.jsonl")
    assert figures["accuracy"] == pytest.approx(np.mean([row["right"] == row["label"] for row in told]))
    assert all(row["scores"][row["label"]] == max(row["scores"].values()) for row in told)
    tokenizer = padded_tokenizer(load_tokenizer(found["model"]["base_model"]), 16)
    same = ClassifyDataConfig([RowSourceConfig(str(rows))], validation_fraction=0.3, max_length=16)
    trained = prepare_task(same, tokenizer)  # what recipes/classify.py holds out
    assert sorted(row["text"] for row in told) == sorted(row.text for row in trained.texts["validation"])
    assert "Confusion" in (folder / "report.html").read_text(encoding="utf-8")


def test_examples_in_the_prompt(ask, finished, monkeypatch):
    asked = []
    original = prompting.score_words

    def watched(model, tokenizer, prompts, words, config):
        asked.append(list(prompts))
        return original(model, tokenizer, prompts, words, config)

    monkeypatch.setattr(prompting, "score_words", watched)
    more = ["prompt.shots=2", "prompt.template={text}:", "prompt.separator=;", "judge.baselines=false"]
    folder, figures = ask(*more, "data.max_length=6")
    assert len({prompt.split(";")[0] for prompt in asked[0]}) == 1
    for prompt in asked[0]:
        assert prompt.count(": return") == prompt.count(": else") == 1  # balanced
    assert asked[1][0].endswith(";N/A:")
    receipt = json.loads((folder / "run.json").read_text())
    assert receipt["baselines"] == {}
    assert receipt["task"]["prompt"]["calibrate"] == ["N/A"]
    again = ask(*more, "data.max_length=6", name="again")[1]
    assert again == figures
    folder, _ = ask(*more, "prompt.calibration_texts=5", name="by-texts")
    assert len(asked[-1]) == 5
    assert not any(prompt.endswith(";N/A:") for prompt in asked[-1])
    assert not set(asked[-1]) & set(asked[-2])  # none of those that are asked for
    receipt = json.loads((folder / "run.json").read_text())
    assert receipt["task"]["prompt"]["calibrate"] == "5 training texts"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["prompt.shots=999"], r"prompt\.shots = 999: there are \d+ training texts"),
        (["prompt.words={other: ' y'}"], r"there is no such label"),
        (["prompt.words={yes: ' y'}"], r"prompt\.words = True: YAML reads a bare yes"),
        (["prompt.template=ask"], r"prompt\.template"),
        (["model=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input(ask, more, message):
    with pytest.raises(InputError, match=message):
        ask(*more)


def test_several_labels_are_refused(ask, tmp_path):
    file = tmp_path / "several.jsonl"
    file.write_text("".join(json.dumps({"text": f"t{i}", "label": ["a", "b"][: 1 + i % 2]}) + "\n" for i in range(20)))
    with pytest.raises(InputError, match="a prompt asks for one label"):
        ask(f"data.sources=[{{path: {file}}}]")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs(path):
    recipe = load_recipe("zero_shot")
    config = parse(recipe.ZeroShotConfig, ["--config", str(path)])
    config.data.validate()
    config.prompt.validate()
    assert f"--config configs/zero_shot/{path.name}" in path.read_text(encoding="utf-8")
