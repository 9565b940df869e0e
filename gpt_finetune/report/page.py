"""Write the run's page: one HTML file that needs nothing else."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from gpt_finetune.report import summary
from gpt_finetune.report.curves import COLOURS, svg_panels, write_curves
from gpt_finetune.report.folder import Record, Run, number, read_run
from gpt_finetune.report.heads import read_head
from gpt_finetune.report.tasks import task_view


@dataclass(frozen=True)
class Sample:
    """One text as it came, and how it was drawn."""

    prompt: str
    text: str
    settings: str


@dataclass(frozen=True)
class Reply:
    """What the model answered at one step, and whether it or the limit ended the answer."""

    step: str
    text: str
    ending: str


@dataclass(frozen=True)
class Question:
    """A held-out prompt with the right answer and the model's: the first one recorded, then the last."""

    prompt: str
    reference: str
    replies: list[Reply]


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
        changes=summary.changes(run),
        forgetting=summary.forgetting(run),
        questions=questions(run),
        samples=samples_by_step(run),
        ledger=summary.ledger(run),
        sources=summary.sources(run),
        facts=facts(run),
        task=task_view(run),
        load_snippet=summary.load_snippet(run, read_head(run.directory)),
    )
    path = run.directory / "report.html"
    path.write_text(page, encoding="utf-8", newline="\n")
    return path


def samples_by_step(run: Run) -> list[tuple[str, list[Sample]]]:
    """Return the samples of each step, latest first."""
    by_step = itertools.groupby(run.samples, key=lambda record: record["step"])
    groups = [(f"{step:,.0f}", [_sample(record) for record in records]) for step, records in by_step]
    return groups[::-1]


def questions(run: Run) -> list[Question]:
    """Return the held-out prompts of the last answers, each with the answers before and after."""
    by_step = [list(records) for _, records in itertools.groupby(run.answers, key=lambda record: record["step"])]
    if not by_step:
        return []
    first = {_asked(record): record for record in by_step[0]} if len(by_step) > 1 else {}
    found = []
    for record in by_step[-1]:
        told = [first[_asked(record)]] if _asked(record) in first else []
        replies = [_reply(each) for each in [*told, record]]
        found.append(Question(str(record.get("prompt") or ""), str(record.get("reference") or ""), replies))
    return found


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


def _asked(record: Record) -> tuple[str, str]:
    return str(record.get("prompt")), str(record.get("reference"))


def _reply(record: Record) -> Reply:
    step = "before training" if record["step"] == 0 else f"step {record['step']:,.0f}"
    tokens = number(record.get("tokens"))
    length = "" if tokens is None else f" after {tokens:.0f} token{'' if tokens == 1 else 's'}"
    ended = {"True": "ended by the model", "False": "cut by the limit"}.get(str(record.get("stopped")), "ended")
    return Reply(step, str(record.get("answer") or ""), ended + length)


def _sample(record: Record) -> Sample:
    settings = {key: value for key, value in record.items() if key not in ("step", "prompt", "text")}
    return Sample(
        prompt=str(record.get("prompt") or ""),
        text=str(record.get("text") or ""),
        settings=" · ".join(f"{key.replace('_', ' ')} {value}" for key, value in settings.items()),
    )
