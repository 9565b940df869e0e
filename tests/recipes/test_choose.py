"""recipes/choose.py from end to end, and how its rows are made: a tiny model learns which word belongs to which."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support import load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.choose_config import ChooseDataConfig
from gpt_finetune.tasks.choosing import ChoiceCollator, prepare_choices
from gpt_finetune.tasks.config import RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer

PAIRS = {"hat": "cap", "cup": "mug", "sea": "lake", "书": "册"}
CHOICES = list(PAIRS.values())


def rows():
    """Return questions whose thing has one right choice among four."""
    return [
        {"question": f"{i} {thing}", "choices": CHOICES[i % 4 :] + CHOICES[: i % 4], "answer": (own - i) % 4}
        for own, thing in enumerate(PAIRS)
        for i in range(25)
    ]


@pytest.fixture
def write(tmp_path):
    """Return a writer of rows to a file."""

    def make(some):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
        return file

    return make


@pytest.fixture
def tokenizer(make_tokenizer):
    return padded_tokenizer(make_tokenizer(), 64)


def ask(folder, asked, tmp_path, *more):
    """Return the answers of recipes/predict.py."""
    file, recipe = tmp_path / "asked.jsonl", load_recipe("predict")
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in asked), encoding="utf-8")
    words = [f"model={folder}", f"input.path={file}", f"output={tmp_path / 'out.jsonl'}", *more]
    return recipe.main(parse(recipe.PredictConfig, words))


def prepare(file, tokenizer, **fields):
    return prepare_choices(ChooseDataConfig(sources=[RowSourceConfig(str(file))], **fields), tokenizer)


def begin(output, file, tokenizer, *more):
    """Run the recipe on a new base beside the output folder; return its figures."""
    import torch

    from gpt_finetune import GPTForCausalLM, preset

    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    base = output.parent / "base"
    GPTForCausalLM(preset("tiny", vocab_size=len(tokenizer), num_hidden_layers=2, **ids)).save_pretrained(base)
    tokenizer.save_pretrained(base)
    recipe = load_recipe("choose")
    words = [
        f"output_dir={output}",
        f"model={base}",
        f"data.sources=[{{path: {file}}}]",
        "data.validation_fraction=0.2",
        "data.max_length=48",
        "train.batch_size=8",
        "train.log_steps=40",
        "train.precision=float32",
        "train.learning_rate=1e-2",
        "judge.resamples=100",
        *more,
    ]
    return recipe.main(parse(recipe.ChooseConfig, words))


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_it_learns_and_stands_beside_its_baselines(method, write, tmp_path, make_tokenizer):
    import torch
    from transformers import AutoModelForMultipleChoice

    tokenizer, output = make_tokenizer(), tmp_path / "run"
    steps = ("100", "25") if method == "full" else ("3", "null")
    more = [f"adapt.method={method}", "adapt.rank=4", f"train.max_steps={steps[0]}", f"train.eval_steps={steps[1]}"]
    figures = begin(output, write(rows()), tokenizer, *more)
    found = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert set(found["baselines"]) == {"chance", "TF-IDF similarity"} == set(found["task"]["baselines"])
    low, high = found["task"]["intervals"]["accuracy"]
    assert low <= figures["accuracy"] <= high
    if method == "full":
        assert figures["accuracy"] > 0.8 > found["baselines"]["chance"]["accuracy"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "TF-IDF similarity" in page
    assert "AutoModelForMultipleChoice" in page
    model, info = AutoModelForMultipleChoice.from_pretrained(output, trust_remote_code=True, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    data = prepare(tmp_path / "rows.jsonl", padded_tokenizer(tokenizer, 48), validation_fraction=0.2, max_length=48)
    batch = data.collate([data.validation[i] for i in range(len(data.validation))])
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert data.measure(list(logits.numpy()))["accuracy"] == figures["accuracy"]  # what was saved is what was measured
    asked = [{"question": each.question, "choices": list(each.choices)} for each in data.asked["validation"]]
    asked[0]["choices"] = asked[0]["choices"][:2]  # rows of other numbers of choices change nothing for the others
    answers = ask(output, asked, tmp_path)
    assert [len(answer["scores"]) for answer in answers] == [2] + [4] * (len(asked) - 1)
    assert [answer["answer"] for answer in answers[1:]] == logits.argmax(-1).tolist()[1:]
    for row, answer in zip(asked, answers, strict=True):
        assert answer["question"] == row["question"]
        assert answer["label"] == row["choices"][answer["answer"]]
        assert answer["scores"][answer["answer"]] == max(answer["scores"])
        assert sum(answer["scores"]) == pytest.approx(1, abs=1e-5)
    again = ask(output, asked, tmp_path, "batch_size=1")
    assert [each["scores"] for each in again] == [pytest.approx(each["scores"], abs=1e-4) for each in answers]
    for row, message in (
        ({"question": "what?"}, r"asked\.jsonl:1.*no column 'choices'"),
        ({"question": "what?", "choices": ["a"]}, "no list of two different texts"),
        ({"question": " ", "choices": ["a", "b"]}, "the text is empty"),
    ):
        with pytest.raises(InputError, match=message):
            ask(output, [row], tmp_path)
    with pytest.raises(InputError, match="max_length = 7: question and choice have no room"):
        ask(output, asked, tmp_path, "max_length=7")


@pytest.mark.slow
def test_choices_are_cross_validated(write, tmp_path, make_tokenizer):
    more = ["folds=2", "adapt.method=full", "train.max_steps=2", "train.eval_steps=null"]
    figures = begin(tmp_path / "run", write(rows()), make_tokenizer(), *more)
    found = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert figures == found["figures"]
    assert len(found["task"]["folds"]["figures"]["accuracy"]["values"]) == 2
    for told in found["task"]["baselines"].values():
        assert told["test"] == "McNemar's exact test over the texts of all folds"
        assert 0 < told["p"] <= 1


def test_wrong_choices_are_right_ones_of_other_rows_of_the_same_side(write, tokenizer):
    some = [{"text": f"text {i}", "title": f"title {i % 15}"} for i in range(30)]
    columns = {"question_column": "text", "choices_column": None, "answer_column": "title"}
    data, again = (prepare(write(some), tokenizer, validation_fraction=0.4, **columns) for _ in range(2))
    assert data.asked == again.asked
    for side, asked in data.asked.items():
        titles = {row.target.right for row in data.texts[side]}
        for row, each in zip(data.texts[side], asked, strict=True):
            assert each.choices[each.answer] == row.target.right
            assert len(set(each.choices)) == 4
            assert set(each.choices) <= titles
    assert len({each.answer for each in data.asked["train"]}) > 1
    with pytest.raises(InputError, match=r"data\.distractors = 30: one side of the split has only"):
        prepare(write(some), tokenizer, distractors=30, **columns)


@pytest.mark.parametrize("form", ["jsonl", "json", "parquet"])
def test_a_file_of_ones_own_with_other_columns(form, tmp_path, tokenizer):
    """The choices as a list, the right one by its place or by its text."""
    some = [{"stem": each["question"], "options": each["choices"], "key": each["answer"]} for each in rows()]
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(some), tmp_path / "own.parquet")
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in some]
        text = "\n".join(lines) if form == "jsonl" else f"[{', '.join(lines)}]"
        (tmp_path / f"own.{form}").write_text(text, encoding="utf-8")
    columns = {"question_column": "stem", "choices_column": "options", "answer_column": "key"}
    data = prepare(tmp_path / f"own.{form}", tokenizer, validation_fraction=0.2, **columns)
    for side in data.asked.values():
        for each in side:
            assert sorted(each.choices) == sorted(CHOICES)
            assert PAIRS[each.question.split()[1]] == each.right == each.choices[each.answer]
    by_text = [{**row, "key": row["options"][row["key"]]} for row in some]
    (tmp_path / "text.json").write_text(json.dumps(by_text), encoding="utf-8")
    assert prepare(tmp_path / "text.json", tokenizer, validation_fraction=0.2, **columns).asked == data.asked


def test_long_questions_give_way_and_rows_of_fewer_choices_are_filled_up(write, tokenizer):
    some = [{"question": f"{'long ' * 40}{i}", "choices": ["good", "bad"][:2], "answer": "bad"} for i in range(4)]
    data = prepare(write(some), tokenizer, max_length=16, validation_fraction=0.5)
    assert all(len(choice) == 16 for row in data.train.ids for choice in row)
    assert [row[1][-1] for row in data.train.ids] == [tokenizer.eos_token_id] * 2
    assert tokenizer.decode(data.train.ids[0][1][:-1]).endswith("\nbad")
    assert data.ledger.truncated_examples == 4
    batch = ChoiceCollator(0, 16)([{"input_ids": [[1], [2, 3]], "labels": 0}, {"input_ids": [[1]] * 3, "labels": 2}])
    assert batch["input_ids"].shape == (2, 3, 2)
    assert batch["attention_mask"][0].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert data.measure([np.array([0.0, 1.0])] * 2) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a"], "answer": 0}, "no list of two different texts"),
        ({"choices": ["a", "a"], "answer": 0}, "no list of two different texts"),
        ({"choices": "a|b", "answer": 0}, r"rows\.jsonl:1 = 'a\|b': the choices are no list"),  # as csv has it
        ({"choices": ["a", "b"], "answer": 2}, r"it names none of 2 choices\. Give 0 to 1"),
        ({"choices": ["a", "b"], "answer": True}, "it names none"),
        ({"choices": ["a", " "], "answer": 0}, r"rows\.jsonl:1, choices = ' ': the text is empty"),
        ({"choices": ["a", "b"]}, "no column 'answer', which data.answer_column names"),
    ],
)
def test_bad_rows_are_refused_by_name(write, tokenizer, row, message):
    with pytest.raises(InputError, match=message):
        prepare(write([{"question": "what?", **row}, *rows()]), tokenizer)


def test_bad_fields_are_refused(write, tokenizer):
    for field, message in (("distractors", "0"), ("max_length", "7")):
        with pytest.raises(InputError, match=rf"data\.{field} = {message}"):
            prepare(write(rows()), tokenizer, **{field: int(message)})
    recipe = load_recipe("choose")
    with pytest.raises(InputError, match=r"adapt\.method = 'prompt_tuning': it cannot be merged"):
        recipe.main(parse(recipe.ChooseConfig, ["data.sources=[{path: x.jsonl}]", "adapt.method=prompt_tuning"]))
