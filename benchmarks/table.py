"""Writes docs/benchmarks.md and its pictures from the result files, so that the page cannot say what was not measured.

PYTHONPATH=. python benchmarks/table.py
PYTHONPATH=. python benchmarks/table.py --results runs/bench --page runs/bench/benchmarks.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers.measuring import RESULTS, ROOT, Figures
from peers.pictures import PICTURES

PAGE = ROOT / "docs" / "benchmarks.md"
INTRODUCTION = """# Benchmarks

Written by `python benchmarks/table.py` from `benchmarks/results/*.json`; nothing here is typed by hand. Each script
measures one question. Ways take turns in one run, each in a fresh process unless its section says otherwise, with a
warm-up; figures are medians over the rounds, memory is the peak of the process's resident set. Machines are noisy: a
ratio under 1.15 is noise. Ratios travel better than seconds, so measure again where you are: `make bench` runs the
short forms of all into `runs/bench` and writes this page of them beside.
"""


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Args:
        title: Its heading.
        files: Names of result files, without `.json`; a `*` stands for anything.
        script: What measures it.
        question: What is asked, and of what.
        body: Makes lines of one file's content.
    """

    title: str
    files: tuple[str, ...]
    script: str
    question: str
    body: Callable[[Figures], Iterator[str]]


def said(value: Any) -> str:
    """Write a figure as a person reads it: three digits that count, or all of a whole number."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return " - ".join(map(said, value)) if isinstance(value, list) else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(heads: list[str], rows: list[list[Any]]) -> Iterator[str]:
    """Yield the lines of a table; all but the first column stand to the right."""
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(said(cell) for cell in row)} |"
    yield ""


def scalars(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries that are figures or words."""
    return {key: value for key, value in mapping.items() if not isinstance(value, dict | list)}


def words(key: str) -> str:
    """Return a key as words."""
    return " ".join("MB" if word == "mb" else word for word in key.split("_"))


# Of a file's entries, those that say what was measured how often, and where and when.
CONDITIONS = ("shape", "size", "precision", "work", "text", "batch", "base", "model", "how", "block_size", "rounds")
CONDITIONS += ("windows", "steps", "passes", "tokens", "documents", "preset")
PLACE = ("machine", "date")


def conditions(report: Figures) -> str:
    """Return what was measured where, when and how, as far as the file says it."""
    parts = [f"{words(key)}: {said(report[key])}" for key in CONDITIONS if key in report and _is_plain(report[key])]
    parts += [str(report[key]) for key in PLACE if key in report]
    line = "; ".join(parts)
    return f"{line}. `{report['command']}`" if "command" in report else line


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


# ---------------------------------------------------------------------------------------------------------- bodies


def training(report: Figures) -> Iterator[str]:
    """Yield the ways to train."""
    ways = {name: found for name, found in report.items() if isinstance(found, dict) and "tokens_per_second" in found}
    first = next(iter(ways.values()))
    columns = {
        "tokens/s": "tokens_per_second",
        "lowest - highest": "lowest_and_highest",
        "x": "times_faster",
        "peak MB": "peak_mb",
        "memory": "share_of_memory",
        "of the ceiling": "share_of_ceiling",
        "last loss": "last_loss",
    }
    for found in ways.values():
        found.setdefault("times_faster", found["tokens_per_second"] / first["tokens_per_second"])
        found.setdefault("share_of_memory", found["peak_mb"] / first["peak_mb"])
        found["last_loss"] = f"{found['last_loss']:.4f}"
        for share in ("share_of_memory", "share_of_ceiling"):
            found |= {share: f"{found[share]:.0%}"} if share in found else {}
    used = {head: key for head, key in columns.items() if any(key in found for found in ways.values())}
    yield from table(
        ["way", *used], [[name, *(found.get(key) for key in used.values())] for name, found in ways.items()]
    )
    copy = f"; copying memory {said(report['copy_gb_per_second'])} GB/s" if "copy_gb_per_second" in report else ""
    yield f"Ceiling: matrix products {said(report['ceiling_gflops'])} GFLOP/s{copy}. The last losses of ways of one"
    yield "architecture agree, else nothing would have been written."
    yield ""


def loss_per_minute(report: Figures) -> Iterator[str]:
    """Yield the comparison and the ablation."""
    recipe, tried = report["recipe"], report["modern"]
    rows = [[f"nanoGPT's CPU recipe on {report['model_of_the_recipe']}", *_run(recipe, recipe)]]
    rows += [["modern preset, Muon", *_run(run, recipe)] for run in tried]
    yield from table(["way", "steps", "seconds", "loss", "of the time", "of the tokens"], rows)
    if not report["reached"]:
        yield "The recipe's loss was not reached at these lengths."
        yield ""
    for base in ("modern", "plain"):
        kept = {name: found for name, found in report["ablation"].items() if name.startswith(base)}
        if base in kept:
            own = kept[base]["loss"]
            rows = [
                [n, f["loss"], f"{f['loss'] - own:+.3f}", len(f["losses"]), _spread(f), f["milliseconds_a_step"]]
                for n, f in kept.items()
            ]
            yield from table(
                [f"{base}, an eighth of the steps", "loss", "change", "seeds", "spread", "ms a step"], rows
            )


def _run(run: Figures, recipe: Figures) -> list[str]:
    shares = [run["seconds"] / recipe["seconds"], run["steps"] / recipe["steps"]]
    return [said(run["steps"]), f"{run['seconds']:.1f}", f"{run['loss']:.3f}", *(f"{share:.1%}" for share in shares)]


def _spread(found: Figures) -> str | None:
    return f"{max(found['losses']) - min(found['losses']):.3f}" if len(found["losses"]) > 1 else None


def scaling(report: Figures) -> Iterator[str]:
    """Yield the exponents."""
    rows = []
    for name, axis in report["axes"].items():
        values = [point["value"] for point in axis["points"]]
        time, memory = (axis["exponents"][key] for key in ("seconds", "mb"))
        figures = [time["measured"], time["theory"], memory["measured"], memory["theory"]]
        rows.append([name, f"{values[0]:,} to {values[-1]:,}", *(f"{f:.2f}" for f in figures), axis["note"]])
    yield from table(["what grows", "from, to", "time ~", "FLOPs ~", "memory ~", "bytes counted ~", ""], rows)


def adapting(report: Figures) -> Iterator[str]:
    """Yield a table for each group, which was measured by itself."""
    for name, group in report.items():
        yield f"{name}: {conditions(group)}"
        yield ""
        yield from anything(group)


def startup(report: Figures) -> Iterator[str]:
    """Yield the waits."""
    yield from table(["", "seconds"], [[f"`{name}`", f"{value:.2f}"] for name, value in report["seconds"].items()])


def anything(report: Figures) -> Iterator[str]:
    """Yield whatever a file holds: a table for each group of things that have figures, a list of what stands alone."""
    about = (*CONDITIONS, *PLACE, "command")
    groups = {key: value for key, value in report.items() if isinstance(value, dict)}
    figures = {key: {k: v for k, v in scalars(value).items() if k not in about} for key, value in groups.items()}
    if columns := list(dict.fromkeys(name for found in figures.values() for name in found)):
        rows = [[words(key), *(found.get(name) for name in columns)] for key, found in figures.items() if found]
        yield from table(["", *map(words, columns)], rows)
    for key, value in groups.items():
        if deeper := {name: inner for name, inner in value.items() if isinstance(inner, dict)}:
            yield f"{words(key)}:"
            yield ""
            yield from anything(deeper)
    alone = {key: value for key, value in scalars(report).items() if key not in about}
    if alone:
        yield "; ".join(f"{words(key)} {said(value)}" for key, value in alone.items()) + "."
        yield ""


SECTIONS = (
    Section(
        "Training",
        ("training", "training-*"),
        "training.py",
        "How many tokens a second, in how much memory? Ours runs under `GPTTrainer` through `accelerate launch`, "
        "transformers' under its `Trainer`, each as shipped; large pages or other products are named with the way.",
        training,
    ),
    Section(
        "bfloat16",
        ("precision",),
        "precision.py",
        "Does training in bfloat16 learn what training in float32 learns? Losses in nats a token; distances are from "
        "float32 with the same seed, of means over windows of fifty steps.",
        anything,
    ),
    Section(
        "Loss per minute",
        ("loss-per-minute",),
        "loss_per_minute.py",
        "How soon is the loss reached that nanoGPT's published CPU recipe ends with, and what does each ingredient "
        "bring? In one process, through one loop and one evaluator; evaluations are not counted.",
        loss_per_minute,
    ),
    Section(
        "The law of cost",
        ("scaling",),
        "scaling.py",
        "With which power do time and memory of a training step grow, measured on the larger half of each axis, and "
        "counted by `gpt_finetune/costs.py` on the same points? In the picture, what is counted is dashed.",
        scaling,
    ),
    Section(
        "The loss over a vocabulary", ("loss", "loss-bfloat16"), "loss.py", "In pieces, or with whole logits?", anything
    ),
    Section("The data path", ("data",), "data.py", "Packing, disk, batches, waiting: in one process.", anything),
    Section("Packing by itself", ("packing",), "packing.py", "Without any Arrow around it.", anything),
    Section("Start-up", ("startup",), "startup.py", "How long until something is said?", startup),
    Section("Classification", ("tasks-speed",), "tasks_speed.py", "Packed rows, or padded at random?", anything),
    Section(
        "Learning from answers",
        ("supervised-speed",),
        "supervised_speed.py",
        "Packed rows of conversations, or padded at random?",
        anything,
    ),
    Section(
        "Adapting",
        ("adaptation",),
        "adaptation.py",
        "LoRA, or all of the model? Ours, or PEFT's on transformers'?",
        adapting,
    ),
    Section("Generation", ("generation",), "generation.py", "Tokens a second, whole and in fewer bits.", anything),
    Section("Perplexity of fewer bits", ("perplexity",), "perplexity.py", "What do they cost?", anything),
    Section("Attention with dropout", ("dropout",), "dropout.py", "By products, or as torch has it?", anything),
    Section("RMSNorm", ("norms",), "norms.py", "Forward and backward, ours and torch's.", anything),
    Section("GELU by tanh", ("gelu",), "gelu.py", "Forward and backward, ours and torch's.", anything),
    Section("Rotary positions", ("rotation",), "rotation.py", "Training them, ours and the formula's.", anything),
    Section("Attention with sinks", ("sinks",), "sinks.py", "On a fused kernel, or eager?", anything),
    Section("The cache", ("cache",), "cache.py", "What a sliding window keeps.", anything),
)


def page(results: Path, pictures: str) -> str:
    """Return the page's text.

    Args:
        results: Folder of result files; a section without one is left out.
        pictures: Folder of the pictures, as the page names it.
    """
    lines = [INTRODUCTION]
    for section in SECTIONS:
        files = [file for name in section.files for file in sorted(results.glob(f"{name}.json"))]
        if not files:
            continue
        lines += [f"## {section.title}", "", f"{section.question} `benchmarks/{section.script}`.", ""]
        for file in files:
            report = json.loads(file.read_text(encoding="utf-8"))
            lines += [*section.body(report), *([told, ""] if (told := conditions(report)) else [])]
            if file.stem in PICTURES:
                lines += [f"![{section.title}]({pictures}/{file.stem}.svg)", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Write the page and its pictures."""
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md from the result files.")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files")
    parser.add_argument("--page", type=Path, default=PAGE, help="file to write; pictures go into a folder of its name")
    given = parser.parse_args()
    folder = given.page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    given.page.write_text(page(given.results, folder.name), encoding="utf-8")
    for name, draw in PICTURES.items():
        file = given.results / f"{name}.json"
        if file.is_file():
            draw(json.loads(file.read_text(encoding="utf-8")), folder / f"{name}.svg")
    print(given.page)


if __name__ == "__main__":
    main()
