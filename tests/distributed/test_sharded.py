"""FSDP2 on two real processes: trains as one process does, saves, resumes, and leaves a folder as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch
from support import load_recipe

from gpt_finetune.config import parse
from gpt_finetune.training.callbacks import read_json_lines

AS_A_GPU = {"ACCELERATE_TORCH_DEVICE": "cpu"}  # see ranks.py


def job(words: Any, folder: Path, *more: str) -> list[str]:
    """Return the words of a run whose steps do not depend on how many there are to be."""
    fixed = ["train.schedule=constant", "sample.prompts=[]", "model.overrides={tie_word_embeddings: false}"]
    return words(folder, *fixed, "train.max_steps=6", *more)


def job_of_rank(words: Any, folder: Path, *more: str) -> list[str]:
    return job(words, folder, "train.batch_size=2", "train.trainer.use_cpu=false", *more)


def losses(folder: Path) -> list[tuple[int, str, float]]:
    return [(row["step"], row["split"], row["loss"]) for row in read_json_lines(folder / "metrics.jsonl")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture(scope="module")
def runs(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run in one process here; sharded over two to the end; and again, to the middle and on from there."""
    folder = tmp_path_factory.mktemp("sharded")
    recipe = load_recipe("pretrain")
    recipe.main(parse(recipe.PretrainConfig, job(words, folder / "one")))
    jobs = [
        ("pretrain", job_of_rank(words, folder / "two")),
        ("pretrain", job_of_rank(words, folder / "resumed", "train.max_steps=3")),
        ("pretrain", job_of_rank(words, folder / "resumed", "--resume")),
    ]
    done = launch("fsdp2-cpu-2.yaml", "tests/distributed/ranks.py", "fsdp", json.dumps(jobs), **AS_A_GPU)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
def test_shards_train_as_the_whole_does(runs):
    one, two = losses(runs / "one"), losses(runs / "two")
    assert (runs / "two" / "checkpoint-6" / "pytorch_model_fsdp.bin").exists()  # else it was not FSDP at all
    assert [row[:2] for row in two] == [row[:2] for row in one]
    assert [row[2] for row in two] == pytest.approx([row[2] for row in one], rel=1e-5)


@pytest.mark.long
def test_shards_are_saved_as_one_folder(runs):
    files = {path.name for path in (runs / "one").iterdir()}
    assert {path.name for path in (runs / "two").iterdir()} == files
    configs = [(runs / name / "config.json").read_text() for name in ("one", "two")]
    assert configs[0] == configs[1]
    one, two = weights(runs / "one"), weights(runs / "two")
    assert set(one) == set(two)
    for name, expected in one.items():  # AdamW divides by what is nearly nothing
        torch.testing.assert_close(two[name], expected, atol=2e-3, rtol=0)


@pytest.mark.long
def test_a_sharded_run_resumes_bit_for_bit(runs):
    assert losses(runs / "resumed") == losses(runs / "two")
    for name, expected in weights(runs / "two").items():
        assert torch.equal(weights(runs / "resumed")[name], expected)


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(words, runs, tmp_path, first, then):
    for processes, more in ((first, ["train.max_steps=3"]), (then, ["--resume"])):
        given = job_of_rank(words, tmp_path / "run", *more, f"train.batch_size={4 // processes}")
        jobs = json.dumps([("pretrain", given)])
        done = launch("fsdp2-cpu-2.yaml", "tests/distributed/ranks.py", "fsdp", jobs, processes=processes, **AS_A_GPU)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [row[2] for row in losses(tmp_path / "run")] == pytest.approx(
        [row[2] for row in losses(runs / "one")], rel=1e-5
    )
