"""A model cut in two by transformers (tensor parallelism): trained, it is saved as one folder, and opens anywhere."""

from __future__ import annotations

import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
from transformers.distributed import DistributedConfig

from gpt_finetune import GPTForCausalLM

NAMES = ["gpt2", "llama", "gpt-oss"]  # a tied head, one of its own, experts
STEPS = 3


def train(model: GPTForCausalLM, x: torch.Tensor) -> None:
    """Train a little, by what DTensors take as tensors do."""
    for _ in range(STEPS):
        model.zero_grad()
        model(x, labels=x, output_router_logits=False).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad


def train_and_save(rank: int, port: int, folder: Path, x: torch.Tensor) -> None:
    """Train each model with the other process, and save it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for name in NAMES:
        model = GPTForCausalLM.from_pretrained(folder / name, distributed_config=DistributedConfig(tp_size=2))
        assert any(hasattr(parameter, "device_mesh") for parameter in model.parameters())
        train(model, x)
        model.save_pretrained(folder / f"{name}-saved", is_main_process=rank == 0)
        torch.distributed.barrier()


@pytest.mark.long
def test_a_model_that_was_cut_is_saved_whole(make_model, tmp_path):
    x = torch.randint(2, 512, (2, 12))
    for name in NAMES:
        make_model(name).save_pretrained(tmp_path / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(2):
        child = os.fork()  # a process of its own would import for seconds
        if child == 0:
            try:
                train_and_save(rank, port, tmp_path, x)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    for name in NAMES:
        saved = tmp_path / f"{name}-saved"
        assert {path.name for path in saved.iterdir()} == {path.name for path in (tmp_path / name).iterdir()}
        whole = GPTForCausalLM.from_pretrained(tmp_path / name)
        begun = whole(x).logits.detach()
        train(whole, x)
        got, expected = (model.eval()(x).logits for model in (GPTForCausalLM.from_pretrained(saved), whole))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        assert (expected - begun).abs().max() > 1e-2
