"""One parser for every recipe: a YAML file, then command-line overrides, into typed and nested dataclasses."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import os
import re
import shlex
import sys
import time
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, _postponed_annotations, set_parsing_settings

from gpt_finetune.allocation import keep_memory, start_anew
from gpt_finetune.errors import InputError, did_you_mean

T = TypeVar("T")
GRACE = 20.0  # seconds that another process gives the first one to say what is wrong
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")

set_parsing_settings(docstring_parse_attribute_docstrings=False)


def parse(config_class: type[T], arguments: Sequence[str] | None = None) -> T:
    """Build a recipe's configuration: the dataclass's defaults < the `--config` file < `key=value` overrides.

    Args:
        config_class: The recipe's dataclass; its docstring and those of its sections become `--help`.
        arguments: The command line without the program's name; None means `sys.argv[1:]`. Overrides may be written
            `train.learning_rate=1e-3` or `--train.learning_rate=1e-3`; `--flag` alone means `flag=true`.

    Raises:
        InputError: A key is unknown, a value has the wrong type, or the file cannot be read.
    """
    with _type_checking_blocks_asleep():
        return _parse(config_class, sys.argv[1:] if arguments is None else list(arguments))


def _parse(config_class: type[T], arguments: list[str]) -> T:
    words = _normalise(arguments, config_class)
    summary = (config_class.__doc__ or "").split("\n\n")[0]
    parser = ArgumentParser(
        prog=Path(sys.argv[0]).name,
        usage="%(prog)s [--config FILE] [key=value ...]",
        description=summary,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file whose values replace the defaults below")
    parser.add_class_arguments(config_class)
    for path in (word.split("=", 1)[1] for word in words if word.startswith("--config=")):
        _check_file(Path(path), config_class)
    try:
        namespace = parser.instantiate(parser.parse_args(words))
    except Exception as error:
        raise _own_error(error) or _translate(error, config_class) from None
    values = vars(namespace)
    values.pop("config", None)
    config = config_class(**values)
    _check_values(config, "")
    return config


@contextmanager
def _type_checking_blocks_asleep() -> Iterator[None]:
    """Keep jsonargparse from running `if TYPE_CHECKING:` blocks: seconds of imports, of which no field has its type."""
    visitor = _postponed_annotations.TypeCheckingVisitor
    visit = visitor.visit_If
    visitor.visit_If = lambda self, node: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        visitor.visit_If = visit  # type: ignore[method-assign]


def run(main: Callable[[T], Any], config_class: type[T], arguments: Sequence[str] | None = None) -> Any:
    """Parse, then call `main`; bad input, or a full disk, ends as one line on standard error and exit code 2.

    However many processes were launched, what all of them meet is said once, by the first: the launcher ends the others
    when one has ended, and so they let it be the one. What one meets when they have joined may be its own, a row that
    no other has read, and it says so itself, as does one that meets something alone before.
    """
    keep_memory()
    _show_log()
    try:
        config = parse(config_class, arguments)
        if arguments is None and main.__module__ == "__main__":  # whoever calls a recipe from elsewhere has begun
            start_anew()  # behind the parsing: help and mistakes are said at once
        return main(config)
    except Exception as error:
        said = error if isinstance(error, InputError) else _disk_error(error)
        if said is None:
            raise
        _end_bars()
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            print(f"error: {said}", file=sys.stderr)
        else:
            if not _have_joined():
                time.sleep(GRACE)
            print(f"error on process {rank}: {said}", file=sys.stderr)
        raise SystemExit(2) from None


def _end_bars() -> None:
    """End the progress bars that are left, so that what is said next begins a line."""
    tqdm = sys.modules.get("tqdm")
    for bar in list(tqdm.tqdm._instances) if tqdm is not None else []:
        bar.close()


def _disk_error(error: Exception) -> InputError | None:
    """Return what is to be said of a disk that takes nothing more; None for any other error.

    Where a run ends for that, its receipt cannot be written either: what ended it stands behind the last error.
    """
    from gpt_finetune.checkpoints.space import is_full

    number = getattr(error, "errno", None)
    writes = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
    if not (writes and (is_full(error) or number == errno.EROFS)):
        return None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None)
    problem = f"the disk takes nothing more: it is full, over quota or read-only ({error})"
    remedy = "Free space there, then go on with --resume, or start again with --overwrite"
    return _own_error(error) or InputError("disk", name or "output_dir or cache", problem, remedy)


def _have_joined() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _show_log() -> None:
    """Show what the package has to say (the ledger, above all) on standard error, from the first process only."""
    logger = logging.getLogger("gpt_finetune")
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())


def to_yaml(config: Any) -> str:
    """Write a configuration so that `parse` reads the same one back."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that the parser reads back: it takes 1e5 for a number, as YAML 1.2 does and PyYAML does not."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if re.fullmatch(r"[-+.\d][-+.\w]*", text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def command_line() -> str:
    """Return the command that started this process, as a person would type it."""
    program = Path(sys.argv[0]).resolve()
    name = str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else program.name
    launcher = ["accelerate", "launch"] if "ACCELERATE_MIXED_PRECISION" in os.environ else ["python"]
    return shlex.join([*launcher, name, *sys.argv[1:]])


def _normalise(words: list[str], config_class: type) -> list[str]:
    """Turn `key=value`, `--key value` and bare `--flag` into the `--key=value` that the parser knows."""
    known = keys(config_class)
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help") or word.startswith("--print_config") or word.endswith(".help"):
            result.append(word)
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not equals and not word.startswith("--"):
            raise InputError("argument", word, "it is neither key=value nor --key", "Write key=value; see --help")
        plain = name.removesuffix("+")
        if plain != "config" and not _is_known(plain, known):
            raise InputError(name, value, "there is no such key", did_you_mean(plain, known))
        if not equals:
            following = "true" if known.get(plain) is bool else next(rest, None)
            if following is None:
                raise InputError(name, "", "it has no value", f"Write {name}=VALUE")
            value = following
        result.append(f"--{name}={value}")
    return result


def keys(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Map the dotted keys of a nested dataclass to their types."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config_class).items():
        found[f"{prefix}{name}"] = hint
        if dataclasses.is_dataclass(hint):
            found |= keys(typing.cast(type, hint), f"{prefix}{name}.")
    return found


def _is_known(key: str, known: dict[str, Any]) -> bool:
    """Tell whether a key is a field, or stands below one that holds a dict of anything."""
    return key in known or any(key.startswith(f"{k}.") and typing.get_origin(hint) is dict for k, hint in known.items())


def _check_file(path: Path, config_class: type) -> None:
    """Refuse a file that is missing, is not YAML, or has a key that the recipe does not."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = error.strerror or "it cannot be read"
        raise InputError("config", str(path), problem, "Give an existing YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # of a day that no month has, a bare ValueError
        raise InputError("config", str(path), f"it is not YAML: {error}", "Mend the file") from None
    if values is not None and not isinstance(values, dict):
        raise InputError("config", str(path), "it holds no keys", "Write one `key: value` a line")
    known = keys(config_class)

    def check(section: dict[Any, Any], prefix: str) -> None:
        for name, value in section.items():
            key = f"{prefix}{name}"
            if not _is_known(key, known):
                raise InputError(f"{path}: {key}", value, "there is no such key", did_you_mean(key, known))
            if isinstance(value, dict) and dataclasses.is_dataclass(known.get(key)):
                check(value, f"{key}.")

    check(values or {}, "")


def _own_error(error: BaseException | None) -> InputError | None:
    """Find the error of a section's own checks inside what the parser made of it."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


def _translate(error: Exception, config_class: type) -> InputError:
    """Make one line of the parser's report: which key, what was given, what was expected."""
    text = re.sub(r"\s+", " ", str(error)).strip()
    match = re.search(r'key "([^"]+)"', text)
    name = match.group(1) if match else "configuration"
    if unknown := re.search(r"Option '([^']+)' is not accepted", text):  # inside a list of sections
        remedy = did_you_mean(unknown.group(1), _leaves(config_class))
        return InputError(f"{name}: {unknown.group(1)}", "…", "there is no such key", remedy)
    given = re.search(r"(?:Got|Given) value: (.+?)(?: Subtypes.*| - .*)?$", text)
    expected = re.findall(r"Expected an? (.+?)(?:\. |\.$| - | Given|$)", text)
    if not expected:
        return InputError(name, "…", text, "See --help for what it takes")
    wanted = " or ".join(dict.fromkeys(_readable(hint) for hint in expected))
    return InputError(name, given.group(1) if given else "…", f"expected {wanted}", "Give such a value; see --help")


def _check_values(value: Any, key: str) -> None:
    """Refuse NaN, which passes every comparison with a limit, infinity, and tokens, which the run would write down."""
    if isinstance(value, str) and _TOKEN.search(value):
        problem = "it holds a token of the Hub, and configurations are written into files that are passed on"
        raise InputError(key, "…", problem, "Set $HF_TOKEN instead, or run `hf auth login`")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(key, value, "it is not a finite number", "Give a number, or leave it out for the default")
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        for name, item in value.items():
            _check_values(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _check_values(item, f"{key}[{place}]")


def _leaves(config_class: type) -> set[str]:
    """Return every field's bare name, those of dataclasses inside lists included."""
    names: set[str] = set()
    for field_name, hint in typing.get_type_hints(config_class).items():
        names.add(field_name)
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                names |= _leaves(typing.cast(type, part))
    return names


def _readable(hint: str) -> str:
    hint = re.sub(r"<class '([\w.]+)'>", r"\1", hint)
    return re.sub(r"typing\.(Literal)?", "", hint).replace("NoneType", "null")
