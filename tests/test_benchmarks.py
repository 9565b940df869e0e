"""Benchmarks: their arithmetic, their tables, their page; each runs at a tiny size."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
from support import ROOT

from gpt_finetune.allocation import TUNABLES

SCRIPTS = ["data", "loss", "loss_per_minute", "precision", "scaling", "startup", "table", "training"]


@pytest.fixture
def load(monkeypatch):
    """Return a loader of scripts, which find `peers` beside them as when they are run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run(load, monkeypatch, tmp_path):
    """Return a runner of a script's `main` in this process; it gives what the script wrote."""

    def run(name: str, *words: str) -> dict:
        script = load(name)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--results", str(tmp_path), *words])
        script.main()
        (file,) = tmp_path.glob("*.json")
        return json.loads(file.read_text(encoding="utf-8"))

    return run


def of_training(script, sizes, losses):
    rows = {
        name: [{"tokens_per_second": speed, "peak_mb": 100.0 * speed, "last_loss": losses[name]} for speed in speeds]
        for name, speeds in sizes.items()
    }
    return {script.CEILINGS: [{"gflops": 100.0, "copy_gb_per_second": 10.0}], **rows}


@pytest.fixture
def given():
    return SimpleNamespace(size="tiny", precision="float32", rounds=3, steps=4)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_told(load, monkeypatch, capsys, name):
    script = load(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 0
    assert "--results" in capsys.readouterr().out


def test_training_reports_medians_and_ratios(load, given):
    script = load("training")
    speeds = {"transformers": [10.0, 30.0, 20.0], "ours": [50.0, 40.0, 60.0]}
    report = script.report(given, of_training(script, speeds, dict.fromkeys(speeds, 1.0)))
    assert report["transformers"]["tokens_per_second"] == 20.0
    assert report["times_faster"] == report["ours"]["times_faster"] == 2.5
    assert report["ours"]["lowest_and_highest"] == [40.0, 60.0]
    flops = script.training_flops(script.SIZES["tiny"])
    assert report["ours"]["share_of_ceiling"] == round(50 * flops / 100e9, 3)
    # 12 D^2 weights a layer and V D of the head, 6 operations each, and attention's 12 D T a layer
    assert flops == 6 * (12 * 32**2 + 128 * 32) + 12 * 32 * 32


def test_unequal_losses_write_nothing(load, given):
    script = load("training")
    speeds = {"transformers": [10.0], "ours": [50.0], "litgpt": [9.0], "ours, medium products": [60.0]}
    losses = {"transformers": 1.0, "ours": 1.000009, "litgpt": 3.0, "ours, medium products": 1.1}
    report = script.report(given, of_training(script, speeds, losses))
    assert report["losses_apart"] == {"gpt2": pytest.approx(9e-6)}
    with pytest.raises(SystemExit, match="the losses differ"):
        script.report(given, of_training(script, speeds, {**losses, "ours": 1.00002}))


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_ways_do_the_same_work(load, monkeypatch, tmp_path, precision):
    load("training")
    from peers import steps
    from peers.ways import LOSSES_AGREE, SIZES, WAYS

    size, found = SIZES["tiny"], {}
    for kind in ("gpt2", "llama"):
        steps.save_first_weights(size, kind, tmp_path / kind)
    for name in ("transformers", "ours", "ours, bare loop", "transformers Llama", "ours, as Llama"):
        way = WAYS[name]
        weights = tmp_path / way.model
        if way.loop == "bare":
            found[name] = steps.bare(way, size, weights, 3, precision, None)
        else:
            found[name] = steps.under_trainer(way, size, weights, 3, precision)
        assert found[name]["tokens_per_second"] > 0
    loss = {name: figures["last_loss"] for name, figures in found.items()}
    assert loss["ours"] == pytest.approx(loss["transformers"], abs=LOSSES_AGREE[precision])
    assert loss["ours, bare loop"] == pytest.approx(loss["transformers"], abs=LOSSES_AGREE[precision])
    assert loss["ours, as Llama"] == pytest.approx(loss["transformers Llama"], abs=LOSSES_AGREE[precision])
    assert abs(loss["transformers"] - math.log(size.vocabulary)) > 1e-4  # it has learned something, or forgotten


def test_memory_is_kept_as_recipes_keep_it(load):
    load("training")
    from peers.measuring import ENVIRONMENTS

    told = dict(pair.split("=") for pair in ENVIRONMENTS["kept memory"]["GLIBC_TUNABLES"].split(":"))
    assert told == TUNABLES  # written out there, where nothing of ours is imported


def test_every_way_names_what_exists(load):
    script = load("training")
    from peers.measuring import ENVIRONMENTS
    from peers.ways import SETS

    assert {way.environment for way in script.WAYS.values()} <= ENVIRONMENTS.keys()
    assert {name for names in SETS.values() for name in names} == script.WAYS.keys()


def test_a_way_that_fails_is_left_out(load, capsys):
    load("training")
    from peers.measuring import Failed, in_turns

    def fails():
        raise Failed("no such module")

    assert in_turns({"good": lambda: {"x": 1.0}, "bad": fails}, 2) == {"good": [{"x": 1.0}] * 2}
    assert "no such module" in capsys.readouterr().err


def test_each_round_begins_with_another_way(load, capsys):
    load("loss")
    from peers.measuring import in_turns

    called: list[str] = []
    acts = {name: lambda name=name: called.append(name) or {"x": len(called)} for name in "abc"}
    found = in_turns(acts, 4)
    assert "".join(called) == "abcbcacababc"
    assert list(found) == list("abc")
    assert [row["x"] for row in found["a"]] == [1, 6, 8, 10]


def test_nanogpt_from_a_checkout_is_asked_for(load, monkeypatch, capsys, tmp_path):
    script = load("training")
    words = ["training.py", "--size", "tiny", "--ways", "nanoGPT", "--nanogpt", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert ended.value.code == 2
    assert "Give a checkout of nanoGPT" in capsys.readouterr().err


def test_power_of_growth(load):
    script = load("scaling")
    values = [1, 2, 4, 8, 16]
    assert script.exponent(values, [3.0 * v**1.5 for v in values]) == pytest.approx(1.5)
    assert script.exponent(values, [100.0, 100.0, *(v**2.0 for v in values[2:])]) == pytest.approx(2.0)
    # attention alone is what makes FLOPs grow faster than the length
    axis = script.AXES["length"]
    full, slid = (script.theory(script.AXES[n], 8192)["flops"] for n in ("length", "length, sliding"))
    assert full > 3 * slid
    assert slid == pytest.approx(2 * script.theory(script.AXES["length, sliding"], 4096)["flops"])
    assert script.point(axis, 512)[1:] == (512, 1)


def test_scaling_at_two_points(run):
    import torch

    torch.set_num_threads(1)  # threads of an earlier test would not live through the fork
    report = run("scaling", "--axes", "batch", "--most", "2")
    points = report["axes"]["batch"]["points"]
    assert [point["value"] for point in points] == [1, 2]
    assert points[1]["flops"] == 2 * points[0]["flops"]
    assert all(point["seconds"] > 0 and point["mb"] > 0 for point in points)
    assert report["axes"]["batch"]["exponents"]["seconds"]["theory"] == 1.0


def test_loss_per_minute_in_short(run, tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "plain.txt"
    text.write_text("".join(f"{i} times {i} is {i * i}.\n" for i in range(400)), encoding="utf-8")
    report = run("loss_per_minute", "--text", str(text), "--steps", "8", "--seeds", "1", "--minutes", "0.05")
    assert report["recipe"]["steps"] == 8
    assert [run["steps"] for run in report["modern"]] == sorted(run["steps"] for run in report["modern"])
    assert report["reached"] == (report["modern"][-1]["loss"] <= report["recipe"]["loss"])
    assert all(len(found["losses"]) == 1 for found in report["ablation"].values())


def test_ingredients_are_put_in_and_taken_out(load):
    script = load("loss_per_minute")
    recipes = script.ablations()
    assert recipes["modern without Muon"].optimiser.name == "adamw"
    assert recipes["modern without rotary positions"].fields["position_embedding_type"] == "learned"
    assert recipes["plain with zero projections"].zero
    for name, recipe in recipes.items():
        base = script.MODERN if name.startswith("modern") else script.PLAIN
        assert (recipe == base) == (" with" not in name), name
    model, _ = script.build(recipes["modern with zero projections"], 20, 0)
    assert model.model.layers[0].self_attn.o_proj.weight.abs().sum() == 0
    rates = [script.NANOGPT.rate_at(share) for share in (0.05, 0.525, 1.0)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])
    assert script.MUON.rate_at(0.55) == pytest.approx(0.5)


def test_usual_packing_drops_what_ours_keeps(load, tmp_path):
    script = load("data")
    some = script.documents(5000)
    assert sum(map(len, some)) == 5000
    ours = script.pack_ours(some, tmp_path)
    kept = script.group_texts({"input_ids": [ids.tolist() for ids in some]})
    assert len(kept["labels"]) == 5000 // script.BLOCK_SIZE
    assert ours.size < 2.2 * 5000
    assert 0 < ours.seconds < 60
    assert len(ours.rows) * script.BLOCK_SIZE > 5000


def test_waiting_share_is_a_share(load, tmp_path):
    script = load("data")
    ours = script.pack_ours(script.documents(5000), tmp_path)
    assert 0 < script.waiting(ours.rows, 2) < 1


def test_the_page_is_written_from_the_results(load):
    script = load("table")
    committed = script.PAGE.read_text(encoding="utf-8")
    assert committed == script.page(script.RESULTS, script.PAGE.stem), "run `PYTHONPATH=. python benchmarks/table.py`"
    for section in script.SECTIONS:
        assert (ROOT / "benchmarks" / section.script).is_file()


def test_pictures_are_the_same_for_the_same_figures(load, tmp_path):
    load("table")
    from peers.pictures import PICTURES

    point = {"seconds": 1.0, "mb": 2.0, "flops": 3, "bytes": 4}
    run = {"loss": 2.0, "seconds": 9.0, "steps": 4, "curve": [[1.0, 2, 2.5], [2.0, 4, 2.0]]}
    ways = {
        "ours": {"tokens_per_second": 2.0, "peak_mb": 3.0},
        "theirs": {"tokens_per_second": 1.0, "peak_mb": 9},
    }
    examples = {
        **dict.fromkeys(("training", "training-S2-float32", "training-S1-bfloat16-compiled"), ways),
        **dict.fromkeys((f"training-S{n}-bfloat16" for n in (1, 2, 3)), ways),
        **dict.fromkeys((f"training-S{n}-bfloat16-amx" for n in (1, 2)), ways),
        "training-S1-bfloat16-amx-again": ways,
        "loss-per-minute": {"recipe": run, "modern": [run]},
        "scaling": {"axes": {"length": {"points": [{"value": 1, **point}, {"value": 2, **point}]}}},
    }
    assert examples.keys() == PICTURES.keys()
    for name, draw in PICTURES.items():
        draw(examples[name], tmp_path / f"{name}.svg")
        first = (tmp_path / f"{name}.svg").read_bytes()
        draw(examples[name], tmp_path / f"{name}.svg")
        assert first == (tmp_path / f"{name}.svg").read_bytes()
        assert len(first) < 60_000


def test_distances_of_bfloat16_are_those_to_float32_of_the_same_seed(load):
    script = load("precision")
    assert script.smooth([9.0, 9.0, 4.0, 2.0, 1.0], window=2) == [3.0, 1.0]  # the first window falls steeply
    assert script.smooth([1.0, 3.0], window=2) == [2.0]

    def run(held_out: float, *training: float) -> dict:
        return {"held_out_loss": held_out, "training": list(training)}

    told = script.compare(
        {"float32": [run(2.0, 3.0, 2.5), run(2.2, 3.1, 2.4)], "bfloat16": [run(2.1, 3.0, 2.6), run(2.3, 3.0, 2.4)]}
    )
    assert told["float32"]["largest_distance_of_training_loss"] == 0
    assert told["bfloat16"]["largest_distance_of_training_loss"] == pytest.approx(0.1)
    assert told["bfloat16"]["mean_distance_of_training_loss"] == pytest.approx(0.05)
    assert told["bfloat16"]["held_out_loss"] == pytest.approx(2.2)
    assert told["float32, another seed"]["largest_distance_of_training_loss"] == pytest.approx(0.1)
