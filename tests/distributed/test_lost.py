"""What a process says of others that are gone, and how long it waits for them."""

from __future__ import annotations

import socket
import time
from datetime import timedelta

import pytest
import torch
from accelerate.state import AcceleratorState

from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.lost import lost


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_processes_on_the_cpu_wait_as_long_as_they_are_told(tmp_path, monkeypatch, port):
    """transformers leaves the time-out out there, and one process would wait half an hour for the other."""
    if torch.accelerator.is_available():
        pytest.skip("with an accelerator processes meet over NCCL")
    names = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    training_arguments(TrainConfig(precision="float32"), tmp_path)  # imports take their time
    for name, value in (names | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))
    begin = time.monotonic()
    try:
        with pytest.raises(torch.distributed.DistStoreError) as caught:
            training_arguments(TrainConfig(precision="float32", trainer={"ddp_timeout": 1}), tmp_path)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert time.monotonic() - begin < 30
    said = str(lost(caught.value))
    assert said.startswith("accelerate launch = 'process 0 of 2': another process has ended, hangs or is out of reach:")
    assert "1/2 clients joined. " in said
    assert "train.trainer.ddp_timeout" in said


def test_a_store_that_does_not_answer_is_a_lost_process(port):
    with pytest.raises(torch.distributed.DistNetworkError) as caught:
        torch.distributed.TCPStore("127.0.0.1", port, 2, is_master=False, timeout=timedelta(seconds=1))
    assert str(port) in str(lost(caught.value))


def test_what_gloo_says_is_said_without_its_source_and_its_jokes():
    error = RuntimeError(
        "[/x/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:78: Connection reset by peer. "
        "This is typically caused by a remote worker hanging or bugs in the application. GLHF!"
    )
    said = str(lost(error))
    assert "out of reach: Read error [10.0.0.2]:78: Connection reset by peer. See what" in said
    assert "GLHF" not in said


@pytest.mark.parametrize("error", [None, ValueError("Connection closed by peer"), RuntimeError("sizes do not match")])
def test_other_errors_are_left_as_they_are(error):
    assert lost(error) is None
