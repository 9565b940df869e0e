"""The curves of a run: small multiples, drawn once as a picture and once as vectors in the page's own colours."""

from __future__ import annotations

import io
import itertools
import logging
import re
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.report.folder import Run, number, read_run
from gpt_finetune.report.summary import PERCENT, count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The page's CSS variables, each with the colour that stands for it while drawing (and in curves.png for good).
COLOURS = {
    "ink": "#24292f",
    "muted": "#6a737d",
    "rule": "#d9dce1",
    "paper": "#ffffff",
    "train": "#2f6f9f",
    "train-raw": "#b9d3e6",
    "eval": "#c2562d",
    "baseline": "#8a7f6f",
}
# Around a panel's axes, in inches: room for labels. To measure them takes matplotlib longer than to draw them.
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.78, 0.16, 0.5, 0.38
_SECOND_TOP, _SECOND_RIGHT = 0.22, 0.54  # what a second axis takes there
WIDTH, HEIGHT = 4.4, 2.9  # of a panel with its labels
_CJK_FONTS = ("Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Micro Hei", "Source Han Sans SC")


@dataclass(frozen=True)
class Panel:
    """One small multiple.

    Args:
        key: The metric drawn.
        title: What it is.
        unit: Its unit, for the title's tail.
        baselines: Draw the baselines of this metric as horizontal lines.
        tokens: Show the tokens seen on a second axis on top.
        from_zero: Start the axis at zero, for amounts.
        ratio: The values may span orders of magnitude: use a logarithmic axis when they do.
        noisy: Draw a running mean over the values.
        legend: Explain the lines; one panel's legend serves all.
    """

    key: str
    title: str
    unit: str = ""
    baselines: bool = False
    tokens: bool = False
    from_zero: bool = False
    ratio: bool = False
    noisy: bool = False
    legend: bool = False


PANELS = (
    Panel("loss", "Loss", "nats per token", tokens=True, noisy=True, legend=True),
    Panel("bits_per_byte", "Bits per byte", "bits per byte", baselines=True, tokens=True, noisy=True),
    Panel("align_loss", "Loss of the guided head", "nats per token", noisy=True),
    Panel("accuracy", "Accuracy", "share of the texts", baselines=True),
    Panel("macro_f1", "Macro F1", "of 1", baselines=True),
    Panel("micro_f1", "Micro F1", "of 1", baselines=True),
    Panel("mse", "Mean squared error", baselines=True),
    Panel("pearson", "Pearson correlation", "of 1", baselines=True),
    Panel("chrf", "chrF of the answers", "of 100", from_zero=True),
    Panel("stop_rate", "Answers that the model ended", "share of the answers", from_zero=True),
    Panel("learning_rate", "Learning rate", tokens=True, from_zero=True),
    Panel("grad_norm", "Gradient norm", ratio=True, noisy=True),
    Panel("tokens_per_second", "Throughput", "tokens per second", from_zero=True, noisy=True),
    Panel("mfu", "Model FLOPs utilisation", "share of the ceiling", from_zero=True, noisy=True),
    Panel("peak_memory_mb", "Peak memory", "MB", from_zero=True),
)


WATCHED = "_bits_per_byte"  # how the keys of other data sets' curves end


def write_curves(run_dir: Path) -> Path:
    """Draw the curves of a run.

    Args:
        run_dir: The run's folder; ``metrics.jsonl`` is read from it and ``curves.png`` written to it.

    Returns:
        The picture's path.

    Raises:
        InputError: There is no such folder.
    """
    run = read_run(run_dir)
    path = run.directory / "curves.png"
    with style():
        from matplotlib.figure import Figure

        panels = panels_of(run)
        columns = min(3, len(panels)) if len(panels) != 4 else 2
        rows = -(-len(panels) // max(columns, 1))
        size = (WIDTH * (columns or 1.5), HEIGHT * rows + 0.55)
        figure = Figure(figsize=size)
        name = run.name if panels else f"{run.name}: nothing logged yet"
        figure.suptitle(name, y=1 - 0.14 / size[1], fontsize=14, fontweight="bold")
        for place, panel in enumerate(panels):
            corner = (place % columns * WIDTH, HEIGHT * (rows - 1 - place // columns))
            draw(add_axes(figure, corner), panel, run)
        figure.savefig(path, dpi=160)
    return path


def panels_of(run: Run) -> list[Panel]:
    """Return the panels for which the run has something to show that no other panel shows."""
    watched = sorted({key for record in run.metrics for key in record if key.endswith(WATCHED)})
    panels = [*PANELS, *(Panel(key, f"Watched: {key.removesuffix(WATCHED)}", "bits per byte") for key in watched)]
    shown = [panel for panel in panels if any(run.series(panel.key, split)[0] for split in ("train", "eval"))]
    return [panel for panel in shown if panel.key != "mfu" or _mfu_per_token_rate(run) is None]


def add_axes(figure: Figure, corner: tuple[float, float] = (0, 0), height: float = HEIGHT) -> Axes:
    """Return axes with room for labels around them.

    Args:
        figure: Which the panel is on.
        corner: The panel's lower left one, in inches.
        height: The panel's, in inches.
    """
    wide, high = figure.get_size_inches()
    room = (corner[0] + _LEFT, corner[1] + _BOTTOM, WIDTH - _LEFT - _RIGHT, height - _BOTTOM - _TOP)
    return figure.add_axes((room[0] / wide, room[1] / high, room[2] / wide, room[3] / high))


def _make_room(axis: Axes, top: float = 0, right: float = 0) -> None:
    """Give up so many inches of a panel's axes for what stands around them."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    wide, high = figure.get_size_inches()
    place = axis.get_position()
    axis.set_position((place.x0, place.y0, place.width - right / wide, place.height - top / high))


def set_title(axis: Axes, title: str, pad: float = 10) -> None:
    """Write a panel's title, at a place that need not be looked for.

    Args:
        axis: The panel's.
        title: What it is.
        pad: Points between the axes and the title.
    """
    axis.set_title(title, loc="left", y=1, pad=pad, fontsize=11, fontweight="bold", color=COLOURS["ink"])


def draw(axis: Axes, panel: Panel, run: Run) -> None:
    """Draw one panel: the training values faint, their running mean strong, evaluations as points."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    steps, values = run.series(panel.key)
    mean = running_mean(values) if panel.noisy else values
    smoothed = mean is not values
    if smoothed:
        axis.plot(steps, values, color=COLOURS["train-raw"], linewidth=0.8)
    if steps:
        marker = "o" if len(steps) == 1 else None
        label = "training (running mean)" if smoothed else "training"
        axis.plot(steps, mean, color=COLOURS["train"], linewidth=1.8, marker=marker, markersize=4, label=label)
    eval_steps, eval_values = run.series(panel.key, "eval")
    if eval_steps:
        axis.plot(
            eval_steps, eval_values, color=COLOURS["eval"], linewidth=1.2, marker="o", markersize=3.6, label="held out"
        )
    both = values + eval_values
    if panel.ratio and min(both) > 0 and max(both) > 10 * min(both):
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_minor_locator(NullLocator())
    elif panel.from_zero and min(both) >= 0:
        axis.set_ylim(0, 1.12 * max(both) or 1)
    if panel.baselines:
        _draw_baselines(axis, {name: them[panel.key] for name, them in run.baselines.items() if panel.key in them})

    axis.set_ylabel(run.loss_unit if panel.key == "loss" else panel.unit)
    axis.set_xlabel("step")
    axis.yaxis.set_major_formatter(FuncFormatter(_percent if panel.key in PERCENT else _tick))
    axis.xaxis.set_major_formatter(FuncFormatter(_tick))
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.margins(x=0.02)
    top = _SECOND_TOP if panel.tokens and _add_token_axis(axis, run) else 0
    _make_room(axis, top=top)
    set_title(axis, panel.title, pad=10 + 72 * top)
    if panel.key == "tokens_per_second" and (rate := _mfu_per_token_rate(run)):
        right = axis.twinx()
        right.set_ylim(0, axis.get_ylim()[1] * rate)
        right.grid(False)
        right.yaxis.set_major_formatter(FuncFormatter(_percent))
        right.set_ylabel("FLOPs utilisation")
        _make_room(axis, right=_SECOND_RIGHT)
    if panel.legend and len(axis.get_legend_handles_labels()[0]) > 1:
        axis.legend(loc="upper right", labelcolor=COLOURS["muted"])


def svg_panels(run: Run) -> list[tuple[str, str]]:
    """Return each panel's title and its drawing as inline SVG, coloured by the page's CSS variables."""
    with style():
        return [(panel.title, _draw_svg(panel, run)) for panel in panels_of(run)]


def running_mean(values: list[float]) -> list[float]:
    """Return the mean over a centred window of a twentieth of the run; short runs come back as they are."""
    half = len(values) // 40
    if not half:
        return values
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    windows = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in windows]


def _draw_baselines(axis: Axes, baselines: dict[str, float]) -> None:
    """Draw each baseline with its name at the right end; below the line when something is close above it."""
    import numpy as np

    ends = [end for line in axis.lines for end in np.asarray(line.get_ydata(), dtype=float)[-1:]]  # of the curves
    others = [*baselines.values(), *ends]
    for value in baselines.values():
        axis.axhline(value, color=COLOURS["baseline"], linewidth=1, linestyle=(0, (4, 3)))
    bottom, top = axis.get_ylim()
    for name, value in baselines.items():
        crowded = any(0 < other - value < 0.1 * (top - bottom) for other in others)
        axis.annotate(
            f"{name}  {value:.3f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3 if crowded else 3),
            textcoords="offset points",
            horizontalalignment="right",
            verticalalignment="top" if crowded else "bottom",
            color=COLOURS["baseline"],
            fontsize=8,
        )


def _add_token_axis(axis: Axes, run: Run) -> bool:
    """Mark the tokens seen along the top, if they are known; batch sizes may vary, so marks need not lie evenly."""
    from matplotlib.ticker import MaxNLocator

    seen = {record["step"]: number(record.get("tokens")) for record in run.metrics}
    points = [(step, total) for step, total in seen.items() if total is not None]
    steps, tokens = [step for step, _ in points], [total for _, total in points]
    if len(steps) < 2 or any(later <= earlier for earlier, later in itertools.pairwise(tokens)):
        return False
    marks = [mark for mark in MaxNLocator(4).tick_values(tokens[0], tokens[-1]) if tokens[0] <= mark <= tokens[-1]]
    top = axis.twiny()
    top.set_xlim(axis.get_xlim())
    labels = [count(mark) for mark in marks[:-1]] + [f"{count(mark)} tokens" for mark in marks[-1:]]
    top.set_xticks([_interpolate(mark, tokens, steps) for mark in marks], labels, fontsize=8)
    top.grid(False)
    return True


def _interpolate(x: float, xs: list[float], ys: list[float]) -> float:
    after = next(index for index, value in enumerate(xs) if value >= x) or 1
    share = (x - xs[after - 1]) / (xs[after] - xs[after - 1])
    return ys[after - 1] + share * (ys[after] - ys[after - 1])


def _mfu_per_token_rate(run: Run) -> float | None:
    """Return MFU / (tokens per second), which is constant while the model and its sequences stay the same."""
    rates = [
        mfu / speed
        for record in run.metrics
        if (mfu := number(record.get("mfu"))) and (speed := number(record.get("tokens_per_second")))
    ]
    steady = rates and 0 < max(rates) <= 1.05 * min(rates)
    return statistics.median(rates) if steady else None


def _draw_svg(panel: Panel, run: Run) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    draw(add_axes(figure), panel, run)
    return to_svg(figure, panel.key, panel.title)


def to_svg(figure: Figure, key: str, title: str) -> str:
    """Return a figure as inline SVG, coloured by the page's CSS variables.

    Args:
        figure: Drawn within `style`, in `COLOURS` only.
        key: Different from that of every other picture on the page.
        title: What it shows, for those who do not see it.
    """
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = drawn.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg viewBox="\1" role="img" aria-label="{title}">', svg)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # names of groups, the same in every panel
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]+;?", "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg


def _tick(value: float, _position: int) -> str:
    return count(value) if abs(value) >= 10_000 else f"{value:.6g}"


def _percent(value: float, _position: int) -> str:
    return f"{100 * value:.4g}%"


@contextmanager
def style() -> Iterator[None]:
    """Set matplotlib's defaults for the time of drawing, whatever the user's own are."""
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    settings: Any = {
        "font.family": ["DejaVu Sans", *(font for font in _CJK_FONTS if font in installed)],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": COLOURS["ink"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["rule"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlepad": 10,
        "grid.color": COLOURS["rule"],
        "grid.linewidth": 0.6,
        "xtick.color": COLOURS["rule"],
        "ytick.color": COLOURS["rule"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.facecolor": COLOURS["paper"],
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
    }
    font_log = logging.getLogger("matplotlib.font_manager")
    level = font_log.level
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        font_log.setLevel(logging.ERROR)  # not every fallback font has a bold face
        try:
            yield
        finally:
            font_log.setLevel(level)
