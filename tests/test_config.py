"""The parser: defaults < file < command line, and errors that name key, value and remedy."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import yaml
from support import ROOT, load_recipe

from gpt_finetune import cli
from gpt_finetune.config import keys, parse, run, to_yaml
from gpt_finetune.errors import InputError, did_you_mean


@dataclass
class Item:
    """One item.

    Args:
        path: Where it is.
        weight: How often it counts.
    """

    path: str = "here"
    weight: float = 1.0


@dataclass
class Section:
    """A section.

    Args:
        rate: How fast, in steps a second.
        limit: At most so many, or null.
        kind: Which one.
        names: Some names.
        items: Some items.
        options: Anything.
    """

    rate: float = 0.5
    limit: int | None = None
    kind: Literal["red", "blue"] = "red"
    names: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=lambda: [Item()])
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise InputError("section.rate", self.rate, "it must not be negative", "Raise it")


@dataclass
class Recipe:
    """A recipe for tests.

    Args:
        text: Some text.
        flag: A switch.
        section: The section.
    """

    text: str = ""
    flag: bool = False
    section: Section = field(default_factory=Section)


@pytest.fixture
def write(tmp_path):
    def write(values: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values), encoding="utf-8")
        return str(path)

    return write


def test_nothing_given_is_the_defaults():
    assert parse(Recipe, []) == Recipe()


def test_command_line_beats_file_beats_default(write):
    path = write({"text": "file", "section": {"rate": 2, "limit": 7}})
    config = parse(Recipe, ["--config", path, "section.rate=3e-4"])
    assert (config.text, config.section.rate, config.section.limit, config.section.kind) == ("file", 3e-4, 7, "red")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["text=a=b c"], {"text": "a=b c"}),
        (["--text", "x = 1"], {"text": "x = 1"}),
        (["--text", "def "], {"text": "def "}),
        (["--text", ""], {"text": ""}),
        (["text="], {"text": ""}),
        (["--text", "--help me"], {"text": "--help me"}),
        (["text=你好，世界"], {"text": "你好，世界"}),
        (["text=123"], {"text": "123"}),
        (["--flag"], {"flag": True}),
        (["--flag", "text=x"], {"flag": True, "text": "x"}),
        (["flag=false"], {"flag": False}),
        (["--section.rate=2"], {"section": Section(rate=2.0)}),
        (["section.limit=null"], {"section": Section(limit=None)}),
        (["section.names=[a, b]"], {"section": Section(names=["a", "b"])}),
        (["section.items=[{path: x, weight: 2}]"], {"section": Section(items=[Item("x", 2.0)])}),
        (["section.items+={path: x}"], {"section": Section(items=[Item(), Item("x")])}),
        (["section.options.deep=3"], {"section": Section(options={"deep": 3})}),
    ],
)
def test_spellings(words, expected):
    assert parse(Recipe, words) == Recipe(**expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["section.rat=1"], r"section.rat = '1': there is no such key. Did you mean 'section.rate'\?"),
        (["--sektion.rate=1"], "sektion.rate = '1': there is no such key. Did you mean 'section.rate'"),
        (["section.rate=fast"], "section.rate = 'fast': expected float"),
        (["section.limit=1.5"], "section.limit = '1.5': expected int or null"),
        (["section.kind=green"], "section.kind = 'green': expected .*red.*blue"),
        (["flag=perhaps"], "flag = 'perhaps': expected bool"),
        (["section.items=[{pat: x}]"], "section.items: pat.*there is no such key. Did you mean 'path'"),
        (["section.items=[{weight: x}]"], "section.items = 'x': expected float"),
        (["section.rate=-1"], "section.rate = -1.0: it must not be negative. Raise it."),
        (["word"], "argument = 'word': it is neither key=value nor --key"),
        (["--text"], "text = '': it has no value"),
        (["--config", "missing.yaml"], "config = 'missing.yaml': No such file"),
    ],
)
def test_bad_command_lines(words, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(Recipe, words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("section:\n  rat: 1\n", "section.rat = 1: there is no such key. Did you mean 'section.rate'"),
        ("sectoin: {}\n", "sectoin = {}: there is no such key. Did you mean 'section'"),
        ("section: {rate: fast}\n", "section.rate.*expected float"),
        ("section: {items: [{pat: 1}]}\n", "pat.*there is no such key. Did you mean 'path'"),
        ("a: b: c\n", "it is not YAML"),
        ("just words\n", "it holds no keys"),
    ],
)
def test_bad_files(write, text, message):
    with pytest.raises(InputError, match=message):
        parse(Recipe, ["--config", write(text)])


def test_what_is_written_reads_back(write):
    config = parse(Recipe, ["text=诗", "section.options.deep={a: [1, 2]}", "section.items=[{path: x}]", "--flag"])
    assert parse(Recipe, ["--config", write(to_yaml(config))]) == config


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        run(lambda config: None, Recipe, ["section.rate=fast"])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: section.rate = 'fast'")
    assert error.count("\n") == 1


def test_a_token_in_the_wrong_place_is_not_repeated(capsys):
    with pytest.raises(InputError) as caught:
        parse(load_recipe("pretrain").PretrainConfig, ["hub_token=hf_abcdefghijklmnop"])
    assert "hf_abcdefghijklmnop" not in str(caught.value) + "".join(capsys.readouterr())
    assert "hub_token = 'hf_…'" in str(caught.value)


def test_did_you_mean_lists_all_when_nothing_is_close():
    assert did_you_mean("zzz", ["red", "blue"]) == "Known: blue, red"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in (ROOT / "recipes").glob("*.py")))
def test_help_lists_every_field_with_its_default(recipe, capsys):
    module = load_recipe(recipe)
    config_class = next(v for k, v in vars(module).items() if k.lower() == f"{recipe.replace('_', '')}config")
    with pytest.raises(SystemExit) as caught:
        parse(config_class, ["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for key, hint in keys(config_class).items():
        option = f" --{key}+ " if f" --{key}+ " in text else f" --{key} "
        described = text.split(option, 1)[1].split(" --", 1)[0]
        if dataclasses.is_dataclass(hint):
            continue
        assert "default: " in described, key
        assert len(described.split("(type:")[0].split()) > 3, f"{key} has no description"


def test_command_line_tool_lists_and_runs_the_recipes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpt-finetune", "--help"])
    cli.main()
    listing = capsys.readouterr().out
    for path in (ROOT / "recipes").glob("*.py"):
        assert path.stem.rstrip("_") in listing
    monkeypatch.setattr(sys, "argv", ["gpt-finetune", "pretrian"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert "Did you mean 'pretrain'?" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["gpt-finetune", "pretrain", "--help"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert "--train.learning_rate" in capsys.readouterr().out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_gets_the_time_to_say_what_is_wrong(rank, monkeypatch, capsys):
    """The launcher ends all as soon as one has ended: another that came first would leave nothing said."""
    waited: list[float] = []
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("gpt_finetune.config._have_joined", lambda: False)
    monkeypatch.setattr("gpt_finetune.config._show_log", lambda: None)
    monkeypatch.setattr("gpt_finetune.config.time.sleep", lambda seconds: waited.append(seconds))
    with pytest.raises(SystemExit):
        run(lambda config: None, Recipe, ["section.rate=fast"])
    said = capsys.readouterr().err
    assert said.startswith("error: section.rate" if rank == "0" else "error on process 1: section.rate")
    assert bool(waited) == (rank == "1")
