"""recipes/seq2seq.py from end to end: a tiny encoder-decoder learns to write words of one language in another."""

from __future__ import annotations

import json
import random

import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "seq2seq").glob("*.yaml"))
WORDS = {"red": "rouge", "blue": "bleu", "house": "maison", "car": "voiture", "tree": "arbre", "old": "vieux"}
WORDS |= {"sea": "mer", "night": "nuit"}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """Return a file of short phrases, and what each is word by word from its end: a dictionary knows but half of it."""
    chance = random.Random(0)
    file = tmp_path_factory.mktemp("table") / "phrases.jsonl"
    phrases = dict.fromkeys(" ".join(chance.choices(list(WORDS), k=chance.randint(2, 3))) for _ in range(600))
    rows = [{"en": phrase, "fr": " ".join(WORDS[word] for word in reversed(phrase.split()))} for phrase in phrases]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def begin(table, tmp_path_factory):
    """Return a starter: run the recipe into a folder with further overrides."""
    recipe = load_recipe("seq2seq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT_FINETUNE_CACHE", str(tmp_path_factory.mktemp("cache")))

        def run_it(output, *more):
            words = [
                f"output_dir={output}",
                "model.preset=quickstart",
                "model.overrides={hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2}",
                "tokenizer.vocab_size=340",
                f"data.sources=[{{path: {table}}}]",
                "data.source_column=en",
                "data.target_column=fr",
                "data.validation_fraction=0.1",
                "data.max_length=24",
                "train.max_steps=150",
                "train.batch_size=16",
                "train.log_steps=60",
                "train.precision=float32",
                "train.optimizer=muon",
                "train.learning_rate=1e-2",
                "train.threads=1",
                "compare.resamples=100",
            ]
            return recipe.main(parse(recipe.Seq2SeqConfig, [*words, *more]))

        yield run_it


@pytest.fixture(scope="session")
def translator(begin, tmp_path_factory):
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("seq2seq") / "phrases"
    begin(folder)
    return folder


def receipt(folder):
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def test_it_learns_what_a_dictionary_cannot(translator):
    found = receipt(translator)
    assert found["status"] == "finished"
    figures, others, task = found["figures"], found["baselines"], found["task"]
    assert figures["rougeL"] > 0.8 > others["dictionary"]["rougeL"]
    assert figures["chrf"] > others["dictionary"]["chrf"] > others["copy"]["chrf"]
    assert others["before training"]["chrf"] < 10
    assert others["before training"]["eval_loss"] > figures["eval_loss"]
    assert task["baselines"]["dictionary"]["p"] < 0.05
    low, high = task["intervals"]["chrf"]
    assert low <= figures["chrf"] <= high
    counts = found["data"]["ledger"]["total"]["examples"]
    assert counts["train"] + counts["validation"] + counts.get("dropped", 0) == counts["total"]
    assert task["prompts"] == counts["validation"]


def test_what_a_run_leaves(translator):
    names = {path.name for path in translator.iterdir()}
    assert names >= {"README.md", "answers.jsonl", "config.json", "generation_config.json", "model.safetensors"}
    assert not [name for name in names if name.startswith("checkpoint") or name.endswith((".bin", ".part"))]
    assert {row["step"] for row in read_json_lines(translator / "answers.jsonl")} == {0, 150}
    settings = json.loads((translator / "generation_config.json").read_text(encoding="utf-8"))
    assert settings["decoder_start_token_id"] == settings["eos_token_id"] != settings["pad_token_id"]
    page = (translator / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("chrF", "dictionary", "before training"))


@pytest.mark.parametrize("kind", ["EncoderDecoderModel", "AutoModelForSeq2SeqLM"])
def test_three_lines_translate(translator, kind):
    """As the recipe's docstring and the model card say."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(str(translator))
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(translator))
    told = [row for row in read_json_lines(translator / "answers.jsonl") if row["step"] == 150]
    inputs = tokenizer([row["prompt"] for row in told], return_tensors="pt", padding=True)
    written = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    assert written == [row["answer"] for row in told]
    assert len(set(written)) > 4
    card = (translator / "README.md").read_text(encoding="utf-8")
    assert "import gpt_finetune" in card
    assert "AutoModelForSeq2SeqLM.from_pretrained" in card
    assert "trust_remote_code" not in card


@pytest.mark.slow
def test_resuming_ends_where_the_straight_run_does(begin, tmp_path):
    import shutil

    more = ["train.max_steps=20", "train.save_steps=8", "compare.baselines=[]", "write.num_beams=2", "align.weight=1"]
    straight = begin(tmp_path / "run", *more)
    logged = [row["align_loss"] for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if "align_loss" in row]
    assert logged
    assert all(0 < loss < 10 for loss in logged)
    shutil.rmtree(tmp_path / "run" / "checkpoint-20")
    resumed = begin(tmp_path / "run", *more, "--resume")
    assert resumed["eval_loss"] == pytest.approx(straight["eval_loss"], rel=1e-5)
    assert "before training" in receipt(tmp_path / "run")["baselines"]
    assert begin(tmp_path / "run", *more, "--resume")["chrf"] == resumed["chrf"]  # no step is left to do
    assert receipt(tmp_path / "run")["task"]["prompts"] > 0


@pytest.mark.slow
def test_both_halves_from_a_checkpoint(begin, finished, tmp_path):
    more = [f"model.from_pretrained={finished}", "model.overrides={}", "train.max_steps=4", "compare.baselines=[copy]"]
    figures = begin(tmp_path / "run", *more)
    assert figures["eval_loss"] < receipt(tmp_path / "run")["baselines"]["before training"]["eval_loss"]


FINISHED = ["model.overrides={}", "train.optimizer=adamw", "train.learning_rate=2e-2", "compare.baselines=[copy]"]


def test_an_adapter_on_a_finished_one_goes_on_is_asked_and_merged(begin, translator, tmp_path):
    from gpt_finetune.adaptation.bases import fingerprint_of

    # the other way round, which the base has not learned
    more = [f"model.from_pretrained={translator}", *FINISHED, "adapt.method=lora", "train.max_steps=8"]
    more += ["write.max_prompts=8", "data.source_column=fr", "data.target_column=en"]
    run = tmp_path / "run"
    begin(run, *more)
    found = receipt(run)
    assert found["model"]["method"] == "lora"
    assert found["model"]["base_fingerprint"] == fingerprint_of(translator)
    assert found["figures"]["eval_loss"] < found["baselines"]["before training"]["eval_loss"] - 0.3
    assert {path.name for path in run.iterdir()} >= {"adapter_model.safetensors", "tokenizer.json", "report.html"}
    assert not (run / "model.safetensors").exists()
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "import gpt_finetune" in card
    assert "PeftModel.from_pretrained" in card
    # a file of texts, by the adapter and by what it is merged into
    asked = tmp_path / "texts.txt"
    asked.write_text("rouge maison\nmer\nvieux arbre\n", encoding="utf-8")

    def ask(folder):
        predict = load_recipe("predict")
        words = [f"model={folder}", f"input.path={asked}", f"output={tmp_path / 'out.jsonl'}", "batch_size=2"]
        return predict.main(parse(predict.PredictConfig, words))

    written = ask(run)
    assert [row["text"] for row in written] == ["rouge maison", "mer", "vieux arbre"]
    assert written != ask(translator)
    merge = load_recipe("merge")
    merge.main(parse(merge.MergeConfig, [f"adapter={run}", f"output_dir={tmp_path / 'merged'}"]))
    assert ask(tmp_path / "merged") == written


@pytest.mark.long
def test_an_adapter_that_was_stopped_ends_where_the_straight_run_does(begin, translator, tmp_path):
    import shutil

    from safetensors.torch import load_file

    more = [f"model.from_pretrained={translator}", *FINISHED, "adapt.method=dora", "train.max_steps=8"]
    more += ["train.save_steps=4", "write.max_prompts=8", "data.source_column=fr", "data.target_column=en"]
    straight = begin(tmp_path / "run", *more)
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    resumed = begin(tmp_path / "run", *more, "--resume")
    assert resumed["eval_loss"] == pytest.approx(straight["eval_loss"], rel=1e-5)
    again = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all((again[name] - weights[name]).abs().max() < 1e-5 for name in weights)


@pytest.mark.long
def test_a_finished_one_is_trained_on_as_a_whole(begin, translator, tmp_path):
    more = [f"model.from_pretrained={translator}", *FINISHED, "train.max_steps=2", "write.max_prompts=4"]
    begin(tmp_path / "run", *more, "train.learning_rate=1e-5")
    before = receipt(tmp_path / "run")["baselines"]["before training"]
    assert before["eval_loss"] == pytest.approx(receipt(translator)["figures"]["eval_loss"], rel=1e-4)
    assert receipt(tmp_path / "run")["model"]["method"] == "full"


def test_it_does_not_go_on_with_a_text(translator):
    generate = load_recipe("generate")
    with pytest.raises(InputError, match=r"model = .*it is an encoder-decoder.*recipes/predict\.py"):
        generate.main(parse(generate.GenerateConfig, [f"model={translator}", "prompt=red"]))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["adapt.method=lora"], r"adapt\.method = 'lora': a new model has learned nothing"),
        (["adapt.method=eva"], r"adapt\.method = 'eva': it does not work on an encoder-decoder"),
        (["data.max_length=300"], r"data\.max_source_length = 300: the model has only 256 positions"),
        (["data.target_column=en"], r"data\.target_column = 'en': source and target cannot be one column"),
        (["data.source_column=eng"], r"phrases\.jsonl:1.*no column 'eng'.*Did you mean 'en'"),
        (["model.overrides={block_type: parallel}"], r"add_cross_attention=True with block_type='parallel'"),
        (["align.layer=1"], r"align\.layer = 1: the decoder has 1 layers\. Give one from 0 to 0, or null"),
        (["align.weight=1", "train.compile=true"], r"train\.compile = True: it hides where the head looks"),
        (["write.max_prompts=0"], r"write\.max_prompts = 0"),
        (["write.num_beams=0"], r"write\.num_beams = 0: it must be at least 1"),
        (["compare.baselines=[copie]"], r"compare\.baselines = 'copie'.*'copy'"),
        (["model.from_pretrained=/nowhere", "model.overrides={}"], "/nowhere"),
    ],
)
def test_bad_input_is_refused_before_training(begin, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        begin(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_says_what_to_expect(path):
    recipe = load_recipe("seq2seq")
    config = parse(recipe.Seq2SeqConfig, ["--config", str(path)])
    recipe.check(config)
    header = path.read_text(encoding="utf-8")
    assert f"--config configs/seq2seq/{path.name}" in header
    assert "Expected" in header
    assert config.output_dir == yaml.safe_load(header)["output_dir"]
