"""Two hosts train together; the cable is cut, or one host dies: the job ends, says why, and goes on from there."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import ADDRESSES, Hosts, NoHosts
from reliability import record
from support import load_recipe

from gpt_finetune.checkpoints import find_whole
from gpt_finetune.config import parse
from gpt_finetune.training.callbacks import read_json_lines

STEPS, TIMEOUT = 24, 15  # seconds that a process waits for the other
RATE = "8mbit"  # a step's gradients take a tenth of a second and more


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    try:
        with Hosts(RATE) as made:
            yield made
    except NoHosts as error:
        pytest.skip(f"no network namespaces: {error}")


def job(words: Any, folder: Path, *more: str) -> list[str]:
    fixed = ["sample.prompts=[]", "train.eval_steps=null", "train.save_steps=2", "train.threads=1"]
    return words(folder, *fixed, f"train.max_steps={STEPS}", f"train.trainer.ddp_timeout={TIMEOUT}", *more)


def start(hosts: Hosts, words: Any, folder: Path, *more: str) -> list[subprocess.Popen]:
    given = job(words, folder / "run", "train.batch_size=2", *more)
    return [hosts.start(rank, folder / f"host-{rank}.log", "recipes/pretrain.py", *given) for rank in range(2)]


def wait_for_checkpoint(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    end = time.monotonic() + 200
    while not any(int(path.name.split("-")[1]) >= step for path in run.glob("checkpoint-*")):
        assert time.monotonic() < end
        assert all(process.poll() is None for process in processes)
        time.sleep(0.02)


def break_in(broken: str, hosts: Hosts) -> list[int]:
    """Break something; return the hosts that are left to say so."""
    if broken == "the cable":
        hosts.cut()
        return [0, 1]
    hosts.kill(int(broken[-1]))
    return [1 - int(broken[-1])]


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_json_lines(run / "metrics.jsonl") if row["split"] == "train"]


@pytest.fixture(scope="module")
def straight(words: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train in one process what two hosts are to train."""
    folder = tmp_path_factory.mktemp("hosts") / "straight"
    recipe = load_recipe("pretrain")
    recipe.main(parse(recipe.PretrainConfig, job(words, folder)))
    return folder


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("broken", ["the cable", "host 0", "host 1"])
def test_a_job_on_two_hosts_ends_in_time_and_goes_on(hosts, words, straight, tmp_path, broken):
    processes = start(hosts, words, tmp_path)
    wait_for_checkpoint(tmp_path / "run", 4, processes)
    left, began = break_in(broken, hosts), time.monotonic()
    for rank in left:
        assert processes[rank].wait(TIMEOUT + 60) != 0
        said = (tmp_path / f"host-{rank}.log").read_text()
        assert f"accelerate launch = 'process {rank} of 2': another process has ended, hangs or is out of reach" in said
    took = time.monotonic() - began
    assert took < TIMEOUT + 30  # the rest is the launcher's
    whole, damaged = find_whole(tmp_path / "run")
    assert whole is not None
    assert not damaged
    assert 4 <= int(whole.name.split("-")[1]) < STEPS

    hosts.mend()
    for process in processes:
        process.wait(30)
    for process in start(hosts, words, tmp_path, "--resume"):
        assert process.wait(200) == 0
    compare(tmp_path / "run", straight)
    how = f"two hosts in network namespaces over a veth link, time-out {TIMEOUT} s; lost: {broken}"
    figure = f"a clear error after {took:.0f} s, resumed to the straight run's losses"
    record(f"lost {broken}", "A lost machine ends the job, and loses nothing", how, figure)
    print(f"{broken}: ended after {took:.1f} s, went on from {whole.name}")


def compare(run: Path, straight: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert losses(run) == pytest.approx(losses(straight), rel=1e-6)
    models: list[Callable] = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (run, straight)]
    ids = torch.arange(3, 35)[None]
    with torch.no_grad():
        got, expected = (model(input_ids=ids).logits for model in models)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize(("rank", "said"), [(0, "1/2 clients joined"), (1, f"{ADDRESSES[0]}, 29500")])
def test_a_host_whose_other_never_comes_says_so_in_time(hosts, words, tmp_path, rank, said):
    given, launcher = job(words, tmp_path / "run", "train.batch_size=2"), ["--rdzv_conf", "timeout=20"]
    file, began = tmp_path / "said.log", time.monotonic()
    process = hosts.start(rank, file, "recipes/pretrain.py", *given, launcher=launcher)
    assert process.wait(150) != 0
    print(f"{said}: {time.monotonic() - began:.1f} s, imports included")
    assert "Timed out" in file.read_text() or "timed out" in file.read_text()
    assert said in file.read_text()
