"""Generated answers beside simple baselines on the same held-out prompts: figures, how sure they are, worst answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.supervised.config import ExamplesConfig
from gpt_finetune.training.arguments import AnswerConfig

if TYPE_CHECKING:
    from gpt_finetune.generation import Answer, Prompt
    from gpt_finetune.metrics.resampling import Counted
    from gpt_finetune.supervised.formats import Example

log = logging.getLogger(__name__)

RECEIPT = "run.json"
TRIPLES = "triples"
# what to lead with -> the figure
LEADING = {name: name for name in ("chrf", "bleu", "rouge1", "rouge2", "rougeL", "token_f1", "exact_match")}
LEADING[TRIPLES] = "micro_f1"


@dataclass
class CompareConfig:
    """What a model's answers are put beside, and how sure the difference is.

    Args:
        baselines: lead (the first sentence), copy (the text itself), dictionary (word by word, IBM model 1), retrieval
            (the answer to the most similar training text), frequent (the commonest training answer), pattern (fields
            of JSON answers by the words around them). None makes no comparison.
        metric: The figure that leads and is tested: chrf, bleu, rouge1, rouge2, rougeL, token_f1, exact_match; or
            triples, which measures JSON answers fact by fact, too.
        column: Column that baselines read; null: the one that the template's user turn names, else all that the user
            says.
        resamples: Bootstrap samples behind the confidence intervals.
        errors: How many of the worst answers to show.
    """

    baselines: list[str] | None = None
    metric: str = "chrf"
    column: str | None = None
    resamples: int = 1000
    errors: int = 12

    def validate(self, prefix: str = "compare") -> None:
        """Check every field; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this section.

        Raises:
            InputError: A field cannot be used.
        """
        from gpt_finetune.tasks.generation_baselines import check_baselines

        check_baselines(self.baselines or (), f"{prefix}.baselines")
        if self.metric not in LEADING:
            remedy = did_you_mean(self.metric, LEADING)
            raise InputError(f"{prefix}.metric", self.metric, "there is no such figure", remedy)
        for name, least in (("resamples", 100), ("errors", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{prefix}.{name}", getattr(self, name), f"it must be at least {least}", "Raise it")


@dataclass(frozen=True)
class Compared:
    """What is known of a model's answers.

    Args:
        figures: Of the model.
        baselines: Of others, by name.
        section: `task` of the run's receipt, from which the report draws.
    """

    figures: dict[str, float]
    baselines: dict[str, dict[str, float]]
    section: dict[str, Any]


def read_run(folder: str) -> tuple[ExamplesConfig, AnswerConfig, Any]:
    """Return the examples of a run, how it asked for answers, and the precision that its training section names.

    Raises:
        InputError: The folder holds no fine-tuning run.
    """
    try:
        config = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
        precision = config.get("train", {}).get("precision", "auto")
        return ExamplesConfig.from_dict(config["data"]), AnswerConfig(**config.get("answer", {})), precision
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        problem = f"its config.yaml has no examples ({type(error).__name__})"
        raise InputError("run", folder, problem, "Give the folder of a run of recipes/finetune.py") from None


def chosen(given: AnswerConfig, default: AnswerConfig, run: AnswerConfig) -> AnswerConfig:
    """Return a run's own way of asking, but for what the user has set otherwise."""
    fields = {name: value for name, value in asdict(given).items() if value != getattr(default, name)}
    return replace(run, **fields)


def compare(
    prompts: Sequence[Prompt], answers: Sequence[Answer], train: Sequence[Example], config: CompareConfig
) -> Compared:
    """Measure a model's answers, and let baselines answer the same prompts.

    Args:
        prompts: What was asked.
        answers: The model's answers, in the same order.
        train: The training examples, from which baselines learn.
        config: The section.

    Raises:
        InputError: A baseline cannot read the examples, or the metric cannot read the answers.
    """
    from gpt_finetune.metrics import labels as scores
    from gpt_finetune.tasks.generation_baselines import Pair, answer_by

    references = [prompt.reference for prompt in prompts]
    sources = [source_of(prompt.shown, prompt.columns, config.column) for prompt in prompts]
    pairs = [Pair(source_of(one.last[0], one.columns, config.column), one.last[1]) for one in train]
    pairs = [pair for pair in pairs if pair.answer.strip()]
    if not pairs and config.baselines:
        raise InputError("compare.baselines", config.baselines, "no training example has an answer", "Leave them out")
    leading = LEADING[config.metric]
    count = counter(config.metric)
    counted = count([answer.text for answer in answers], references)
    draws = _resampled(counted, config)
    told: dict[str, dict[str, float]] = {}
    tests: dict[str, dict[str, Any]] = {}
    for name in config.baselines or ():
        begin = time.perf_counter()
        theirs = answer_by(name, pairs, sources)
        seconds = round(time.perf_counter() - begin, 3)
        others = count(theirs, references)
        told[name] = {**figures_of(others), "seconds": seconds}
        p = scores.paired_p(draws[leading], _resampled(others, config)[leading])
        tests[name] = {**told[name], "test": f"paired bootstrap of {leading}", "p": p}
    section = {
        "name": "generation",
        "leading": leading,
        "prompts": len(prompts),
        "intervals": {name: list(scores.interval(values)) for name, values in draws.items()},
        "resamples": config.resamples,
        "baselines": tests,
        "errors": _worst(prompts, answers, counted, leading, config.errors),
    }
    return Compared(figures_of(counted), told, section)


def counter(metric: str) -> Callable[[list[str], list[str]], dict[str, Counted]]:
    """Return what counts texts for a metric: every figure of texts, and those of facts where these lead."""
    from gpt_finetune.metrics.resampling import count_texts, count_triples

    if metric == TRIPLES:
        return lambda said, right: {**count_triples(said, right), **count_texts(said, right)}
    return count_texts


def figures_of(counted: Mapping[str, Counted]) -> dict[str, float]:
    """Return the figures of all texts together."""
    return {name: value for each in counted.values() for name, value in each.whole.items()}


def source_of(shown: str, columns: Mapping[str, Any], column: str | None = None) -> str:
    """Return the text that a prompt is about, without the instruction around it.

    Args:
        shown: What the user says.
        columns: What of the row a template put there.
        column: Which of them; None: the only one, else all that the user says.

    Raises:
        InputError: There is no such column.
    """
    if column is None:
        return str(next(iter(columns.values()))) if len(columns) == 1 else shown
    if column not in columns:
        problem = "the template's user turn names no such column" if columns else "the examples come without a template"
        raise InputError(
            "compare.column", column, problem, did_you_mean(column, columns) if columns else "Leave it out"
        )
    return str(columns[column])


def record(folder: str, compared: Compared) -> None:
    """Write an outcome into a run's receipt, and render card and report again.

    Args:
        folder: The run's.
        compared: The outcome.

    Raises:
        InputError: The folder holds no receipt.
    """
    from gpt_finetune.hub import write_card
    from gpt_finetune.report import write_report

    path = Path(folder) / RECEIPT
    try:
        receipt = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = f"its {RECEIPT} cannot be read ({type(error).__name__})"
        raise InputError("run", folder, problem, "Give the folder of a finished run of recipes/finetune.py") from None
    receipt["figures"] = receipt.get("figures", {}) | compared.figures
    receipt["baselines"] = receipt.get("baselines", {}) | compared.baselines
    receipt["task"] = compared.section
    staged = path.with_name(f".{path.name}.part")  # whole or not at all
    staged.write_text(json.dumps(receipt, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    staged.replace(path)
    log.info("written into %s; see %s", path, write_report(Path(folder)))
    write_card(Path(folder))


def _resampled(counted: Mapping[str, Counted], config: CompareConfig) -> dict[str, Any]:
    return {name: row for each in counted.values() for name, row in each.resampled(config.resamples).items()}


def _worst(
    prompts: Sequence[Prompt], answers: Sequence[Answer], counted: Mapping[str, Counted], leading: str, count: int
) -> list[dict[str, Any]]:
    """Return the prompts whose answers are the worst by the leading figure, each by itself."""
    mine = next(each for each in counted.values() if leading in each.whole)
    scores = mine.each(leading)
    return [
        {
            "text": prompts[i].shown,
            "label": prompts[i].reference,
            "predicted": answers[i].text,
            leading: round(float(scores[i]), 4),
        }
        for i in scores.argsort(kind="stable")[:count].tolist()
        if answers[i].text.strip() != prompts[i].reference.strip()
    ]
