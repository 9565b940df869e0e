"""Serve a language model to OpenAI clients: exported as it has to be, and put behind `transformers serve`.

    python recipes/serve.py --model runs/chat --port 8000
    curl 127.0.0.1:8000/v1/chat/completions --json '{"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}'

The server is transformers' own (`pip install "transformers[serving]"`). It loads the classes of transformers, so that a
model goes to it as a genuine gpt2, llama, …; one that none of these can express goes with its code. Both are written to
a temporary folder, which is gone after Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpt_finetune.config import run


@dataclass
class ServeConfig:
    """Serve a language model.

    Args:
        model: Folder or Hub id of a causal language model, ours or one that we can read; or the name of a packaged one.
        name: Model that clients ask for; null takes the folder's name, or the Hub id.
        host: Address to listen at; 0.0.0.0 is open to the network, and nobody has to give a password.
        port: Port to listen at.
        to: What the server is given: a class of transformers (native), our code (ours), or the first that works (auto).
        chat: Refuse a model that has no chat template; false serves text completions, which need none.
        device: Device of the server, such as cpu or cuda:0; auto lets it choose.
    """

    model: str = "runs/quickstart"
    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    to: Literal["auto", "native", "ours"] = "auto"
    chat: bool = True
    device: str = "auto"


def main(config: ServeConfig) -> None:
    """Run the recipe, until it is interrupted."""
    from transformers.utils import logging

    from gpt_finetune.packaged import locate
    from gpt_finetune.serving import check_port, check_servable, write_for_server

    path, folder = locate(config.model), Path(config.model)
    name = config.name or (folder.resolve().name if folder.is_dir() else config.model)
    check_port(config.host, config.port)
    tokenizer = check_servable(path, name, chat=config.chat)
    logging.set_verbosity_error()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside: tidy up as after Ctrl-C
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="gpt_finetune-serve-") as temporary:
        has_code = write_for_server(path, tokenizer, Path(temporary) / name, config.to)
        # The server knows a model by the path that it is given: here it is the name itself.
        command = [sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", name]
        command += ["--host", config.host, "--port", str(config.port), "--device", config.device]
        command += ["--trust-remote-code"] if has_code else []
        settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(temporary) / ".modules")}
        server = subprocess.Popen(command, cwd=temporary, env=settings)
        print(f"{name} at http://{config.host}:{config.port}/v1 as soon as it is loaded; Ctrl-C ends it", flush=True)
        try:
            code = server.wait()
        finally:
            server.terminate()
            server.wait()
        if code:
            raise SystemExit(f"error: the server ended with code {code}; what it said stands above")


if __name__ == "__main__":
    run(main, ServeConfig)
