"""What must wait until transformers is imported: so that importing us alone, as `--help` does, takes no second."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

THEIRS, OURS = "transformers", "gpt_finetune"


def when_transformers_is_there(act: Callable[[], None]) -> None:
    """Run a function once: now, if transformers is imported, else as soon as it is and no module of ours is half done.

    Args:
        act: What to do; it may import any module of ours.
    """
    if THEIRS in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Watch(act))


class _Watch(MetaPathFinder):
    """Finds nothing by itself, but hears when transformers or a module of ours has been executed."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Let the other finders find a module, and ask to be told when it is there."""
        if name != THEIRS and not name.startswith(f"{OURS}."):
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            self._listen(name, spec.loader)
        return spec

    def _listen(self, name: str, loader: Any) -> None:
        execute = loader.exec_module  # of this module's own loader

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._executed(name)

        loader.exec_module = exec_module

    def _executed(self, name: str) -> None:
        """Act if transformers is whole, and so is every module of ours but this one, which has just been executed."""
        known = [
            (THEIRS, sys.modules.get(THEIRS)),
            *((n, m) for n, m in sys.modules.items() if n.startswith(OURS + ".")),
        ]
        if known[0][1] is None or any(_half_done(module) for other, module in known if other != name):
            return
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            self.act()


def _half_done(module: ModuleType | None) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
