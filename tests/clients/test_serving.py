from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import torch
from support import ROOT

pytestmark = [pytest.mark.client("openai"), pytest.mark.slow]

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@contextmanager
def serving(folder, log, temporary, *words):
    """Run `gpt-finetune serve` on a folder; give the address of its API, then end it as Ctrl-C does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [f"model={folder}", f"port={port}", "device=cpu", *words]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    temporary.mkdir()
    with log.open("w") as output:
        command = [sys.executable, "-m", "gpt_finetune.cli", "serve", *words]
        # what runs in a shell's background ignores Ctrl-C, and so would what it starts
        as_in_front = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        server = subprocess.Popen(command, stdout=output, stderr=output, env=settings, preexec_fn=as_in_front)
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        assert list(temporary.iterdir())
        yield f"http://127.0.0.1:{port}/v1"
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0, log.read_text()[-3000:]
        assert not answers(f"http://127.0.0.1:{port}/health")
        assert not list(temporary.glob("gpt_finetune-*"))
    finally:
        server.terminate()  # not killed, which would leave what it started
        server.wait(30)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.mark.parametrize("name", ["gpt2", "llama", "modern"])
def test_transformers_serve(save, name, tmp_path):
    """`transformers serve` by `gpt-finetune serve`, asked by the openai client: chat, streamed and text as ours, greedy

    A chat template for chat completions. A model that is no gpt2, llama, … for transformers goes with its code.
    """
    import openai
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save(name)
    speaking = AutoTokenizer.from_pretrained(folder)
    speaking.chat_template = CHAT
    speaking.save_pretrained(folder)
    question = {"model": "alice/tiny", "max_tokens": 6, "temperature": 0.0}
    messages = [{"role": "user", "content": "the quick"}]

    log = tmp_path / "server.log"
    with serving(folder, log, tmp_path / "temporary", "name=alice/tiny") as address:
        client = openai.OpenAI(base_url=address, api_key="none")
        whole = client.chat.completions.create(messages=messages, **question).choices[0].message.content
        chunks = client.chat.completions.create(messages=messages, **question, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        text = client.completions.create(prompt="the quick", **question).choices[0].text
    assert ("with its code" in log.read_text()) == (name == "modern")

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for ids, answers_given in (
        (speaking.apply_chat_template(messages, return_tensors="pt", return_dict=True), {whole, streamed}),
        (speaking("the quick", return_tensors="pt"), {text}),
    ):
        with torch.no_grad():
            said = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert answers_given == {speaking.decode(said, skip_special_tokens=True)}
