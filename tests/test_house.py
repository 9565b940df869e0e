"""The plan of the house: imports point down, files stay short, what travels stands alone."""

from __future__ import annotations

import ast
import importlib.util
import tomllib
from pathlib import Path

import pytest
from support import ROOT

# A room may import rooms of a lower floor, and its neighbours as long as that makes no circle.
FLOORS = {
    "allocation": 0,
    "errors": 0,
    "caching": 1,
    "checkpoints": 1,
    "model": 1,
    "config": 2,
    "costs": 2,
    "data": 2,
    "generation": 2,
    "metrics": 2,
    "presets": 2,
    "quantization": 2,
    "report": 2,
    "adaptation": 3,
    "build": 3,
    "conversion": 3,
    "hub": 3,
    "packaged": 3,
    "supervised": 3,
    "saving": 3,
    "serving": 3,
    "training": 4,
    "tasks": 5,
    "cli": 6,
    "recipes": 6,
    "__init__": 6,
}
MODULES = sorted((ROOT / "gpt_finetune").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TRAVELS_WITH = {"torch", "transformers", "huggingface_hub"}


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if relative.parts[0] == "recipes" else relative.with_suffix("").parts[1]


def imports(path: Path) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


def rooms_used(path: Path) -> set[str]:
    names = [name for level, name in imports(path) if level == 0 and name.split(".")[0] == "gpt_finetune"]
    return {name.split(".")[1] if "." in name else "__init__" for name in names} - {room(path)}


@pytest.mark.parametrize("path", [*MODULES, *RECIPES], ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    here = room(path)
    for used in rooms_used(path) - {"__init__"}:
        assert FLOORS[used] <= FLOORS[here], f"{path.name} ({here}) imports {used}, which stands above it"
        assert used != "recipes"


def test_neighbours_make_no_circle():
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        uses.setdefault(room(path), set()).update(rooms_used(path) - {"__init__"})

    def reach(start: str, seen: frozenset[str] = frozenset()) -> set[str]:
        return {start}.union(*(reach(n, seen | {start}) for n in uses.get(start, set()) - seen - {start}))

    for name, used in uses.items():
        for neighbour in used:
            assert name not in reach(neighbour), f"{name} and {neighbour} import each other"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_hide_no_module_from_each_other(path):
    """A recipe's folder comes first where Python looks: recipes/evaluate.py would be what `import evaluate` finds."""
    assert importlib.util.find_spec(path.stem) is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_do_not_import_recipes_and_are_short(path):
    others = {other.stem for other in RECIPES}
    assert not others & {name.split(".")[-1] for _, name in imports(path) if "recipes" in name or name in others}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", sorted((ROOT / "gpt_finetune/model").glob("*_gpt.py")), ids=lambda path: path.name)
def test_what_travels_stands_alone(path):
    standard = __import__("sys").stdlib_module_names
    for level, name in imports(path):
        if level:
            assert level == 1, f"{path.name}: only siblings travel"
            assert name.endswith("_gpt"), f"{path.name}: `from . import x` is not copied"
            assert "." not in name
        else:
            assert name.split(".")[0] in TRAVELS_WITH | standard, f"{path.name} imports {name}"
    text = path.read_text(encoding="utf-8")
    assert "gpt_finetune" not in text.replace('model_type = "gpt_finetune"', "")
    assert "from .." not in text


def code_lines(path: Path) -> int:
    """Count the lines that hold code: no blanks, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node):
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in docstrings for n, line in lines)


def test_the_architecture_is_readable_in_one_sitting():
    """What computes logits, from GPT-1 to gpt-oss, in four files of one concept each."""
    files = [ROOT / "gpt_finetune/model" / f"{name}_gpt.py" for name in ("layers", "attention", "blocks", "modeling")]
    assert sum(code_lines(path) for path in files) <= 685
    # with the configuration, the heads, the loss, and how attention, norms, GELU, rotations and dropout are computed
    assert sum(code_lines(path) for path in (ROOT / "gpt_finetune/model").glob("*.py")) <= 1799


def test_version_is_the_same_everywhere():
    import gpt_finetune

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == gpt_finetune.__version__


def test_every_requirement_is_locked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    locked = {
        line.split("==")[0].lower().replace("-", "_")
        for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    }
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].lower().replace("-", "_")
        assert name in locked | {"torch"}, name
