"""What `transformers serve` needs of a model: a tokenizer, classes that it knows, or code that it may run."""

from __future__ import annotations

import json
import logging
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gpt_finetune.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Format = Literal["auto", "native", "ours"]
# The server takes classes from transformers alone, but for this Auto class: it asks it first, and that may have code.
CODE = {"AutoModelForDecision": "modeling_gpt.GPTForCausalLM"}


def check_servable(path: str, name: str, *, chat: bool = True) -> PreTrainedTokenizerBase:
    """Refuse what cannot be served, before any weights are loaded.

    Args:
        path: The model's folder or Hub id.
        name: Under which clients will ask for it.
        chat: Chat completions are wanted, not text completions alone.

    Returns:
        The model's tokenizer.

    Raises:
        InputError: The server is not installed, there is no such model, its head writes no text, it has no tokenizer,
            or it has no chat template and should.
    """
    from transformers import PreTrainedConfig
    from transformers.utils.import_utils import is_serve_available

    from gpt_finetune.conversion import find_tokenizer
    from gpt_finetune.report.heads import LANGUAGE_MODEL, find_head

    if not is_serve_available():
        remedy = 'Run: pip install "transformers[serving]"'
        raise InputError("model", path, "the packages of transformers' server are not installed", remedy)
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise InputError("name", name, "the server would read more than a name in it", "Give a name, or owner/name")
    if (Path(path) / "adapter_config.json").is_file():
        raise InputError("model", path, "it is an adapter", "Merge it into its base, and serve the result")
    try:
        content, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise InputError("model", path, problem, "Give the folder or Hub id of a saved model") from None
    architecture = (content.get("architectures") or ["none that is named"])[0]
    head = find_head(architecture)
    if head is None or head.auto != LANGUAGE_MODEL.auto:
        raise InputError("model", path, f"it writes no text; its class is {architecture}", "Give a language model")
    tokenizer = find_tokenizer(path)
    if tokenizer is None:
        raise InputError("model", path, "it has no tokenizer", "Save it there: tokenizer.save_pretrained(folder)")
    if chat and not tokenizer.chat_template:
        remedy = "Set tokenizer.chat_template and save it, or serve text completions alone with chat=false"
        raise InputError("model", path, "chat completions need a chat template, and its tokenizer has none", remedy)
    return tokenizer


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened at.

    Raises:
        InputError: It is in use, or not of this machine.
    """
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        problem = f"nothing can listen there at {host}: {getattr(error, 'strerror', None) or error}"
        raise InputError("port", port, problem, "Give another port or host") from None


def write_for_server(path: str, tokenizer: PreTrainedTokenizerBase, folder: Path, to: Format = "auto") -> bool:
    """Write a model as the server can load it.

    Args:
        path: The model's folder or Hub id.
        tokenizer: The model's tokenizer, saved with it.
        folder: Where to; it must be new.
        to: `native` for an architecture of transformers, `ours` for our code, `auto` for the first that works.

    Returns:
        Whether the model's code is part of it, so that the server must be told to trust it.

    Raises:
        InputError: `native`, and no architecture can express the model: the message names the fields in the way.
    """
    from gpt_finetune import GPTForCausalLM, export_native

    model = GPTForCausalLM.from_pretrained(path, dtype="auto")
    if to != "ours":
        try:
            export_native(model, folder, tokenizer=tokenizer)
            return False
        except InputError as error:
            if to == "native":
                raise InputError("to", to, error.problem, "Change these options, or serve it with to=ours") from None
            log.info("It goes to the server with its code: %s", error.problem)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["auto_map"] |= CODE
    (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return True
