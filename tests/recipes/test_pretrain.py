"""recipes/pretrain.py from end to end, on a corpus of forty small files."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser

import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune import preset
from gpt_finetune.config import parse, run
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines

CONFIGS = sorted((ROOT / "configs" / "pretrain").glob("*.yaml"))


@pytest.fixture
def start(words):
    """Return a starter: run the recipe into a folder with further overrides."""
    recipe = load_recipe("pretrain")

    def run_it(output, *more):
        return recipe.main(parse(recipe.PretrainConfig, words(output, *more)))

    return run_it


def losses(folder) -> list[float]:
    return [row["loss"] for row in read_json_lines(folder / "metrics.jsonl") if row["split"] == "train"]


def test_everything_that_a_run_leaves(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "README.md",
        "backends_gpt.py",
        "checkpoint-3",
        "checkpoint-6",
        "config.json",
        "config.yaml",
        "configuration_gpt.py",
        "curves.png",
        "generation_config.json",
        "layers_gpt.py",
        "loss_gpt.py",
        "metrics.jsonl",
        "model.safetensors",
        "modeling_gpt.py",
        "report.html",
        "run.json",
        "samples.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert not [name for name in names if name.endswith((".bin", ".pt", ".part"))]
    assert (finished / "curves.png").stat().st_size > 10_000


def test_receipt_figures_and_ledger(finished):
    receipt = json.loads((finished / "run.json").read_text(encoding="utf-8"))
    assert receipt["status"] == "finished"
    figures, tokens = receipt["figures"], receipt["data"]["ledger"]["total"]["tokens"]
    assert tokens["total"] == tokens["trained"] + tokens["validation"] + tokens["masked"] + tokens["dropped"]
    assert figures["eval_tokens"] == tokens["validation"]
    bits = figures["eval_loss"] * tokens["validation"] / math.log(2) / receipt["data"]["validation_bytes"]
    assert figures["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert figures["tokens_per_second"] > 0
    assert receipt["baselines"]["xz -9e"]["bits_per_byte"] > 0
    assert receipt["environment"]["processes"] == 1


def test_the_model_learned(finished):
    found = losses(finished)
    assert len(found) == 6
    assert found[-1] < found[0] - 0.3


def test_the_folder_loads_and_reproduces_its_figure(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    assert model.config.use_cache is True
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.config.eos_token_id != model.config.pad_token_id
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    text = "床前明月光 def f(a, b):\r\n\treturn 🙂"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=4).shape[0] == 1


def test_samples_and_report(finished):
    samples = read_json_lines(finished / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in samples] == [(3, "def"), (3, "床前"), (6, "def"), (6, "床前")]

    class Text(HTMLParser):
        found = ""

        def handle_data(self, data):
            self.found += data

    page = Text()
    page.feed((finished / "report.html").read_text(encoding="utf-8"))
    assert "床前" in page.found
    assert "bits per byte" in page.found.lower()


def test_config_yaml_runs_the_same_again(finished, tmp_path):
    recipe = load_recipe("pretrain")
    words = ["--config", str(finished / "config.yaml"), f"output_dir={tmp_path / 'again'}"]
    recipe.main(parse(recipe.PretrainConfig, words))
    assert losses(tmp_path / "again") == losses(finished)


def test_resume_goes_on_where_the_run_stopped(finished, start, tmp_path):
    stopped = tmp_path / "stopped"
    shutil.copytree(finished, stopped)
    shutil.rmtree(stopped / "checkpoint-6")
    start(stopped, "--resume")
    assert losses(stopped) == losses(finished)
    assert len(read_json_lines(stopped / "samples.jsonl")) == 4


def test_going_on_from_a_checkpoint(finished, start, tmp_path):
    start(tmp_path / "on", f"model.from_pretrained={finished}", "model.overrides={}", "train.max_steps=2")
    assert losses(tmp_path / "on")[0] < losses(finished)[0] - 0.3


def test_going_on_from_someone_elses_checkpoint(finished, start, tmp_path):
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    foreign = tmp_path / "gpt2"
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids)
    ).save_pretrained(foreign)
    tokenizer.save_pretrained(foreign)
    start(tmp_path / "on", f"model.from_pretrained={foreign}", "model.overrides={}", "train.max_steps=2")
    assert json.loads((tmp_path / "on" / "config.json").read_text(encoding="utf-8"))["model_type"] == "gpt_finetune"


def test_accumulation_gives_the_same_run(finished, start, tmp_path):
    start(tmp_path / "accumulated", "train.batch_size=1", "train.accumulation=4")
    assert losses(tmp_path / "accumulated") == pytest.approx(losses(finished), rel=1e-4)


def test_streaming_trains(start, tmp_path):
    figures = start(tmp_path / "stream", "data.streaming=true", "data.validation_documents=3", "train.max_steps=3")
    assert figures["bits_per_byte"] > 0
    assert len(losses(tmp_path / "stream")) == 3


def test_training_on_everything(start, tmp_path):
    figures = start(tmp_path / "all", "data.validation_fraction=0")
    assert "eval_loss" not in figures
    assert figures["tokens_per_second"] > 0
    assert [row["step"] for row in read_json_lines(tmp_path / "all" / "samples.jsonl")] == [6, 6]
    assert (tmp_path / "all" / "report.html").exists()


def test_evaluation_at_the_end_only(start, tmp_path):
    figures = start(tmp_path / "end", "train.eval_steps=null", "train.save_steps=null")
    assert figures["bits_per_byte"] > 0
    assert [row["step"] for row in read_json_lines(tmp_path / "end" / "samples.jsonl")] == [6, 6]
    assert not list((tmp_path / "end").glob("checkpoint-*"))


def test_muon_and_schedule_and_tensorboard(start, tmp_path):
    pytest.importorskip("tensorboard")
    more = ["train.optimizer=muon", "train.schedule=wsd", "train.report_to=[tensorboard]"]
    start(tmp_path / "muon", *more)
    assert losses(tmp_path / "muon")[-1] < losses(tmp_path / "muon")[0]
    assert list((tmp_path / "muon").rglob("events.out.tfevents*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model.preset=gpt9"], r"model.preset = 'gpt9': there is no such preset"),
        (["model.overrides={n_layers: 2}"], "n_layers=2: there is no such field; did you mean num_hidden_layers"),
        (["model.overrides={hidden_size: 33}"], "hidden_size=33 is not divisible by num_attention_heads=4"),
        (["model.overrides={vocab_size: 100}"], r"vocab_size = 100: the model has 100 tokens, the tokenizer 300"),
        (["model.overrides={hidden_act: geglu}"], "hidden_act.*geglu"),
        (["model.from_pretrained=/nowhere", "model.overrides={}"], r"model.from_pretrained = '/nowhere'"),
        (["model.from_pretrained=x"], "model.overrides = .*: a checkpoint's architecture is what it is"),
        (["data.block_size=65"], r"data.block_size = 65: the model has only 64 positions"),
        (["data.block_size=1"], r"data.block_size = 1"),
        (["data.streaming=true", "train.max_steps=null"], r"train.max_steps = None: a stream has no known end"),
        (["data.sources=[{path: /nowhere}]"], "/nowhere"),
        (["tokenizer.path=/nowhere"], "/nowhere"),
        (["tokenizer.vocab_size=200"], r"tokenizer.vocab_size = 200"),
        ([f"sample.prompts=[{'床前明月光，' * 40}]"], "sample.prompts.*leave no room in the model's 64 positions"),
        (["output_dir=/dev/null/run"], r"output_dir = '/dev/null/run'"),
        (["--resume"], "resume = True: .* holds no run"),
        (["--resume", "--overwrite"], "resume = True: overwrite=true is given too"),
    ],
)
def test_bad_input_is_refused_before_training(start, tmp_path, more, message):
    with pytest.raises(InputError, match=message) as caught:
        start(tmp_path / "bad", *more)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad" / "checkpoint-3").exists()
    assert not (tmp_path / "bad" / "samples.jsonl").exists()


def test_a_folder_that_holds_a_run_is_kept(finished, start, tmp_path):
    before = (finished / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=r"it already holds a run. Add --resume .* --overwrite"):
        start(finished)
    assert (finished / "model.safetensors").read_bytes() == before
    held = tmp_path / "held"
    held.mkdir()
    (held / "thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match="it is not empty and holds no run"):
            start(held, *more)
    assert (held / "thesis.txt").read_text() == "years of work"


def test_overwrite_replaces_a_run(finished, start, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    start(copy, "--overwrite", "train.max_steps=2")
    assert len(losses(copy)) == 2
    assert not (copy / "checkpoint-6").exists()


def test_a_run_that_fails_says_so(start, tmp_path):
    with pytest.raises(FloatingPointError, match="loss is"):
        start(tmp_path / "nan", "train.learning_rate=1e30", "train.max_grad_norm=0", "train.optimizer=sgd")
    receipt = json.loads((tmp_path / "nan" / "run.json").read_text(encoding="utf-8"))
    assert receipt["status"] == "failed"
    assert "loss is" in receipt["error"]
    assert not (tmp_path / "nan" / "model.safetensors").exists()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_parses_and_fits(path, tmp_path):
    recipe = load_recipe("pretrain")
    config = parse(recipe.PretrainConfig, ["--config", str(path)])
    if config.model.from_pretrained == "runs/quickstart":  # of which only the architecture is asked here
        preset("quickstart").save_pretrained(tmp_path)
        config.model.from_pretrained = str(tmp_path)
    recipe.check(config)
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"--config configs/pretrain/{path.name}" in header
    assert "Expected" in header
    defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config.output_dir == defaults["output_dir"]


def test_command_line_error_is_one_line(words, tmp_path, capsys):
    recipe = load_recipe("pretrain")
    with pytest.raises(SystemExit) as caught:
        run(recipe.main, recipe.PretrainConfig, words(tmp_path / "x", "model.preset=gpt9"))
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_generating(finished, capsys, tmp_path):
    recipe = load_recipe("generate")
    greedy = [f"--model={finished}", "temperature=0", "--max_new_tokens", "6"]
    single = recipe.main(parse(recipe.GenerateConfig, [*greedy, "--prompt", "x = 1"]))
    assert capsys.readouterr().out.startswith("x = 1" + single[0])

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("x = 1\n床前明月光，疑是\n\ndef", encoding="utf-8")
    output = tmp_path / "answers.jsonl"
    words = [*greedy, f"prompt_file={prompts}", f"output={output}", "batch_size=2"]
    batch = recipe.main(parse(recipe.GenerateConfig, words))
    rows = read_json_lines(output)
    assert [row["prompt"] for row in rows] == ["x = 1", "床前明月光，疑是", "def"]
    assert [row["text"] for row in rows] == batch
    assert batch[0] == single[0]  # padding beside a longer prompt changes nothing
    sampled = [f"--model={finished}", "prompt=def", "max_new_tokens=6", "options.num_beams=2"]
    assert recipe.main(parse(recipe.GenerateConfig, sampled)) == recipe.main(parse(recipe.GenerateConfig, sampled))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["model=/nowhere"], "model = '/nowhere'"),
        (["prompt_file=/nowhere"], "prompt_file = '/nowhere'"),
        (["options.temprature=1"], r"options.temprature = 1: there is no such option. Did you mean 'temperature'"),
        (["prompt=def", "max_new_tokens=100"], "pass the model's 64 positions. Shorten it, or give at most"),
    ],
)
def test_generating_from_bad_input(finished, more, message):
    recipe = load_recipe("generate")
    with pytest.raises(InputError, match=message):
        recipe.main(parse(recipe.GenerateConfig, [f"model={finished}", *more]))
