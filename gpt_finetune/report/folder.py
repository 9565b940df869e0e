"""Read a run's folder, whole or cut short: every file may be missing, half-written or have extra keys."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_finetune.errors import InputError
from gpt_finetune.report.redaction import HIDDEN, names_secret, redact, redact_tokens, visible

Record = dict[str, Any]
BEFORE = "before training"  # the baseline that is the model itself
# figure -> the key of an evaluation's line in metrics.jsonl
_EVALUATED = {
    "eval_loss": "loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    "exact_match": "exact_match",
    "bleu": "bleu",
    "chrf": "chrf",
    "rougeL": "rougeL",
    "token_f1": "token_f1",
    "stop_rate": "stop_rate",
    "answer_tokens": "answer_tokens",
    **{name: name for name in ("accuracy", "macro_f1", "micro_f1", "subset_accuracy", "ece", "mse", "pearson")},
}


@dataclass(frozen=True)
class Run:
    """All that a run's folder says, already free of credentials and unprintable characters.

    Args:
        directory: The folder.
        record: ``run.json``.
        metrics: ``metrics.jsonl`` by step; of two records with one step and split, the later one's values hold
            (a resumed run repeats the steps since its checkpoint).
        samples: ``samples.jsonl`` by step.
        answers: ``answers.jsonl`` by step.
        config: ``config.yaml`` as text.
        notes: What could not be read, for the reader's eyes.
    """

    directory: Path
    record: Record = field(default_factory=dict)
    metrics: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    answers: list[Record] = field(default_factory=list)
    config: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's title, or its folder's name."""
        return str(self.record.get("title") or self.folder_name)

    @property
    def folder_name(self) -> str:
        """The folder's own name, without the way to it."""
        return redact(visible(self.directory.resolve().name)) or "run"

    @property
    def is_adapter(self) -> bool:
        """Whether it left an adapter, which needs its base."""
        return (self.directory / "adapter_config.json").is_file()

    @property
    def status(self) -> str:
        """``finished``, ``running`` or ``failed``; ``unknown`` without a ``run.json``."""
        return str(self.record.get("status") or "unknown")

    @property
    def loss_unit(self) -> str:
        """The loss's unit: a language model's, or what a task says of its own."""
        return str(self.section("task").get("loss_unit") or "nats per token")

    def section(self, name: str) -> Record:
        """Return a nested part of ``run.json``, empty when absent."""
        section = self.record.get(name)
        return section if isinstance(section, dict) else {}

    def series(self, key: str, split: str = "train") -> tuple[list[float], list[float]]:
        """Return the steps and finite values of one metric."""
        points = [
            (record["step"], number(record.get(key)))
            for record in self.metrics
            if record["split"] == split and number(record.get(key)) is not None
        ]
        return [float(step) for step, _ in points], [value for _, value in points if value is not None]

    @property
    def figures(self) -> dict[str, float]:
        """The final figures: those of ``run.json``; for a run cut short, what its metrics last said."""
        derived: dict[str, float | None] = {}
        for name, key in _EVALUATED.items():
            derived[name] = next(reversed(self.series(key, "eval")[1]), None)
        summaries: dict[str, Callable[[list[float]], float]] = {
            "tokens_per_second": statistics.median,
            "mfu": statistics.median,
            "peak_memory_mb": max,
        }
        for key, summary in summaries.items():
            values = self.series(key)[1]
            derived[key] = summary(values) if values else None
        figures = derived | {key: number(value) for key, value in self.section("figures").items()}
        return {key: value for key, value in figures.items() if value is not None}

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Figures of others on the same held-out text: name -> metric -> value."""
        return {
            name: {key: value for key, raw in figures.items() if (value := number(raw)) is not None}
            for name, figures in self.section("baselines").items()
            if isinstance(figures, dict)
        }

    @property
    def before(self) -> dict[str, float]:
        """The figures of the evaluation before the first step; empty where there was none."""
        rows = [row for row in self.metrics if row["step"] == 0 and row["split"] == "eval"]
        found = {name: number(row.get(key)) for row in rows for name, key in _EVALUATED.items()}
        told = {name: value for name, value in self.baselines.get(BEFORE, {}).items() if name in _EVALUATED}
        return {name: value for name, value in found.items() if value is not None} or told

    def last(self, key: str) -> float | None:
        """Return the last value of a metric, of either split."""
        return next(
            (value for record in reversed(self.metrics) if (value := number(record.get(key))) is not None), None
        )


def read_run(run_dir: Path) -> Run:
    """Read a run's folder.

    Args:
        run_dir: The folder that a recipe wrote: ``run.json``, ``metrics.jsonl``, ``samples.jsonl``,
            ``answers.jsonl``, ``config.yaml``.

    Raises:
        InputError: There is no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise InputError("run_dir", str(run_dir), "there is no such folder", "Give the output folder of a run")
    notes: list[str] = []
    record = _clean(_read_json(run_dir / "run.json", notes), redact)
    if record.get("error"):
        notes.append(f"The run stopped: {record['error']}")
    return Run(
        directory=run_dir,
        record=record,
        metrics=_merge_metrics(_clean(_read_lines(run_dir / "metrics.jsonl", notes), redact), notes),
        samples=_merge_samples(_clean(_read_lines(run_dir / "samples.jsonl", notes), redact_tokens)),
        answers=_by_step(_clean(_read_lines(run_dir / "answers.jsonl", notes), redact_tokens)),
        config=redact(visible(_read_text(run_dir / "config.yaml"))),
        notes=notes,
    )


def number(value: object) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n") if path.is_file() else ""


def _read_json(path: Path, notes: list[str]) -> Record:
    text = _read_text(path)
    try:
        record = json.loads(text or "{}")
    except ValueError:
        record = None
    if isinstance(record, dict):
        return record
    notes.append(f"{path.name} could not be read: it is no JSON object.")
    return {}


def _read_lines(path: Path, notes: list[str]) -> list[Record]:
    # Not splitlines(): a sample may hold U+2028, which JSON leaves as it is.
    lines = [line for line in _read_text(path).split("\n") if line.strip()]
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    if lost := len(lines) - len(records):
        were = "line was" if lost == 1 else "lines were"
        notes.append(
            f"{lost} unreadable {were} left out of {path.name}; a run killed while writing leaves half a line."
        )
    return records


def _merge_metrics(records: list[Record], notes: list[str]) -> list[Record]:
    merged: dict[tuple[float, str], Record] = {}
    for record in records:
        step, split = number(record.get("step")), str(record.get("split", "train"))
        if step is not None:
            merged[step, split] = merged.get((step, split), {}) | record | {"step": step, "split": split}
    metrics = [merged[key] for key in sorted(merged)]
    broken = [r["step"] for r in metrics if isinstance(r.get("loss"), float) and not math.isfinite(r["loss"])]
    if broken:
        notes.append(f"The loss was not a finite number in {len(broken)} records, first at step {broken[0]:,.0f}.")
    return metrics


def _merge_samples(records: list[Record]) -> list[Record]:
    merged: dict[tuple[float, str], Record] = {}
    for record in records:
        step = number(record.get("step")) or 0.0
        settings = {key: value for key, value in record.items() if key not in ("step", "text")}
        merged[step, json.dumps(settings, sort_keys=True)] = record | {"step": step}
    return sorted(merged.values(), key=lambda record: record["step"])


def _by_step(records: list[Record]) -> list[Record]:
    """Return the records that have a step, in the order of the steps, else as they came."""
    found = [record | {"step": step} for record in records if (step := number(record.get("step"))) is not None]
    return sorted(found, key=lambda record: record["step"])


def _clean(value: Any, hide: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return hide(visible(value))
    if isinstance(value, dict):
        return {
            _clean(key, hide): HIDDEN if isinstance(item, str) and names_secret(key) else _clean(item, hide)
            for key, item in value.items()
        }
    return [_clean(item, hide) for item in value] if isinstance(value, list) else value
