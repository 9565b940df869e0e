"""Some steps of a past run, made again from its receipt and compared with what it wrote down.

Nothing is written into the past run's folder. Figures are compared to the last bit: JSON holds them whole.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import shutil
import sys
import typing
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from transformers import TrainerCallback

from gpt_finetune.checkpoints.choice import checkpoints
from gpt_finetune.checkpoints.manifest import MANIFEST, damage
from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.training.callbacks import read_json_lines
from gpt_finetune.training.run import GUESTS, OF_ONE_COMMAND, RECEIPT

log = logging.getLogger(__name__)

OUTCOME = "replay.json"
_COMPARED = ("loss", "grad_norm", "learning_rate")
_THE_FOLDER = ("output_dir", *OF_ONE_COMMAND)  # of a configuration, what a replay has of its own
_SECTIONS = ("environment", "model", "data")  # of a receipt, what may explain a difference
# Consequences of the machine's load, or long tables of what the fingerprint stands for.
_LEFT_OUT = ("data.ledger", "model.memory_estimate")
Place = tuple[int, str]  # step, split


@dataclass(frozen=True)
class Past:
    """What a past run has left.

    Args:
        folder: The run's.
        receipt: `run.json`.
        rows: Lines of `metrics.jsonl`, by step and split.
    """

    folder: Path
    receipt: dict[str, Any]
    rows: dict[Place, dict[str, Any]]

    @property
    def last_step(self) -> int:
        """The last step that it logged."""
        return max((step for step, split in self.rows if split == "train"), default=0)

    def since(self, step: int) -> int:
        """Return after which step the mean begins that the loss logged at a step is: the last log, or a resume."""
        marks = {0, *self.receipt.get("resumed_from", []), *(place[0] for place in self.rows if place[1] == "train")}
        return max(mark for mark in marks if mark < step)


@dataclass
class Outcome:
    """What came of a replay.

    Args:
        first: First step that was compared.
        last: Last one.
        begun_from: The step of the checkpoint that the replay began from; 0 is the start.
        compared: Logged figures that could be compared.
        parted: The first place where they differ, as a sentence; None where they do not.
        parted_at: Its step.
        weights: Whether the weights of the last step are equal; None where the past run has no checkpoint of it.
        differing: What else differs: dotted name -> (then, now).
    """

    first: int
    last: int
    begun_from: int
    compared: int = 0
    parted: str | None = None
    parted_at: int | None = None
    weights: bool | None = None
    differing: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether all that was compared is equal."""
        return self.parted is None and self.weights is not False

    def __str__(self) -> str:
        place = f"checkpoint-{self.begun_from}" if self.begun_from else "the start"
        lines = [f"steps {self.first} to {self.last}, made again from {place}: {self.compared} logged figures compared"]
        lines.append(self.parted or "all of them are equal to the last bit")
        told = {None: "not compared: the past run keeps no checkpoint of it", True: "equal", False: "DIFFERENT"}
        lines.append(f"weights after step {self.last}: {told[self.weights]}")
        lines += [f"differs: {name}: {then!r} then, {now!r} now" for name, (then, now) in self.differing.items()]
        if not self.differing:
            lines.append("configuration, data, code, packages and machine are as they were")
        return "\n".join(lines)


class _Ended(Exception):
    """The last step to be made again has been made."""


class _Until(TrainerCallback):
    """Logs the last step, saves a checkpoint of it, and ends the run where the next one would begin."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.last:
            control.should_log = control.should_save = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.last:
            raise _Ended

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise _Ended


def read_past(folder: Path) -> Past:
    """Read what a past run has left.

    Raises:
        InputError: It is no run, or one that cannot be replayed.
    """
    try:
        receipt = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        problem = f"it holds no {RECEIPT} that can be read"
        raise InputError("run", str(folder), problem, "Give the output folder of a run") from None
    rows = {(row["step"], row["split"]): row for row in read_json_lines(folder / "metrics.jsonl") if "split" in row}
    past = Past(folder, receipt, rows)
    if not past.last_step:
        folds = sorted(path.name for path in folder.glob("fold-*"))
        remedy = f"Give one of its folds: {', '.join(folds)}" if folds else "Give a run that has trained"
        raise InputError("run", str(folder), "it has logged no step of training", remedy)
    if (processes := receipt.get("environment", {}).get("processes", 1)) != 1:
        problem = f"it was trained by {processes} processes, and a replay is made by one"
        raise InputError("run", str(folder), problem, "Replay a run of one process")
    return past


def replay(past: Past, recipes: Path, target: Path, first: int, last: int | None = None) -> Outcome:
    """Make some steps of a past run again, in this process, and compare.

    Args:
        past: The run.
        recipes: The folder of the recipes.
        target: A folder for what is made again: new, or empty.
        first: First step to compare, from 1; the run begins at the newest whole checkpoint before it, or at the start.
        last: Last one; None is the last that the past run logged.

    Raises:
        InputError: There are no such steps, the recipe does not train, or the configuration is not one of today's.
    """
    last = past.last_step if last is None else last
    if not 1 <= first <= last <= past.last_step:
        problem = f"the run has logged steps 1 to {past.last_step}"
        raise InputError("first, last", (first, last), problem, "Give steps among them, the first one first")
    recipe = load_recipe(recipes, str(past.receipt.get("recipe")))
    config_class = typing.get_type_hints(recipe.main)["config"]
    checkpoint, begin = _beginning(past.folder, first)
    own = [f"output_dir={target}", f"resume={str(checkpoint is not None).lower()}", "overwrite=false"]
    config = parse(config_class, ["--config", str(past.folder / "config.yaml"), *own])
    if checkpoint is not None:
        shutil.copytree(checkpoint, target / checkpoint.name)
        (target / RECEIPT).write_text("{}", encoding="utf-8")  # `Run` goes on only where there is one
    until = _Until(last)
    GUESTS.append(until)
    try:
        recipe.main(config)
    except _Ended:
        log.info("replayed up to step %d", last)
    finally:
        GUESTS.remove(until)
        if target.is_dir():
            (target / OUTCOME).write_text("{}\n", encoding="utf-8")  # by which the next one knows what it may replace
    again = read_past(target)
    outcome = Outcome(first, last, begin)
    _compare_rows(past, again, outcome)
    outcome.weights = _same_weights(past.folder, target, last)
    outcome.differing = _differing(past, again)
    again.receipt.pop("error", None)
    (target / RECEIPT).write_text(json.dumps(again.receipt | {"status": "replayed"}, indent=2), encoding="utf-8")
    told = dataclasses.asdict(outcome) | {"run": str(past.folder), "same": outcome.same}
    (target / OUTCOME).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return outcome


def load_recipe(recipes: Path, name: str) -> ModuleType:
    """Import a recipe that trains, by the name in a receipt.

    Raises:
        InputError: There is none, or it does not train.
    """
    path = recipes / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"replayed_{name}", path) if path.is_file() else None
    if spec is None or spec.loader is None:
        raise InputError("recipe", name, f"there is none in {recipes}", "Use the code that the run was made with")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    if "resume" not in typing.get_type_hints(typing.get_type_hints(module.main)["config"]):
        raise InputError("recipe", name, "it does not train", "Give the folder of a run that does")
    return module


def _beginning(folder: Path, first: int) -> tuple[Path | None, int]:
    """Return the newest checkpoint before a step that a run can go on from, with its step; None and 0 for the start."""
    for path in checkpoints(folder):
        step = int(path.name.rpartition("-")[2])
        if step >= first or not (path / "optimizer.pt").exists():
            continue
        problems = damage(path)
        if not problems:
            return path, step
        log.warning("%s is passed by: %s", path, ", ".join(problems))
    return None, 0


def _compare_rows(past: Past, again: Past, outcome: Outcome) -> None:
    """Compare what was logged of each step, and note the first that differs."""
    wanted = range(outcome.first, outcome.last + 1)
    for place in sorted((p for p in past.rows if p[0] in wanted), key=lambda p: (p[0], p[1] != "train")):
        then, now = past.rows[place], again.rows.get(place)
        # the evaluation after the last step comes when training has ended; a signal has its step logged out of turn
        if now is None and (place == (outcome.last, "eval") or place[0] in past.receipt.get("resumed_from", [])):
            continue
        if now is None:
            outcome.parted, outcome.parted_at = f"they part at step {place[0]}: it was not logged again", place[0]
            return
        for name in _COMPARED:
            # a mean over other steps: where one of the two began between two logs
            other = place[1] == "train" and past.since(place[0]) != again.since(place[0])
            if name not in then or (name == "loss" and other):
                continue
            outcome.compared += 1
            if then[name] == now.get(name):
                continue
            what = f"evaluation {name}" if place[1] == "eval" else name
            by = f"{now[name] - then[name]:+.3g}" if name in now else "it is missing"
            said = f"they part at step {place[0]}: {what} {then[name]!r} then, {now.get(name)!r} now ({by})"
            since = max(past.since(place[0]), outcome.begun_from)
            said += f"; the steps before {place[0]} since {since} are in no log" if place[0] - since > 1 else ""
            outcome.parted, outcome.parted_at = said, place[0]
            return


def _same_weights(then: Path, now: Path, step: int) -> bool | None:
    """Compare the SHA-256 of the weights in two runs' checkpoints of a step; None where the first has none."""
    signed = []
    for folder in (then, now):
        try:
            text = (folder / f"checkpoint-{step}" / MANIFEST).read_text(encoding="utf-8")
        except OSError:
            return None
        files = json.loads(text)["files"]
        signed.append({name: said["sha256"] for name, said in files.items() if name.endswith(".safetensors")})
    return signed[0] == signed[1]


def _differing(past: Past, again: Past) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two runs besides their figures: dotted name -> (then, now)."""
    found: dict[str, tuple[Any, Any]] = {}
    for section in _SECTIONS:
        then, now = (_flat(run.receipt.get(section, {}), f"{section}.") for run in (past, again))
        # what a receipt of older code does not hold, nobody knows
        found |= {name: (then[name], now.get(name)) for name in then if then[name] != now.get(name)}
    then, now = (
        _flat(yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8")), "config.")
        for run in (past, again)
    )
    own = [f"config.{name}" for name in _THE_FOLDER]
    names = [name for name in {**then, **now} if name not in own]
    found |= {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}
    return {name: pair for name, pair in found.items() if not name.startswith(_LEFT_OUT)}


def _flat(section: Any, prefix: str) -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found
