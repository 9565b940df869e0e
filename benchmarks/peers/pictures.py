"""The pictures of docs/benchmarks.md: small, as vectors, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpt_finetune.report.curves import COLOURS
from peers.measuring import Figures

# Colours of lines that stand beside each other.
MEASURED, THEORY, OTHER = COLOURS["train"], COLOURS["muted"], COLOURS["eval"]


@contextmanager
def figure(file: Path, columns: int, rows: int = 1, width: float = 8.0, height: float = 2.4) -> Iterator[Any]:
    """Give axes to draw on, and save them.

    Args:
        file: An SVG.
        columns: Axes beside each other.
        rows: Axes below each other.
        width: Of all, in inches.
        height: Of a row, in inches.
    """
    import matplotlib

    style = {"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 8, "axes.edgecolor": COLOURS["rule"]}
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        drawn = Figure(figsize=(width, height * rows), layout="constrained")
        axes = drawn.subplots(rows, columns, squeeze=False)
        for one in axes.flat:
            one.spines[["top", "right"]].set_visible(False)
        yield axes
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def training(report: Figures, file: Path) -> None:
    """Draw tokens a second and memory of each way as bars."""
    ways = {name: found for name, found in report.items() if isinstance(found, dict) and "tokens_per_second" in found}
    names = list(ways)[::-1]
    with figure(file, 2, height=0.5 + 0.28 * len(names)) as axes:
        for one, key, title in zip(
            axes[0], ("tokens_per_second", "peak_mb"), ("tokens a second", "peak memory, MB"), strict=True
        ):
            colours = [MEASURED if name.startswith("ours") else THEORY for name in names]
            one.barh(names, [ways[name][key] for name in names], color=colours)
            one.set_title(title, loc="left")
        axes[0][1].set_yticks([])


def loss_per_minute(report: Figures, file: Path) -> None:
    """Draw the loss against time and tokens."""
    batch = 12 * 64
    runs = {"nanoGPT's recipe": (report["recipe"], THEORY), "modern, Muon": (report["modern"][-1], MEASURED)}
    with figure(file, 2) as axes:
        for place, title in enumerate(("seconds", "characters")):
            one = axes[0][place]
            for name, (run, colour) in runs.items():
                x = [point[0] if place == 0 else point[1] * batch for point in run["curve"]]
                one.plot(x, [point[2] for point in run["curve"]], color=colour, label=name)
            one.axhline(report["recipe"]["loss"], color=OTHER, linewidth=0.8, linestyle=":")
            one.set_xscale("log")
            one.set_xlabel(title)
        axes[0][0].set_ylabel("nats a character")
        axes[0][1].legend(frameon=False)


def scaling(report: Figures, file: Path) -> None:
    """Draw time above and memory below, an axis a column, with the theory's slope through the last point."""
    found = report["axes"]
    with figure(file, max(1, len(found)), rows=2, width=1.9 * max(2, len(found)), height=1.9) as axes:
        for column, (name, axis) in enumerate(found.items()):
            x = [point["value"] for point in axis["points"]]
            for one, key, told, label in zip(
                axes[:, column], ("seconds", "mb"), ("flops", "bytes"), ("seconds", "MB"), strict=True
            ):
                y, counted = ([point[k] for point in axis["points"]] for k in (key, told))
                one.plot(x, [value * y[-1] / counted[-1] for value in counted], color=THEORY, linestyle="--")
                one.plot(x, y, color=MEASURED, marker="o", markersize=3)
                one.set_xscale("log", base=2)
                one.set_yscale("log")
                if column == 0:
                    one.set_ylabel(label)
            axes[0][column].set_title(name, loc="left")


PICTURES: dict[str, Callable[[Figures, Path], None]] = {
    "training": training,
    "training-S1-bfloat16": training,
    "training-S1-bfloat16-compiled": training,
    "training-S1-bfloat16-amx": training,
    "training-S1-bfloat16-amx-again": training,
    "training-S2-bfloat16-amx": training,
    "training-S2-bfloat16": training,
    "training-S2-float32": training,
    "training-S3-bfloat16": training,
    "loss-per-minute": loss_per_minute,
    "scaling": scaling,
}
