from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
import torch

pytestmark = [pytest.mark.client("openai"), pytest.mark.slow]

CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@contextmanager
def serving(folder, log):
    """Run `transformers serve` on a folder; give the address of its API."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), *address, "--device", "cpu"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_transformers_serve(save, tokenizer, name, tmp_path):
    """`transformers serve`, asked by the openai client: the answer, whole and streamed, is our greedy one

    A native export: `gpt-finetune convert --model <folder> --output_dir <new> --to native`; the server does not load
    code that travels.
    """
    import openai
    from support import load_recipe
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save(name)
    speaking = AutoTokenizer.from_pretrained(folder)
    speaking.chat_template = CHAT
    speaking.save_pretrained(folder)
    convert = load_recipe("convert")
    exported = convert.main(convert.ConvertConfig(str(folder), str(tmp_path / "native"), "native"))

    with serving(exported, tmp_path / "server.log") as address:
        client = openai.OpenAI(base_url=address, api_key="none")
        question = {
            "model": str(exported),
            "messages": [{"role": "user", "content": "the quick"}],
            "max_tokens": 6,
            "temperature": 0.0,
        }
        whole = client.chat.completions.create(**question).choices[0].message.content
        chunks = client.chat.completions.create(**question, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = speaking.apply_chat_template(question["messages"], return_tensors="pt", return_dict=True)
    with torch.no_grad():
        said = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert whole == streamed == speaking.decode(said, skip_special_tokens=True)
