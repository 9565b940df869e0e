"""recipes/tag.py and recipes/predict.py from end to end: a tiny model of ours learns names, in English and Chinese."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "tag").glob("*.yaml"))
NAMES = {"PER": ["anna", "bob lee", "cy"], "LOC": ["rome", "new york"]}
OTHERS = ["went", "to", "saw", "in", "the", "then", "."]
CHINESE = {"PER": ["小明", "李华"], "LOC": ["北京", "上海"]}
SIGNS = ["去", "了", "看", "见", "在", "。"]


def sentence(chance, names, others):
    """Return words and tags; names have as many words as they have parts."""
    words, tags = [], []
    for _ in range(chance.randint(2, 5)):
        words += (said := chance.choices(others, k=chance.randint(1, 3)))
        tags += ["O"] * len(said)
        kind = chance.choice(list(names))
        parts = chance.choice(names[kind]).split()
        words += parts
        tags += [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
    return {"words": words, "tags": tags}


@pytest.fixture(scope="session")
def sentences(tmp_path_factory):
    """Return files of rows: English words, Chinese words, English commands with slots."""
    folder, chance = tmp_path_factory.mktemp("sentences"), random.Random(0)
    made = {"en": [sentence(chance, NAMES, OTHERS) for _ in range(120)]}
    made["zh"] = [sentence(chance, CHINESE, SIGNS) for _ in range(120)]
    slots = [{"who": chance.choice(NAMES["PER"]), "where": chance.choice(NAMES["LOC"])} for _ in range(60)]
    made["slots"] = [{"text": f"saw {s['who']} {i} in {s['where']}", "slots": s} for i, s in enumerate(slots)]
    for name, rows in made.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Return a tiny checkpoint with a tokenizer, untrained."""
    import torch

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(iter(["the then went saw. anna bob lee cy rome"] * 20), TokenizerConfig(vocab_size=280))
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    GPTForCausalLM(preset("tiny", vocab_size=len(tokenizer), num_hidden_layers=1, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def begin(base, sentences):
    """Return a starter: run the recipe into a folder with further overrides."""
    recipe = load_recipe("tag")

    def run_it(output, *more, rows="en"):
        words = [
            f"output_dir={output}",
            f"model={base}",
            f"data.sources=[{{path: {sentences / rows}.jsonl}}]",
            "data.validation_fraction=0.2",
            "data.max_length=48",
            "data.overlap=8",
            "adapt.method=full",
            "train.max_steps=40",
            "train.batch_size=4",
            "train.eval_steps=20",
            "train.log_steps=20",
            "train.precision=float32",
            "train.learning_rate=1e-2",
            "judge.resamples=100",
        ]
        return recipe.main(parse(recipe.TagConfig, [*words, *more]))

    return run_it


@pytest.fixture(scope="session")
def tagged(begin, tmp_path_factory):
    """Return the folder of a finished run on English words, reading both ways."""
    folder = tmp_path_factory.mktemp("tagged") / "run"
    begin(folder, "bidirectional=true")
    return folder


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def ask(folder, rows, tmp_path, *more):
    """Return the answers of recipes/predict.py."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    recipe = load_recipe("predict")
    words = [f"model={folder}", f"input.path={file}", f"output={tmp_path / 'out.jsonl'}", *more]
    recipe.main(parse(recipe.PredictConfig, words))
    return read_json_lines(tmp_path / "out.jsonl")


def test_it_learns_and_stands_beside_its_baseline(tagged):
    found = receipt(tagged)
    assert found["status"] == "finished"
    figures, task = found["figures"], found["task"]
    assert figures["entity_f1"] > 0.9
    assert figures["accuracy"] > 0.9
    (name,) = found["baselines"]
    assert name == "most frequent tag per word"
    assert 0 < found["baselines"][name]["entity_f1"] <= 1
    assert {"entity_f1", "test", "p", "seconds"} <= task["baselines"][name].keys()
    low, high = task["intervals"]["entity_f1"]
    assert low <= figures["entity_f1"] <= high
    assert [row["label"] for row in task["by_label"]] == ["LOC", "PER"]
    words = sum(map(sum, task["confusion"]))
    right = sum(row[i] for i, row in enumerate(task["confusion"]))
    assert figures["accuracy"] == pytest.approx(right / words)
    config = json.loads((tagged / "config.json").read_text())
    assert config["architectures"] == ["GPTForTokenClassification"]
    assert config["is_causal"] is False
    assert list(config["id2label"].values()) == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert not [path for path in tagged.iterdir() if path.name.startswith("checkpoint")]


def test_the_report_shows_it(tagged):
    page = (tagged / "report.html").read_text(encoding="utf-8")
    for said in ("Confusion", "Lengths", "Beside simple models", "By label", "names", "Entity F1", "paired bootstrap"):
        assert said in page
    for error in receipt(tagged)["task"]["errors"]:
        told, text = error["explained"], "".join(part for part, _ in error["parts"])
        assert text == error["text"]
        assert told["word"] == text.split(" ")[told["place"]]
        assert told["predicted"] != told["right"]
    card = (tagged / "README.md").read_text(encoding="utf-8")
    assert "pipeline_tag: token-classification" in card


def test_a_pipeline_says_of_last_tokens_what_predict_says_of_words(tagged, tmp_path):
    from transformers import pipeline

    texts = ["then anna saw bob lee in new york", "the rome .", "cy"]
    answers = ask(tagged, [{"text": text} for text in texts], tmp_path)
    pipe = pipeline("token-classification", model=str(tagged), trust_remote_code=True, ignore_labels=[])
    for text, answer, tokens in zip(texts, answers, pipe(texts, batch_size=2), strict=True):
        ends = np.cumsum([len(word) + 1 for word in answer["words"]]) - 1
        last = {token["end"]: token for token in tokens}  # the pipeline tags every token of a word
        assert [last[end]["entity"] for end in ends] == answer["tags"]
        assert [last[end]["score"] for end in ends] == pytest.approx(answer["scores"], abs=2e-6)
        assert answer["words"] == text.split()
    assert [(one["type"], one["text"]) for one in answers[0]["entities"]] == [
        ("PER", "anna"),
        ("PER", "bob lee"),
        ("LOC", "new york"),
    ]
    assert answers[0]["entities"][1] | {} == {"type": "PER", "text": "bob lee", "first": 3, "last": 4}
    simple = pipeline("token-classification", model=str(tagged), trust_remote_code=True, aggregation_strategy="simple")
    assert {each["entity_group"] for each in simple(texts[0])} <= {"PER", "LOC"}


def test_predict_takes_words_and_texts_of_any_length(tagged, tmp_path):
    words = ["then", "anna", "saw", "bob", "lee", "in", "new", "york"]
    listed, plain = ask(tagged, [{"words": words}, {"text": " ".join(words)}], tmp_path, "batch_size=1")
    assert listed == plain
    long = ask(tagged, [{"words": words * 20}], tmp_path)[0]
    assert len(long["tags"]) == 160
    assert np.mean([tag == plain["tags"][i % 8] for i, tag in enumerate(long["tags"])]) > 0.9
    file = tmp_path / "texts.txt"
    file.write_text("anna saw rome\n\n", encoding="utf-8")
    recipe = load_recipe("predict")
    answers = recipe.main(parse(recipe.PredictConfig, [f"model={tagged}", f"input.path={file}"]))
    assert [answer["tags"] for answer in answers] == [["B-PER", "O", "B-LOC"]]
    with pytest.raises(InputError, match=r"rows\.jsonl:1 = \[\]: there is no word"):
        ask(tagged, [{"words": []}], tmp_path)
    with pytest.raises(InputError, match=r"rows\.jsonl:1.*no column 'text'"):
        ask(tagged, [{"body": "a"}], tmp_path)


@pytest.mark.slow
def test_a_tagger_is_cross_validated_and_its_errors_are_coloured(begin, tmp_path):
    more = ["folds=2", "train.max_steps=2", "train.eval_steps=null", "judge.resamples=100"]
    figures = begin(tmp_path / "run", *more)
    found = receipt(tmp_path / "run")
    assert figures == found["figures"]
    assert len(found["task"]["folds"]["figures"]["entity_f1"]["values"]) == 2
    for told in found["task"]["baselines"].values():
        assert told["test"] == "paired bootstrap of entity_f1 over the texts of all folds"
        assert 0 < told["p"] <= 1
    error = receipt(tmp_path / "run" / "fold-0")["task"]["errors"][0]
    assert "".join(part for part, _ in error["parts"]) == error["text"]
    assert max(abs(weight) for _, weight in error["parts"]) == 1
    page = (tmp_path / "run" / "fold-0" / "report.html").read_text(encoding="utf-8")
    assert f"coloured: {error['explained']['word']} as " in page


def test_chinese_by_characters(begin, sentences, tmp_path):
    more = ["data.characters=true", "bidirectional=true", "train.max_steps=60"]
    figures = begin(tmp_path / "run", *more, rows="zh")
    assert figures["entity_f1"] > 0.9
    task = receipt(tmp_path / "run")["task"]
    assert task["joiner"] == ""
    assert "I-PER" in task["labels"]
    assert set(task["baselines"]) == {"most frequent tag per character", "most frequent tag per word, words given"}
    row = json.loads((sentences / "zh.jsonl").read_text(encoding="utf-8").splitlines()[0])
    text = "".join(row["words"])
    plain, listed = ask(tmp_path / "run", [{"text": text}, {"words": row["words"]}], tmp_path)
    assert plain == listed
    assert plain["words"] == list(text)
    right = sum(len(word) for word, tag in zip(row["words"], row["tags"], strict=True) if tag != "O")
    assert 0.7 * right < sum(tag != "O" for tag in plain["tags"]) < 1.3 * right
    assert {one["text"] for one in plain["entities"]} & {"小明", "李华", "北京", "上海"}


@pytest.mark.slow
def test_an_adapter_is_merged_or_stays_and_says_the_same(begin, tmp_path):
    more = ["adapt.method=lora", "adapt.rank=4", "data.packing=false", "bidirectional=true", "train.max_steps=20"]
    merged = begin(tmp_path / "merged", *more)
    begin(tmp_path / "adapter", *more, "judge.merge=false")
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
    assert merged["entity_f1"] == receipt(tmp_path / "adapter")["figures"]["entity_f1"]
    rows = [{"text": "then anna saw rome"}, {"text": "bob lee"}]
    first, second = (ask(tmp_path / name, rows, tmp_path) for name in ("merged", "adapter"))
    assert [each["scores"] for each in first] == [pytest.approx(each["scores"], abs=1e-5) for each in second]


@pytest.mark.slow
def test_slots_of_commands(begin, tmp_path):
    more = ["data.slots_column=slots", "data.max_length=32", "train.max_steps=60"]
    figures = begin(tmp_path / "run", *more, rows="slots")
    assert figures["entity_f1"] > 0.9
    task = receipt(tmp_path / "run")["task"]
    assert task["slots"] == {"found": 120, "dropped": 0, "ambiguous": 0}
    answer = ask(tmp_path / "run", [{"text": "saw bob lee 7 in new york"}], tmp_path)[0]
    assert [(one["type"], one["text"]) for one in answer["entities"]] == [("who", "bob lee"), ("where", "new york")]


@pytest.mark.slow
def test_a_model_from_scratch_has_a_tokenizer_of_the_texts(begin, tmp_path):
    from transformers import AutoTokenizer

    figures = begin(tmp_path / "run", "model=new:tiny", "bidirectional=true")
    assert figures["entity_f1"] > 0.9
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run").tokenize(" anna")) == 1
    model = receipt(tmp_path / "run")["model"]
    assert (model["preset"], "base_model" in model) == ("tiny", False)
    assert ask(tmp_path / "run", [{"text": "saw anna"}], tmp_path)[0]["tags"] == ["O", "B-PER"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model=new:quickstrat"], r"model = 'new:quickstrat'.*quickstart"),
        (["model=new:tiny", "adapt.method=lora"], r"adapt = 'lora': a new model has nothing yet"),
        (["model=new:tiny", "tokenizer=x"], r"tokenizer = 'x': a new model gets"),
        (["model=new:tiny", "overrides.hidden_sise=8"], r"hidden_sise"),
        (["model=new:tiny", "overrides.num_attention_heads=3"], r"overrides = .*num_attention_heads"),
        (["overrides.hidden_size=8"], r"overrides = .*is a checkpoint.*Leave them out"),
        (["data.max_length=65"], r"data\.max_length = 65: the model has only 64 positions"),
        (["adapt.method=prompt_tuning"], r"adapt\.method = 'prompt_tuning': it puts vectors in front"),
        (["data.words_column=word"], r"en\.jsonl:1.*no column 'word'.*Did you mean 'words'"),
        (["judge.metric=macro_f1"], r"judge\.metric = 'macro_f1'.*entity_f1"),
        (["judge.class_weights=balanced"], r"judge\.class_weights"),
        (["data.overlap=48"], r"data\.overlap = 48: windows have 48 tokens"),
    ],
)
def test_bad_input_is_refused_before_training(begin, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        begin(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_to_expect(path):
    recipe = load_recipe("tag")
    config = parse(recipe.TagConfig, ["--config", str(path)])
    config.data.validate()
    config.adapt.validate()
    header = path.read_text(encoding="utf-8")
    assert f"--config configs/tag/{path.name}" in header
    assert "Expected" in header
    assert config.output_dir == yaml.safe_load(header)["output_dir"]
