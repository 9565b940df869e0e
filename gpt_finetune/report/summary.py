"""The numbers of a run as people read them; the page and the model card share them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gpt_finetune.report import heads
from gpt_finetune.report.folder import Run, number
from gpt_finetune.report.heads import LANGUAGE_MODEL, Head


@dataclass(frozen=True)
class Metric:
    """How one figure is named and written."""

    label: str
    unit: str = ""
    digits: int = 3
    lower_is_better: bool = False


METRICS = {
    "bits_per_byte": Metric("Bits per byte", "bits per byte", lower_is_better=True),
    "eval_loss": Metric("Validation loss", "nats per token", lower_is_better=True),
    "perplexity": Metric("Perplexity", "per token", 2, lower_is_better=True),
    "chrf": Metric("chrF", "of 100", 1),
    "bleu": Metric("BLEU", "of 100", 1),
    "rouge1": Metric("ROUGE-1", "of 1"),
    "rouge2": Metric("ROUGE-2", "of 1"),
    "rougeL": Metric("ROUGE-L", "of 1"),
    "token_f1": Metric("Token F1", "of 1"),
    "exact_match": Metric("Exact match", "of the answers"),
    "no_answer_accuracy": Metric("Answer or none", "told rightly"),
    "entity_f1": Metric("Entity F1", "entity F1"),
    "entity_precision": Metric("Entity precision", "of the names told"),
    "entity_recall": Metric("Entity recall", "of the right names"),
    "accuracy": Metric("Accuracy", "accuracy"),
    "macro_f1": Metric("Macro F1", "macro F1"),
    "micro_f1": Metric("Micro F1", "micro F1"),
    "precision": Metric("Precision", "of what is told"),
    "recall": Metric("Recall", "of what is right"),
    "malformed_rate": Metric("Malformed", "of the answers", lower_is_better=True),
    "subset_accuracy": Metric("All labels right", "of the texts"),
    "mse": Metric("Mean squared error", lower_is_better=True),
    "pearson": Metric("Pearson correlation", "of 1"),
    "ece": Metric("Calibration error", "of 1", lower_is_better=True),
    "stop_rate": Metric("Ended by the model", "of the answers"),
    "answer_tokens": Metric("Length of an answer", "tokens", 1),
    "tokens_per_second": Metric("Throughput", "tokens per second"),
    "mfu": Metric("FLOPs utilisation", "of the ceiling (MFU)"),
    "peak_memory_mb": Metric("Peak memory"),
    "eval_tokens": Metric("Held-out tokens"),
}
# Said of the run or its data, not of how good the model is.
COST = ("tokens_per_second", "mfu", "peak_memory_mb", "eval_tokens", "answer_tokens")
PERCENT = ("mfu", "exact_match", "malformed_rate", "stop_rate", "accuracy", "subset_accuracy")

# What becomes of all that came in; any other count in the ledger is a reason for dropping, or stands aside.
FATES = ("trained", "validation", "masked", "dropped")
_FATE_ALIASES = {"total": "in", "train": "trained"}
_ASIDE = {
    "separators": "separator tokens added",
    "padding": "padding tokens added",
    "per_epoch": "target tokens per epoch",
}

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Figure:
    """One figure, written out: ``1.305``, ``bits per byte``."""

    label: str
    value: str
    unit: str = ""


@dataclass(frozen=True)
class Bar:
    """One line of the comparison; ``share`` is its length in percent of the longest."""

    name: str
    value: str
    share: float
    ours: bool


@dataclass(frozen=True)
class Verdict:
    """The run in one line, and beside its baselines; ``key`` is its leading figure's."""

    key: str
    value: str
    unit: str
    sentence: str
    bars: list[Bar]


@dataclass(frozen=True)
class Change:
    """One figure before training and after; ``improved`` is None where neither direction is better."""

    label: str
    unit: str
    before: str
    after: str
    improved: bool | None


@dataclass(frozen=True)
class Source:
    """Where text came from, and how much."""

    name: str
    amount: str


@dataclass(frozen=True)
class LedgerRow:
    """One line of the ledger; a reason is a part of what was dropped."""

    label: str
    is_reason: bool
    cells: list[str]


@dataclass(frozen=True)
class Ledger:
    """Where every document and token went, and whether the books balance."""

    columns: list[str]
    rows: list[LedgerRow]
    balance: str


def metric(key: str) -> Metric:
    """Return how to write a figure; an unknown one is labelled by its key."""
    return METRICS.get(key, Metric(key.removeprefix("eval_").replace("_", " ").capitalize()))


def write_figure(key: str, value: float) -> Figure:
    """Write out one figure with its unit."""
    known = metric(key)
    if key in PERCENT:
        return Figure(known.label, f"{value:.1%}", known.unit)
    if key in ("tokens_per_second", "eval_tokens"):
        return Figure(known.label, count(value), known.unit)
    if key == "peak_memory_mb":
        return Figure(known.label, f"{value / 1000:.2f} GB" if value >= 1000 else f"{value:.0f} MB")
    unit = known.unit if known.unit != known.label.lower() else ""
    return Figure(known.label, fixed(value, known.digits), unit)


def figures(run: Run, without: str = "") -> list[Figure]:
    """Return what was reached, then what it cost; ``without`` leaves out the figure of that key."""
    found = {key: value for key, value in run.figures.items() if key != without}
    model = run.section("model")
    written = [_measured(run, key, found[key]) for key in sorted(found, key=_metric_order) if key not in COST]
    if (parameters := number(model.get("parameters"))) is not None:
        embedding = number(model.get("parameters_embedding"))
        note = f"{count(embedding)} of them embeddings" if embedding else ""
        trained = number(model.get("parameters_trained"))
        if trained is not None and trained < parameters:
            note = f"{count(trained)} of them trained"
        written.append(Figure("Parameters", count(parameters), note))
    if (tokens := run.last("tokens")) is not None:
        steps = run.last("step")
        written.append(Figure("Tokens seen", count(tokens), f"in {steps:,.0f} steps" if steps else ""))
    seconds = number(run.record.get("duration_s"))
    if (seconds := run.last("elapsed_s") if seconds is None else seconds) is not None:
        written.append(Figure("Time", duration(seconds)))
    written += [write_figure(key, found[key]) for key in COST if key in found]
    return written


def verdict(run: Run) -> Verdict:
    """Put the run's leading figure beside its baselines."""
    found, baselines = run.figures, run.baselines
    quality = sorted((key for key in found if key not in COST), key=_metric_order)
    leading = str(run.section("task").get("leading"))
    # A figure that a baseline shares says more than one that stands alone.
    key = (
        leading
        if leading in found
        else next((key for key in quality if any(key in others for others in baselines.values())), None)
    )
    key = key or next(iter(quality), None)
    if key is None:
        return Verdict(
            "", "", "", "No evaluation yet." if run.status == "running" else "No evaluation was recorded.", []
        )
    known, ours = metric(key), found[key]
    others = {name: values[key] for name, values in baselines.items() if key in values}
    sentence = "on held-out text"
    if held_out := number(run.section("data").get("validation_bytes")):
        sentence = f"on {size(held_out)} of held-out text"
    if others:
        best = (min if known.lower_is_better else max)(others, key=others.__getitem__)
        sentence += f", {_compare(ours, others[best])} {best}"
    if between := _between(run, key):
        sentence += f"; with 95% confidence {between}"
    ranked = sorted(
        [(run.name, ours, True)] + [(name, value, False) for name, value in others.items()],
        key=lambda entry: entry[1],
        reverse=not known.lower_is_better,
    )
    longest = max((abs(value) for _, value, _ in ranked), default=0.0) or 1.0
    bars = [
        Bar(name, fixed(value, known.digits), 100 * abs(value) / longest, is_ours) for name, value, is_ours in ranked
    ]
    unit = known.unit or known.label.lower()
    if known.label.lower() not in unit.lower():
        unit = f"{known.label}, {unit}"
    return Verdict(key, fixed(ours, known.digits), unit, sentence + ".", bars if others else [])


def _measured(run: Run, key: str, value: float) -> Figure:
    """Write out one figure with the range that it has with 95 % confidence, where the run says so."""
    written = write_figure(key, value)
    if key == "eval_loss":
        return Figure(written.label, written.value, run.loss_unit)
    between = _between(run, key)
    return Figure(written.label, written.value, f"95%: {between}") if between else written


def _between(run: Run, key: str) -> str:
    """Write the ends of a figure's confidence interval; empty where the run says nothing of it."""
    found = _mapping(run.section("task").get("intervals")).get(key)
    ends = [number(end) for end in found] if isinstance(found, list) else []
    written = [write_figure(key, end).value for end in ends if end is not None]
    return " to ".join(written) if len(written) == 2 else ""


def changes(run: Run) -> list[Change]:
    """Return what training changed on the run's own held-out data; empty where nothing was evaluated before."""
    return _compare_all(run.before, run.figures)


def forgetting(run: Run) -> list[tuple[str, list[Change]]]:
    """Return what training changed on each data set that was watched beside the run's own: name and figures."""
    found = []
    for name, figures in run.section("forgetting").items():
        before, after = (_numbers(_mapping(figures).get(when)) for when in ("before", "after"))
        if rows := _compare_all(before, after):
            found.append((str(name), rows))
    return found


def ledger(run: Run) -> Ledger | None:
    """Lay out the ledger of all sources as a table: documents, bytes and tokens across, their fates down."""
    book = run.section("data").get("ledger")
    account = _mapping(_mapping(book).get("total") or book)
    fates = {unit: _fates(counts) for unit, counts in account.items() if isinstance(counts, Mapping) and counts}
    if not fates:
        return None
    reasons = sorted({name for counts in fates.values() for name in counts} - {"in", *FATES, *_ASIDE})
    rows = [
        LedgerRow(name.replace("_", " "), name in reasons, cells)
        for name in ("in", *FATES, *reasons)
        if any(cells := [f"{counts[name]:,.0f}" if name in counts else "" for counts in fates.values()])
    ]
    wrong = [
        f"{unit} {missing:+,.0f}"
        for unit, counts in fates.items()
        if "in" in counts and (missing := sum(counts.get(fate, 0) for fate in FATES) - counts["in"])
    ]
    balance = f"The books do not balance: {', '.join(wrong)}" if wrong else f"in = {' + '.join(FATES)}"
    aside = [
        f"{counts[name]:,.0f} {label}"
        for counts in fates.values()
        for name, label in _ASIDE.items()
        if counts.get(name)
    ]
    return Ledger(list(fates), rows, ". Beside these: ".join(filter(None, [balance, ", ".join(aside)])) + ".")


def sources(run: Run) -> list[Source]:
    """Return the data sources, with what came from each where the ledger tells."""
    data = run.section("data")
    accounts = _mapping(data.get("ledger")).get("sources")
    if isinstance(accounts, list) and accounts:
        return [Source(str(_mapping(account).get("source")), _intake(_mapping(account))) for account in accounts]
    listed = data.get("sources")
    return [Source(str(source), "") for source in (listed if isinstance(listed, list) else [])]


def load_snippet(run: Run, head: Head = LANGUAGE_MODEL) -> str:
    """Return Python code that loads a run's model in a fresh process, without this package."""
    model = run.section("model")
    where = str(model.get("hub_id") or f"path/to/{run.folder_name}")
    prompts = (str(sample["prompt"]) for sample in run.samples if sample.get("prompt"))
    prompt = next(prompts, "Once upon a time")
    if not run.is_adapter:
        return heads.load_snippet(head, where, prompt)
    given = str(model.get("base_model"))
    is_hub = _HUB_ID.fullmatch(given) is not None and not Path(given).exists()
    base = given if is_hub else f"path/to/{Path(given).name}"
    added = bool(model.get("added_tokens"))
    labels = run.section("task").get("labels")
    labelled = len(labels) if isinstance(labels, list) else None
    return heads.adapter_snippet(head, base, where, prompt, num_labels=labelled, own_tokenizer=True, new_tokens=added)


def count(value: float) -> str:
    """Write a count in three significant digits: 853, 12.3k, 1.25M."""
    for suffix in ("", "k", "M", "B", "T"):
        if abs(value) < 999.5 or suffix == "T":
            return (f"{value:.3g}" if suffix or value % 1 else f"{value:.0f}") + suffix
        value /= 1000
    raise AssertionError


def size(value: float) -> str:
    """Write a number of bytes: 12.3 kB."""
    short = count(value)
    return f"{short[:-1]} {short[-1].replace('B', 'G')}B" if short[-1].isalpha() else f"{short} B"


def duration(seconds: float) -> str:
    """Write a time in its two largest units: 4 min 12 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(index for index, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)


def moment(value: object) -> str:
    """Write an ISO time to the minute; anything else as it is."""
    text = str(value or "")
    try:
        return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return text


def fixed(value: float, digits: int = 3) -> str:
    """Write a figure with fixed digits, or few significant ones where those would say nothing."""
    return f"{value:,.{digits}f}" if 0.01 <= abs(value) < 1e6 or not value else f"{value:.3g}"


def _compare(ours: float, other: float) -> str:
    if not other or abs(ours / other - 1) < 0.0005:
        return "the same as" if other else "beside"
    return f"{abs(ours / other - 1):.1%} {'below' if ours < other else 'above'}"


def _compare_all(before: Mapping[str, float], after: Mapping[str, float]) -> list[Change]:
    shared = sorted((key for key in before if key in after), key=_metric_order)
    return [_change(key, before[key], after[key]) for key in shared if key in METRICS]


def _change(key: str, before: float, after: float) -> Change:
    first, last = write_figure(key, before), write_figure(key, after)
    improved = None if key in COST or before == after else (after < before) == metric(key).lower_is_better
    return Change(first.label, first.unit, first.value, last.value, improved)


def _numbers(value: object) -> dict[str, float]:
    return {key: found for key, raw in _mapping(value).items() if (found := number(raw)) is not None}


def _metric_order(key: str) -> tuple[int, str]:
    known = list(METRICS)
    return (known.index(key) if key in known else len(known), key)


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _fates(counts: Mapping[str, object]) -> dict[str, float]:
    """Return one unit's counts under this page's names; what was dropped is the sum of its reasons unless given."""
    # A mapping below "dropped" holds its reasons.
    flat = {**counts, **_mapping(counts.get("dropped"))}
    fates = {_FATE_ALIASES.get(name, name): value for name, raw in flat.items() if (value := number(raw)) is not None}
    reasons = [value for name, value in fates.items() if name not in ("in", *FATES, *_ASIDE)]
    return fates if "dropped" in fates or not reasons else fates | {"dropped": sum(reasons)}


def _intake(account: Mapping[str, object]) -> str:
    """Return how much one source gave: ``12 documents · 3.4 kB · 1.2k tokens``."""
    amounts = []
    for unit, counts in account.items():
        amount = number(_mapping(counts).get("total"))
        if amount is not None:
            amounts.append(size(amount) if unit == "bytes" else f"{count(amount)} {unit}")
    return " · ".join(amounts)
