"""What the documents say can be done: their files exist, their commands parse, both languages say the same."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import statistics
import sys
from typing import Any

import pytest
from support import ROOT, load_recipe

from gpt_finetune.config import parse
from gpt_finetune.report.summary import METRICS

READMES = ["README.md", "README.zh-CN.md"]


def shell_lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```shell\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    return [line.split(" # ")[0].strip() for line in blocks.splitlines() if line.strip() and not line.startswith("#")]


def called(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the recipe that a command runs, from its file or by `gpt-finetune`, and its arguments."""
    if words[0] == "gpt-finetune":
        return next(p.stem for p in (ROOT / "recipes").glob("*.py") if p.stem.rstrip("_") == words[1]), words[2:]
    at = next((i for i, word in enumerate(words) if word.startswith("recipes/")), None)
    return None if at is None else (words[at].removeprefix("recipes/").removesuffix(".py"), words[at + 1 :])


@pytest.mark.parametrize("name", READMES)
def test_recipe_commands_parse(name):
    commands = [command for line in shell_lines(name) if (command := called(shlex.split(line)))]
    assert len(commands) >= 8
    for recipe, words in commands:
        module = load_recipe(recipe)
        config_class = next(v for k, v in vars(module).items() if k.lower() == f"{recipe.rstrip('_')}config")
        config = parse(config_class, [str(ROOT / w) if w.startswith("configs/") else w for w in words])
        if recipe == "pretrain" and config.model.from_pretrained == "runs/quickstart":  # what `make train` leaves
            config.model.from_pretrained, config.model.preset = None, "quickstart"
        if hasattr(module, "check"):
            module.check(config)


@pytest.mark.parametrize("name", READMES)
def test_make_targets_exist(name):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    wanted = {line.split()[1] for line in shell_lines(name) if line.startswith("make ")}
    assert {"train", "test"} <= wanted <= set(targets)


@pytest.mark.parametrize("name", [*READMES, "CONTRIBUTING.md", "CHANGELOG.md", "docs/log.md"])
def test_links_and_paths_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    paths = re.findall(r"`((?:gpt_finetune|recipes|configs|tests|docs|benchmarks)/[\w./-]+)`", text)
    base = (ROOT / name).parent
    missing = [link for link in links if not (base / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists() and "<" not in path]
    assert not missing


def test_both_readmes_have_the_same_commands_and_figures():
    english, chinese = READMES
    assert shell_lines(english) == shell_lines(chinese)
    figures = [re.findall(r"\*\*(\d+\.\d+)\*\*", (ROOT / name).read_text(encoding="utf-8")) for name in READMES]
    assert figures[0] == figures[1]
    assert figures[0]


def test_every_room_is_in_the_tree():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "gpt_finetune").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in text or path.name == "errors.py", path.name
    for path in (ROOT / "recipes").glob("*.py"):
        assert path.name in text


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", READMES)
def test_figures_of_the_quickstart_are_those_measured(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    run, other = result("quickstart"), result("quickstart-avx2")
    figures = run["figures"]
    for bits in (figures["bits_per_byte"], run["baselines"]["xz -9e"]["bits_per_byte"]):
        assert f"**{bits:.3f}** |" in text
    assert f"{figures['tokens_per_second']:,.0f}" in text
    assert f"{figures['peak_memory_mb']:.0f} MB" in text
    assert f"{other['figures']['bits_per_byte']:.3f}" in text
    for one in (run, other):
        minutes = divmod(round(one["duration_s"]), 60)
        assert re.search(r"{} (minutes|分) ?{} (seconds|秒)".format(*minutes), text)
        assert one["figures"]["bits_per_byte"] < 1.15
        assert one["duration_s"] < 600


@pytest.mark.parametrize("name", READMES)
def test_figures_of_the_architectures_are_those_measured(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    sinks, cache = result("sinks"), result("cache")
    for figure in (sinks["full"]["times_faster"], sinks["sliding"]["times_faster"]):
        assert f"{figure:.1f}" in text
    assert round(sinks["full"]["share_of_memory"], 2) == 0.25  # "a quarter"
    assert f"{sinks['sliding']['share_of_memory']:.0%}" in text
    assert all(f"{cache[key]:.0f}" in text for key in ("megabytes", "megabytes_dense"))


@pytest.mark.parametrize("name", READMES)
def test_figures_of_fine_tuning_are_those_measured(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    dialogue, adaptation = result("dialogue"), result("adaptation")["smollm2"]["lora"]
    figures, runs = dialogue["figures"], dialogue["runs"]
    for language in ("english", "chinese"):
        base, lora, full = (figures[model][language] for model in ("base", "lora", "full"))
        for key, form in (("eval_loss", ".2f"), ("chrf", ".1f"), ("stop_rate", ".0%")):
            assert f"{base[key]:{form}} / **{lora[key]:{form}}** / {full[key]:{form}}" in text
        # what it is for: better than the base in each language
        assert lora["eval_loss"] < base["eval_loss"]
        assert lora["chrf"] > base["chrf"]
        assert lora["stop_rate"] > base["stop_rate"]
    assert f"{runs['lora']['share_trained']:.2%}" in text
    assert runs["lora"]["share_trained"] < 0.02
    assert f"{abs(dialogue['loss_of_lora_above_full']):.1%}" in text
    assert dialogue["loss_of_lora_above_full"] < 0.05
    assert f"{adaptation['share_of_memory']:.0%}" in text
    assert adaptation["share_of_memory"] <= 0.5
    assert f"{1 / adaptation['times_faster']:.0%}" in text


@pytest.mark.parametrize("name", READMES)
def test_figures_of_speed_are_those_measured(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    training, product = result("training"), result("tasks-speed")["product"]
    narrow, small = result("training-S1-bfloat16"), result("training-S3-bfloat16")
    memory = product["packed"]["peak_mb"] / product["padded, transformers"]["peak_mb"]
    for times, share in (
        (training["times_faster"], training["share_of_memory"]),
        (narrow["times_faster"], narrow["share_of_memory"]),
        (small["times_faster"], small["share_of_memory"]),
        (product["packed_over_padded_transformers"], memory),
    ):
        assert f"**{times:.2f} x** | {share:.0%} |" in text
    wide = result("training-S2-float32")
    assert f"| {wide['times_faster']:.2f} x | {wide['share_of_memory']:.0%} |" in text
    assert f"{wide['transformers']['share_of_ceiling']:.0%}" in text
    other, generation = result("training-S2-bfloat16"), result("generation")
    for figures, peer in ((narrow, "transformers, kept memory"), (narrow, "litgpt"), (other, "transformers")):
        times = figures["ours"]["tokens_per_second"] / figures[peer]["tokens_per_second"]
        assert f"{times:.2f} x" in text
    thin = narrow["ours, narrow stream"]
    share = thin["peak_mb"] / narrow["transformers"]["peak_mb"]
    assert f"| {thin['times_faster']:.2f} x | {share:.0%} |" in text
    assert all(
        f"{figures[way]['share_of_ceiling']:.0%}" in text
        for figures in (narrow, other)
        for way in ("ours", "transformers")
    )
    for size in ("S1", "S2"):
        tiled = result(f"training-{size}-bfloat16-amx")
        assert f"| {tiled['times_faster']:.2f} x | {tiled['share_of_memory']:.0%} |" in text
    tiled = result("training-S1-bfloat16-amx")
    times, share = (tiled["ours"][key] / tiled["litgpt"][key] for key in ("tokens_per_second", "peak_mb"))
    assert f"| {times:.2f} x | {share:.0%} |" in text
    assert f"{result('training-S1-bfloat16-amx-again')['times_faster']:.2f} x" in text
    others = result("training-S1-bfloat16-compiled")
    for peer in ("transformers, compiled", "transformers, large pages"):
        assert f"{others['ours']['tokens_per_second'] / others[peer]['tokens_per_second']:.2f} x" in text
        assert f"{others['ours']['peak_mb'] / others[peer]['peak_mb']:.0%}" in text
    adapting = result("adaptation")
    lora = adapting["gpt2"]["lora"]
    assert f"| {lora['times_faster']:.2f} x | {lora['share_of_memory']:.0%} |" in text
    wide_lora = adapting["gpt2-float32"]["lora"]
    assert f"| {wide_lora['times_faster']:.2f} x | {wide_lora['share_of_memory']:.0%} |" in text
    for way in ("", ", laid out anew, growing cache", ", int8, growing cache", ", int4, growing cache"):
        for batch in ("batch_1", "batch_8"):
            assert f"{generation[batch]['ours, bfloat16' + way]['times_faster']:.2f}" in text
    for precision in ("bfloat16", "float32"):
        found = [row["times_faster"] for name, row in result("dropout").items() if name.startswith(precision)]
        assert re.search(rf"{min(found):.1f} (to|到)\s{max(found):.1f} ", text)
    rows = [row for row in result("norms").values() if isinstance(row, dict)]
    norms = [row["times_faster"] for row in rows]
    shares = [row["ours"]["peak_mb"] / row["torch"]["peak_mb"] for row in rows]
    assert round(statistics.median(shares), 1) == 0.6  # six tenths, says the text
    assert re.search("in six tenths of the memory|内存为其六成", text)
    assert re.search(rf"{min(norms):.1f} (to|到)\s{max(norms):.1f} [^`]*\(`benchmarks/norms.py`\)", text)
    turned = [row["times_faster"] for row in result("rotation").values() if isinstance(row, dict)]
    assert re.search(rf"{min(turned):.1f} (to|到)\s{max(turned):.1f} [^`]*\(`benchmarks/rotation.py`\)", text)
    acts = [row["times_faster"] for row in result("gelu").values() if isinstance(row, dict)]
    assert re.search(rf"{min(acts):.1f} (to|到)\s{max(acts):.1f} [^`]*\(`benchmarks/gelu.py`\)", text)
    for way in ("int8", "int4"):
        rises = sorted(result("perplexity")["bfloat16"][way][f"change_{kind}"] for kind in ("prompt", "one_by_one"))
        assert re.search(rf"{rises[0]:.1%} (to|到) {rises[1]:.1%}", text)
        assert rises[1] < {"int8": 0.01, "int4": 0.04}[way]
    for source in ("chat", "insurance"):
        padded = result("supervised-speed")[source]["padded, transformers"]
        assert f"{padded['packed_is_times_faster']:.2f} x" in text
        assert f"{padded['packed_takes_share_of_memory']:.0%}" in text
    for axis in result("scaling")["axes"].values():  # nothing grows faster than it must, noise of a tenth apart
        assert all(power["measured"] <= power["theory"] + 0.1 for power in axis["exponents"].values())
    words = result("subwords")["all"]
    assert all(f"{words[kind]['accuracy']:.1%}" in text for kind in ("last", "first"))


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_tasks_is_what_was_measured(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    spec = importlib.util.spec_from_file_location("tasks_table", ROOT / "benchmarks" / "tasks.py")
    tasks = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tasks  # where dataclasses look for their own module
    spec.loader.exec_module(tasks)
    assert f"<!-- tasks -->\n{tasks.table(result('tasks'))}\n<!-- /tasks -->" in text
    for task in tasks.TASKS.values():
        config = ROOT / "configs" / task.config
        assert tasks.commands(config), "the header says how it is run"
        assert task.metric in METRICS
    for key, found in result("tasks").items():
        value, low, high = (tasks._written(n, found["metric"]) for n in (found["value"], *found["interval"]))
        header = " ".join((ROOT / found["config"]).read_text(encoding="utf-8").replace("\n# ", " ").split())
        assert f"{value} ({low} to {high})" in header, key
    for found in result("tasks").values():
        assert found["interval"][0] <= found["value"] <= found["interval"][1]


@pytest.mark.parametrize("name", READMES)
def test_the_card_shown_is_the_card_printed(name, capsys):
    text = (ROOT / name).read_text(encoding="utf-8")
    (shown,) = re.findall(r"```text\n(Parameters\n.*?)```", text, flags=re.DOTALL)
    command = next(line for line in shell_lines(name) if line.startswith("gpt-finetune inspect"))
    recipe, words = called(shlex.split(command))
    module = load_recipe(recipe)
    module.main(parse(module.InspectConfig, words))
    printed = {line.rstrip() for line in capsys.readouterr().out.splitlines()}
    assert {line.rstrip() for line in shown.splitlines()} <= printed
