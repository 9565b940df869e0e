"""Write the run's page: one HTML file that needs nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from gpt_finetune.report import summary
from gpt_finetune.report.curves import COLOURS, svg_panels, write_curves
from gpt_finetune.report.folder import Record, Run, number, read_run


@dataclass(frozen=True)
class Sample:
    """One text as it came, and how it was drawn."""

    prompt: str
    text: str
    settings: str


def write_report(run_dir: Path) -> Path:
    """Write ``curves.png`` and ``report.html`` from what a run left in its folder.

    The page is a function of the folder alone: writing it again later gives the same page.

    Args:
        run_dir: The run's folder.

    Returns:
        The page's path.

    Raises:
        InputError: There is no such folder.
    """
    import jinja2

    run = read_run(run_dir)
    verdict = summary.verdict(run)
    write_curves(run_dir)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt_finetune.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("page.html.j2").render(
        run=run,
        colours=COLOURS,
        verdict=verdict,
        figures=summary.figures(run, without=verdict.key),
        created=summary.moment(run.record.get("created")),
        panels=svg_panels(run),
        samples=samples_by_step(run),
        ledger=summary.ledger(run),
        sources=summary.sources(run),
        facts=facts(run),
        load_snippet=summary.load_snippet(run),
    )
    path = run.directory / "report.html"
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def samples_by_step(run: Run) -> list[tuple[str, list[Sample]]]:
    """Return the samples of each step, latest first."""
    by_step = itertools.groupby(run.samples, key=lambda record: record["step"])
    groups = [(f"{step:,.0f}", [_sample(record) for record in records]) for step, records in by_step]
    return groups[::-1]


def facts(run: Run) -> list[tuple[str, str]]:
    """Return where and how the run was made: one name and one text each."""
    model, data = run.section("model"), run.section("data")
    listed = {
        "recipe": run.record.get("recipe"),
        "preset": model.get("preset"),
        "created": summary.moment(run.record.get("created")),
        "base model": model.get("base_model"),
        "data fingerprint": data.get("fingerprint"),
        **run.section("environment"),
    }
    if flops := number(model.get("flops_per_token")):
        listed["FLOPs per token"] = f"{flops:,.0f}"
    return [(name.replace("_", " "), str(value)) for name, value in listed.items() if value not in (None, "", {}, [])]


def _sample(record: Record) -> Sample:
    settings = {key: value for key, value in record.items() if key not in ("step", "prompt", "text")}
    return Sample(
        prompt=str(record.get("prompt") or ""),
        text=str(record.get("text") or ""),
        settings=" · ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()),
    )
