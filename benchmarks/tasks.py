"""Every downstream task on real data beside its baselines: `make results` runs them all, this file some of them.

    PYTHONPATH=. python benchmarks/tasks.py --names '[sentiment-en, ner-zh]'
    PYTHONPATH=. python benchmarks/tasks.py --collect   # no training: what runs/ holds

What is run are the commands in the header of each configuration, with each base that a configuration names under runs/
before it. A run leaves its figures with 95% bootstrap intervals in `run.json`; they are gathered in
`benchmarks/results/tasks.json`, and put as a table into both READMEs.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gpt_finetune.config import run
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.report.summary import METRICS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "tasks.json"
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
MARKED = re.compile("(<!-- tasks -->).*(<!-- /tasks -->)", re.DOTALL)


@dataclass(frozen=True)
class Task:
    """A row of the table.

    Args:
        title: What is done, in which language.
        config: Configuration, below configs/.
        metric: The figure that is compared.
    """

    title: str
    config: str
    metric: str


TASKS = {
    "sentiment-en": Task("sentiment of film reviews, en", "classify/sentiment-en.yaml", "macro_f1"),
    "sentiment-zh": Task("sentiment of shop reviews, zh", "classify/sentiment-zh.yaml", "macro_f1"),
    "news": Task("topic of news, en", "classify/news.yaml", "macro_f1"),
    "intent-en": Task("intent of commands, en", "classify/intent.yaml", "accuracy"),
    "intent-zh": Task("intent of commands, zh", "classify/intent-zh.yaml", "accuracy"),
    "slots-en": Task("slots of commands, en", "tag/slots-en.yaml", "entity_f1"),
    "slots-zh": Task("slots of commands, zh", "tag/slots-zh.yaml", "entity_f1"),
    "ner-zh": Task("named entities, zh", "tag/ner-zh.yaml", "entity_f1"),
    "pos-en": Task("parts of speech, en", "tag/pos-en.yaml", "accuracy"),
    "relations-en": Task("relations as JSON, en (silver)", "generate/relations-en.yaml", "micro_f1"),
    "facts-zh": Task("facts of lives, zh (silver)", "tag/facts-zh.yaml", "entity_f1"),
    "qa-en": Task("extractive questions, en (silver)", "answer/qa-en.yaml", "token_f1"),
    "qa-zh": Task("extractive questions, zh (silver)", "answer/qa-zh.yaml", "token_f1"),
    "choice-en": Task("multiple choice, en", "answer/choice-en.yaml", "accuracy"),
    "insurance-en": Task("questions on insurance, en", "generate/insurance-en.yaml", "rougeL"),
    "headline-en": Task("headlines of news, en", "generate/headline-en.yaml", "rouge1"),
    "translate-en-fr": Task("translation en-fr, SmolLM2", "generate/translate-en-fr.yaml", "chrf"),
    "translate-en-zh": Task("translation en-zh, Gemma 3", "generate/translate-en-zh.yaml", "bleu"),
    "seq2seq-en-fr": Task("translation en-fr, encoder-decoder", "seq2seq/translate-en-fr.yaml", "chrf"),
    "seq2seq-en-zh": Task("translation en-zh, encoder-decoder", "seq2seq/translate-en-zh.yaml", "bleu"),
    "dialogue": Task("dialogue, en and zh", "finetune/smollm2-lora-dialogue.yaml", "chrf"),
    "zero-shot-sentiment-en": Task("sentiment by prompt, en", "zero_shot/sentiment-en.yaml", "macro_f1"),
    "few-shot-sentiment-en": Task(
        "the same behind four examples, en", "zero_shot/few-shot-sentiment-en.yaml", "macro_f1"
    ),
    "few-shot-sentiment-zh": Task(
        "shop reviews behind four examples, zh", "zero_shot/few-shot-sentiment-zh.yaml", "macro_f1"
    ),
    "zero-shot-news": Task("topic by prompt, en", "zero_shot/news.yaml", "macro_f1"),
}


@dataclass
class ResultsConfig:
    """Run downstream tasks and gather what came of them.

    Args:
        names: Which tasks; none for all.
        collect: Run nothing, gather what runs/ holds.
    """

    names: list[str] = field(default_factory=list)
    collect: bool = False


def settings(task: Task) -> dict[str, Any]:
    """Return what a task's configuration says."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / task.config).read_text(encoding="utf-8"))
    return found


def commands(config: Path) -> list[list[str]]:
    """Return the commands in a configuration's header: those lines that begin with `accelerate` or `python`."""
    lines = (line[1:].strip() for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    return [shlex.split(line) for line in lines if line.startswith(("accelerate launch", "python"))]


def execute(config: Path) -> None:
    """Run a configuration as its header says, and before it what it starts from, unless that is there."""
    base = yaml.safe_load(config.read_text(encoding="utf-8")).get("model")
    if isinstance(base, str) and base.startswith("runs/") and not (ROOT / base / "config.json").exists():
        makers = (other for other in sorted((ROOT / "configs").glob("*/*.yaml")) if _output(other) == base)
        execute(next(makers))
    for number, (program, *words) in enumerate(commands(config)):
        launched = ["-m", "accelerate.commands.launch", *words[1:]] if program == "accelerate" else words
        overwrite = ["--overwrite"] if number == 0 else []  # what follows reads the run
        subprocess.run([sys.executable, *launched, *overwrite], cwd=ROOT, check=True)


def _output(config: Path) -> Any:
    return yaml.safe_load(config.read_text(encoding="utf-8")).get("output_dir")


def gathered(task: Task) -> dict[str, Any] | None:
    """Return what the last run of a task reached; None if it has not been run to its end."""
    said = settings(task)
    file = ROOT / said["output_dir"] / "run.json"
    receipt = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    section = receipt.get("task", {})
    if receipt.get("status") != "finished" or task.metric not in section.get("intervals", {}):
        return None
    others = {
        name: {"value": round(told[task.metric], 4), **({"p": round(told["p"], 4)} if "p" in told else {})}
        for name, told in section["baselines"].items()
        if task.metric in told
    }
    environment = receipt.get("environment", {})  # nothing was trained where there is none
    return {
        "config": f"configs/{task.config}",
        "base": said.get("model") if isinstance(said.get("model"), str) else "from scratch",
        "metric": task.metric,
        "value": round(section.get("figures", receipt["figures"])[task.metric], 4),
        "interval": [round(bound, 4) for bound in section["intervals"][task.metric]],
        "n": held_out(receipt),
        "baselines": others,
        "minutes": round(receipt["duration_s"] / 60, 1),
        "environment": {name: environment[name] for name in ("device", "threads", "torch") if name in environment},
    }


def held_out(receipt: dict[str, Any]) -> int:
    """Return how many texts the figures are of."""
    section = receipt["task"]
    pooled = {told["pooled_n"] for told in section["baselines"].values() if "pooled_n" in told}  # of all folds
    counted = section.get("prompts") or next(iter(pooled), None)
    return int(counted or receipt["data"]["ledger"]["total"]["examples"]["validation"])


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the table in Markdown, a row a task; what is not clearly above each of its baselines says so."""
    head = ["| task | held out | figure | ours (95%) | baselines | minutes x cores |", "|---|---:|---|---|---|---:|"]
    return "\n".join([*head, *(_row(TASKS[name], found) for name, found in results.items())])


def _row(task: Task, found: dict[str, Any]) -> str:
    value, low, high = (_written(number, task.metric) for number in (found["value"], *found["interval"]))
    others = ", ".join(f"{name} {_written(told['value'], task.metric)}" for name, told in found["baselines"].items())
    ours = f"{value} ({low} to {high}){_verdict(found)}"
    if not _verdict(found):
        ours = f"**{value}** ({low} to {high})"
    link = f"[{task.title}]({found['config']})"
    cost = f"{found['minutes']:g} x {found['environment'].get('threads', 1)}"
    return f"| {link} | {found['n']:,} | {METRICS[task.metric].label} | {ours} | {others} | {cost} |"


def _verdict(found: dict[str, Any]) -> str:
    """Say where a figure is not clearly above each baseline's."""
    if any(found["value"] <= told["value"] for told in found["baselines"].values()):
        return ", behind"
    p = max(told.get("p", 0.0) for told in found["baselines"].values())
    return "" if p < 0.05 else f", p = {p:.2f}"


def _written(value: float, metric: str) -> str:
    """Write a share as percent, and what is one already with a digit less than it has."""
    return f"{value:.1f}" if metric in ("bleu", "chrf") else f"{value:.1%}"


def main(config: ResultsConfig) -> None:
    """Run, gather, write down."""
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in config.names or TASKS:
        if name not in TASKS:
            raise InputError("names", name, "there is no such task", did_you_mean(name, TASKS))
        if not config.collect:
            execute(ROOT / "configs" / TASKS[name].config)
        if (found := gathered(TASKS[name])) is not None:
            results[name] = found
            results = {known: results[known] for known in TASKS if known in results}
            RESULTS.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{name}: {found or 'no finished run'}")
    for readme in READMES:
        told = MARKED.sub(lambda marks: f"{marks[1]}\n{table(results)}\n{marks[2]}", readme.read_text(encoding="utf-8"))
        readme.write_text(told, encoding="utf-8")


if __name__ == "__main__":
    run(main, ResultsConfig)
