"""What a task's run shows beside its curves: tables, worst errors, and pictures in the page's own colours."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpt_finetune.report import summary
from gpt_finetune.report.curves import COLOURS, HEIGHT, WIDTH, add_axes, set_title, style, to_svg
from gpt_finetune.report.folder import Record, Run, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED_CLASSES = 25  # that a confusion matrix names along its sides
COUNTED_CLASSES = 12  # in whose cells it writes numbers


@dataclass(frozen=True)
class Table:
    """A table: a name in front of each row, numbers behind it."""

    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Error:
    """A held-out text with what the model said; the parts of it speak for the prediction (above 0) or against it."""

    text: str
    label: str
    predicted: str
    parts: list[tuple[str, float]]


@dataclass(frozen=True)
class TaskView:
    """All that the page shows of a task; empty parts are left out."""

    pictures: list[str]
    compared: Table | None
    by_label: Table | None
    errors: list[Error]
    note: str
    folds: Table | None = None
    examples: list[Error] = field(default_factory=list)


def task_view(run: Run) -> TaskView | None:
    """Return what a task's run shows; None for a run without one."""
    task = run.section("task")
    if not task:
        return None
    errors, examples = (_errors(task, key) for key in ("errors", "examples"))
    compared, by_label = _compared(run, task), _by_label(task)
    return TaskView(_pictures(task), compared, by_label, errors, _note(task), _folds(task), examples)


def _folds(task: Record) -> Table | None:
    """Put the runs of a cross-validation one below the other, above their mean and standard deviation."""
    told = task.get("folds")
    told = told if isinstance(told, Mapping) else {}
    spread = _rows(told.get("figures"))
    if not spread:
        return None
    lines = [
        [str(name), *(_written(key, {key: each["values"][i]}) for key, each in spread.items())]
        for i, name in enumerate(told.get("names") or [])
    ]
    for name, key in (("mean", "mean"), ("standard deviation", "std")):
        lines.append([name, *(_written(figure, {figure: each[key]}) for figure, each in spread.items())])
    return Table([summary.metric(key).label for key in spread], lines)


def _compared(run: Run, task: Record) -> Table | None:
    """Put the run beside its baselines: figures, time, and whether the difference could be chance."""
    others = _rows(task.get("baselines"))
    if not others:
        return None
    keys = [key for key in summary.METRICS if any(key in told for told in others.values()) and key in run.figures]
    columns = [*(summary.metric(key).label for key in keys), "time", "p"]
    seconds = number(run.record.get("duration_s"))
    time = "" if seconds is None else summary.duration(seconds)
    rows = [[run.name, *(summary.write_figure(key, run.figures[key]).value for key in keys), time, ""]]
    for name, told in others.items():
        cells = [_written(key, told) for key in keys]
        spent, p = number(told.get("seconds")), number(told.get("p"))
        chance = "" if p is None else f"{p:.3f}" if p >= 0.001 else "< 0.001"
        rows.append([name, *cells, "" if spent is None else summary.duration(spent), chance])
    return Table(columns, rows)


def _by_label(task: Record) -> Table | None:
    listed = [row for row in task.get("by_label") or [] if isinstance(row, Mapping)]
    keys = ("precision", "recall", "f1")
    rows = [
        [str(row.get("label")), *(_written(key, row) for key in keys), f"{number(row.get('support')) or 0:,.0f}"]
        for row in listed
    ]
    return Table(["precision", "recall", "F1", str(task.get("unit") or "texts")], rows) if rows else None


def _errors(task: Record, key: str) -> list[Error]:
    listed = [row for row in task.get(key) or [] if isinstance(row, Mapping)]
    return [
        Error(str(row.get("text") or ""), _said(row.get("label")), _said(row.get("predicted")) + _of(row), _parts(row))
        for row in listed
    ]


def _of(row: Mapping[str, Any]) -> str:
    """Say which word's tag the colours are about, where they are about one word of several."""
    told = row.get("explained")
    if not isinstance(told, Mapping) or not row.get("parts"):
        return ""
    return f" · coloured: {told.get('word')} as {told.get('predicted')} rather than {told.get('right')}"


def _parts(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the parts of a text with their weights; without any, the text as a whole."""
    parts = row.get("parts")
    return [(str(text), float(weight)) for text, weight in parts] if isinstance(parts, list) else []


def _note(task: Record) -> str:
    """Say how the table's last column was computed."""
    tests = {str(told["test"]) for told in _rows(task.get("baselines")).values() if told.get("test")}
    return f"p: how likely chance alone makes such a difference ({', '.join(sorted(tests))})." if tests else ""


def _pictures(task: Record) -> list[str]:
    """Return the drawings for which there is something to draw."""
    from matplotlib.figure import Figure

    drawn = []
    for key, picture in PICTURES.items():
        if task.get(key):
            with style():
                size = (WIDTH, picture.height)
                figure = Figure(figsize=size, layout="constrained" if picture.named else None)
                axis = figure.subplots() if picture.named else add_axes(figure, height=picture.height)
                set_title(axis, picture.title)
                picture.draw(axis, task)
                drawn.append(to_svg(figure, key, picture.title))
    return drawn


def _draw_confusion(axis: Axes, task: Record) -> None:
    """Draw a square a pair of labels, the larger its share of the right label the fuller; right ones in blue."""
    names, counts = [str(name) for name in task.get("labels") or []], task["confusion"]
    size = len(counts)
    for row, line in enumerate(counts):
        total = sum(line) or 1
        for column, count in enumerate(line):
            if count:
                side = 0.94 * (count / total) ** 0.5
                colour = COLOURS["train" if row == column else "eval"]
                axis.add_patch(_square(column, row, side, colour))
            if count and size <= COUNTED_CLASSES:
                full = count / total > 0.25
                ink = COLOURS["paper" if full else "ink"]
                axis.text(column, row, f"{count:,}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xlim(-0.5, size - 0.5)
    axis.set_ylim(size - 0.5, -0.5)
    axis.set_aspect("equal")
    axis.grid(False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("right label")
    if size <= NAMED_CLASSES and len(names) == size:
        short = [name if len(name) <= 18 else f"{name[:17]}…" for name in names]
        axis.set_xticks(range(size), short, fontsize=7, rotation=90 if size > 4 else 0)
        axis.set_yticks(range(size), short, fontsize=7)
    else:
        axis.set_xticks([])
        axis.set_yticks([])


def _draw_calibration(axis: Axes, task: Record) -> None:
    """Draw how often the model is right over how sure it is; the diagonal is what it should be."""
    bins = task["calibration"]
    total = sum(each["count"] for each in bins)
    sure, right = [each["sure"] for each in bins], [each["right"] for each in bins]
    axis.plot([0, 1], [0, 1], color=COLOURS["baseline"], linewidth=1, linestyle=(0, (4, 3)))
    axis.plot(sure, right, color=COLOURS["train"], linewidth=1.4)
    axis.scatter(sure, right, [12 + 150 * each["count"] / total for each in bins], color=COLOURS["train"], zorder=3)
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.05)
    axis.set_xlabel("probability of the likeliest label; area: texts")
    axis.set_ylabel("share that is right")


def _draw_lengths(axis: Axes, task: Record) -> None:
    """Draw how many texts have how many tokens, and where they are cut."""
    lengths = task["lengths"]
    edges, bottom = lengths["edges"], [0] * (len(lengths["edges"]) - 1)
    widths = [high - low for low, high in itertools.pairwise(edges)]
    for side, colour, label in (("train", "train", "training"), ("validation", "eval", "held out")):
        axis.bar(edges[:-1], lengths[side], widths, bottom, align="edge", color=COLOURS[colour], label=label)
        bottom = [low + more for low, more in zip(bottom, lengths[side], strict=True)]
    if lengths["truncated"]:
        axis.axvline(lengths["max_length"], color=COLOURS["baseline"], linewidth=1, linestyle=(0, (4, 3)))
        axis.set_xlabel(f"tokens; cut at {lengths['max_length']:,}: {lengths['truncated']:,} texts")
    elif lengths.get("windowed"):
        axis.set_xlabel(f"tokens; beyond {lengths['max_length']:,}, {lengths['windowed']:,} texts are read as windows")
    else:
        axis.set_xlabel("tokens; no text is cut")
    axis.set_ylabel("texts")
    axis.legend(loc="upper right", labelcolor=COLOURS["muted"])


@dataclass(frozen=True)
class Picture:
    """How to draw one part of the section.

    Args:
        title: What it shows.
        draw: Draws it, given axes and the section.
        height: With its labels, in inches.
        named: Names of the user's stand at the axes, so that the room for them is measured.
    """

    title: str
    draw: Callable[[Axes, Record], None]
    height: float = HEIGHT
    named: bool = False


# by part of the section
PICTURES: dict[str, Picture] = {
    "confusion": Picture("Confusion", _draw_confusion, height=4.0, named=True),
    "calibration": Picture("Calibration", _draw_calibration),
    "lengths": Picture("Lengths", _draw_lengths),
}


def _square(x: float, y: float, side: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, facecolor=colour, linewidth=0)


def _rows(value: object) -> dict[str, Mapping[str, Any]]:
    named = value.items() if isinstance(value, Mapping) else ()
    return {str(name): told for name, told in named if isinstance(told, Mapping)}


def _written(key: str, told: Mapping[str, Any]) -> str:
    value = number(told.get(key))
    return "" if value is None else summary.write_figure(key, value).value


def _said(value: object) -> str:
    """Write a label: several of them with commas, a number with few digits."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
