"""Which Python files a model needs beside its weights, and whether they work where this package is not installed."""

from __future__ import annotations

import ast
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_imports, get_relative_imports

from gpt_finetune.errors import InputError

# Whoever loads a model has these; any other import makes loading fail where the package is missing.
EVERYWHERE = {"huggingface_hub", "numpy", "safetensors", "tokenizers", "torch", "transformers"}

OURS = (
    "Put the file beside copies of those in gpt_finetune/model, and write `from .modeling_gpt import name`; or set "
    "_auto_class = None in your class, which saves the weights without its code"
)
REMEDIES = {"gpt_finetune": OURS}


def travelling_code(folder: Path, config: dict[str, Any]) -> set[str]:
    """Return the names of the code files that `auto_map` names, with all that they import.

    Args:
        folder: The model's folder.
        config: Its `config.json`.

    Raises:
        InputError: A file is missing, is no Python, or imports what does not travel.
    """
    named = {value.split(".")[0] for value in (config.get("auto_map") or {}).values() if "--" not in value}
    return _follow(folder, [(name, "config.json: auto_map") for name in sorted(named)])


def check_class(saved: type) -> None:
    """Refuse a model's or configuration's class whose file, which is saved with it, would not load elsewhere.

    A class that is not to be saved (`_auto_class = None`), or that no file holds, is none of our business.

    Args:
        saved: The class.

    Raises:
        InputError: The file, or a sibling that it imports, is missing or imports what does not travel.
    """
    written = written_class(saved)
    file = getattr(sys.modules.get(written.__module__), "__file__", None)
    if saved._auto_class is not None and written.__module__ != "__main__" and file:  # type: ignore[attr-defined]
        _follow(Path(file).parent, [(Path(file).stem, written.__name__)])


def written_class(made: type) -> type:
    """Return the class that somebody wrote: FSDP puts one of its own, which torch makes, over a model's."""
    return next(kind for kind in made.__mro__ if not kind.__module__.startswith("torch."))


def _follow(folder: Path, waiting: list[tuple[str, str]]) -> set[str]:
    """Check code files, given with what asks for each, and the siblings that they import; returns all their names."""
    found: set[str] = set()
    while waiting:
        name, asked_by = waiting.pop()
        path = folder / f"{name}.py"
        if path.name in found:
            continue
        if not path.is_file():
            remedy = "Save the model again with save_pretrained, which writes its code too"
            raise InputError(asked_by, f"{name}.py", "this code file is not in the folder", remedy)
        _check_imports(path, path.read_bytes())
        found.add(path.name)
        waiting += [(sibling, f"{path.name}: import") for sibling in get_relative_imports(path)]
    return found


@lru_cache(maxsize=64)  # each checkpoint asks again about files that rarely change: half a second for ours
def _check_imports(path: Path, code: bytes) -> None:
    """Refuse what transformers, which finds imports by regular expressions, would not copy or not find."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError) as error:
        problem = f"it is no Python ({type(error).__name__})"
        raise InputError("code", path.name, problem, "Mend the file, or save the model again") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and (node.level > 1 or not node.module):
            written = f"from {'.' * node.level}{node.module or ''} import {', '.join(a.name for a in node.names)}"
            problem = "transformers copies only what `from .file import name` names"
            raise InputError(f"{path.name}: import", written, problem, "Write the import so")
    for sibling in get_relative_imports(path):
        if sibling.startswith(".") or "." in sibling:
            problem = "transformers looks for its file and finds none, in a docstring too"
            raise InputError(f"{path.name}: import", f".{sibling}", problem, "Write `from .file import name`")
    for package in get_imports(path):
        if package not in EVERYWHERE | sys.stdlib_module_names:
            problem = "loading fails wherever this package is not installed"
            remedy = REMEDIES.get(package, "Import it inside try/except, or do without it")
            raise InputError(f"{path.name}: import", package, problem, remedy)
