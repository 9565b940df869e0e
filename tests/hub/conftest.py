"""A loopback Hub, clients in processes of their own, and folders to push."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.loopback import ACCOUNTS, WRITE, WRONG, Loopback
from support import ROOT

SECRETS = [*ACCOUNTS, WRONG]


class Client:
    """A process of `client.py`; what it says, on either stream, must be free of tokens."""

    def __init__(self, url: str, folder: Path, **environment: str) -> None:
        folder.mkdir()
        self.folder, self.log = folder, folder / "stderr.txt"
        settings = {
            **os.environ,
            "HF_ENDPOINT": url,
            "HF_HOME": str(folder / "hf"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "client.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            env=settings,
            cwd=folder,
            text=True,
        )

    def __call__(self, call: str, *words: str, token: str | None = WRITE, **arguments: Any) -> dict[str, Any]:
        """Have one function called; returns its `value`, or `error`, `message` and `trace`."""
        order = {"call": call, "words": words, "arguments": arguments, "token": token}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        assert not any(secret in line for secret in SECRETS)
        return json.loads(line)

    def close(self) -> None:
        """End the process and look through all that it wrote."""
        self.process.communicate()
        for path in self.folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert not any(secret.encode() in content for secret in SECRETS), path


@pytest.fixture(scope="session")
def loopback() -> Iterator[Loopback]:
    """Run the server; at the end, nothing that it was sent holds a token."""
    with Loopback() as server:
        yield server
    contents = [*server.objects.values(), *server.xet.xorbs.values()]
    assert not any(secret.encode() in content for secret in SECRETS for content in contents)
    assert not server.leaks


@pytest.fixture
def hub(loopback: Loopback) -> Iterator[Loopback]:
    """Return the server without faults."""
    loopback.faults.clear()
    loopback.part_size = None
    yield loopback
    left, loopback.faults = loopback.faults, []
    assert all(fault.times > 50 for fault in left), f"never came up: {left}"


def client(mode: str) -> Any:
    """Make the fixture of a client in one mode."""

    @pytest.fixture(scope="session", name=mode)
    def make(loopback: Loopback, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
        settings = {"lfs": {"HF_HUB_DISABLE_XET": "1"}, "xet": {"HF_HUB_DISABLE_XET": "0"}}[mode]
        started = Client(loopback.url, tmp_path_factory.mktemp("clients") / mode, **settings)
        yield started
        started.close()

    return make


lfs, xet = client("lfs"), client("xet")


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a saver of tiny models, one folder a head: read it, do not write to it."""
    import gpt_finetune
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("saved")
    tokenizer = train_tokenizer(iter(["def add(a, b):\n    return a + b\n" * 20]), TokenizerConfig(vocab_size=300))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"

    def make(head: str = "CausalLM") -> Path:
        target = folder / head
        if not target.exists():
            ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
            fields = {"initializer_range": 0.2, "is_causal": head != "MaskedLM", "num_labels": 3, **ids}
            config = gpt_finetune.preset("tiny", vocab_size=len(tokenizer), max_position_embeddings=128, **fields)
            getattr(gpt_finetune, f"GPTFor{head}")(config).save_pretrained(target)
            tokenizer.save_pretrained(target)
        return target

    return make


@pytest.fixture
def folder(save: Callable[..., Path]) -> Path:
    """Return a saved language model with its tokenizer; read it, do not write to it."""
    return save()


@pytest.fixture
def repo_id(request: pytest.FixtureRequest) -> str:
    """Return a name for a repository that no other test uses."""
    return f"alice/{abs(hash(request.node.nodeid)):x}"
