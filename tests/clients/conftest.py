"""Other people's software on our models; what docs/compatibility.md says is made of these tests.

A test marked `client("trl")` is skipped where that package is missing. The first line of its docstring says what it
runs, the rest what it takes: both go into the table that `CLIENTS_TABLE=<file> pytest tests/clients` writes, with
version and result. Then no client may be missing: that is `make test-clients`.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compatibility import TABLE, Outcome, write_table
from support import ROOT

# A client that does not fit beside our pinned versions has an environment of its own, `.venv-<name>` in this folder.
ENVIRONMENTS = Path(os.environ.get("CLIENTS_ENVIRONMENTS", ROOT))
VERSION = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"


def client_python(environment: str | None) -> Path:
    """Return the interpreter that has the client."""
    return Path(sys.executable) if environment is None else ENVIRONMENTS / f".venv-{environment}" / "bin" / "python"


def find_version(package: str, environment: str | None) -> str | None:
    """Return the installed version of a client, or None."""
    if environment is None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None
    python = client_python(environment)
    if not python.exists():
        return None
    found = subprocess.run([python, "-c", VERSION, package], capture_output=True, text=True)
    return found.stdout.strip() or None


def pytest_configure(config: pytest.Config) -> None:
    line = "client(package, environment=None): needs this package, installed beside us or in `.venv-<environment>`"
    config.addinivalue_line("markers", line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    marker = item.get_closest_marker("client")
    if marker is None:
        return
    package, environment = marker.args[0], marker.kwargs.get("environment")
    version = find_version(package, environment)
    what, _, needs = inspect.cleandoc(item.function.__doc__).partition("\n\n")
    item.user_properties.append(("client", (package, version or "missing", what, needs)))
    if version is None:
        (pytest.fail if TABLE else pytest.skip)(f"{package} is not installed: `make test-clients` builds where it is")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not TABLE:
        return
    reports = [report for found in terminalreporter.stats.values() for report in found if hasattr(report, "outcome")]
    write_table(
        Path(TABLE),
        [
            Outcome(*properties["client"], test=report.nodeid.split("[")[0], passed=report.outcome == "passed")
            for report in reports
            if (properties := dict(report.user_properties)).keys() >= {"client"}
            and (report.when == "call" or report.outcome == "failed")
        ],
    )


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Return a small byte-level tokenizer."""
    from gpt_finetune.data.config import TokenizerConfig
    from gpt_finetune.data.tokenizer import train_tokenizer

    texts = ["def add(a, b):\n    return a + b\n" * 20, "the quick brown fox jumps over the lazy dog. " * 20]
    return train_tokenizer(iter(texts), TokenizerConfig(vocab_size=300))


@pytest.fixture
def save(make_config: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of folders with a tiny model and its tokenizer, as users have them."""

    def make(architecture: str = "gpt2", head: str = "CausalLM", **overrides: Any) -> Path:
        import gpt_finetune

        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        fields = {"vocab_size": len(tokenizer), "initializer_range": 0.2, **ids, **overrides}
        model = getattr(gpt_finetune, f"GPTFor{head}" if head else "GPTModel")(make_config(architecture, **fields))
        folder = tmp_path / f"{architecture}-{head}"
        model.eval().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def without_us(tmp_path: Path) -> Callable[..., str]:
    """Return a runner of scripts in a process where importing gpt_finetune fails; what they print is returned."""

    def run(script: str, *words: Any, environment: str | None = None, **variables: str) -> str:
        hide = 'import sys\nsys.modules["gpt_finetune"] = None\n'
        settings = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), **variables}
        settings.pop("PYTHONPATH", None)
        command = [str(client_python(environment)), "-c", hide + script, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=settings)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        return done.stdout

    return run
