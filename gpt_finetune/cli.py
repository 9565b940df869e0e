"""`gpt-finetune RECIPE …`: the recipes of this repository by name, without knowing where they lie."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from gpt_finetune.errors import did_you_mean

RECIPES = Path(__file__).parent.parent / "recipes"


def main() -> None:
    """Run the recipe that the first argument names, with the rest of the command line."""
    if not RECIPES.is_dir():
        raise SystemExit(f"error: no recipes at {RECIPES}: install from a clone (pip install -e .) to run them by name")
    # inspect_.py has its underscore lest it hide Python's own module from the recipes beside it; the command has none
    recipes = {path.stem.rstrip("_"): path for path in sorted(RECIPES.glob("*.py"))}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        width = max(map(len, recipes))
        lines = [f"  {name:<{width}}  {_summary(path)}" for name, path in recipes.items()]
        print("usage: gpt-finetune RECIPE [--config FILE] [key=value …]\n\n" + "\n".join(lines))
        print(
            "\n`gpt-finetune RECIPE --help` lists every key; `accelerate launch` on the file runs it on many devices."
        )
        return
    name = sys.argv[1]
    if name not in recipes:
        print(f"error: no recipe {name!r}. {did_you_mean(name, recipes)}", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [str(recipes[name]), *sys.argv[2:]]
    runpy.run_path(str(recipes[name]), run_name="__main__")


def _summary(path: Path) -> str:
    """Return the first line of a recipe's docstring, without running it."""
    return path.read_text(encoding="utf-8").lstrip('"').split("\n", 1)[0].rstrip('"')


if __name__ == "__main__":
    main()
