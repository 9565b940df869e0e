"""What a model needs to live on the Hub: today its card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.report import Run, read_run, summary, write_curves
from gpt_finetune.report.folder import number
from gpt_finetune.report.page import facts, samples_by_step

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

HUB_SOURCE = "hub:"
TAGS = ["gpt_finetune", "custom_code"]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def write_card(run_dir: Path, license: str | None = None) -> Path:
    """Write the model card, ``README.md``, from what a run left in its folder.

    Args:
        run_dir: The run's folder; ``curves.png`` is drawn there too unless it is there.
        license: The model's licence by its Hub name, such as ``apache-2.0``; left out unless given.

    Returns:
        The card's path.

    Raises:
        InputError: There is no such folder.
    """
    from huggingface_hub import ModelCard

    run = read_run(run_dir)
    if not (run.directory / "curves.png").is_file():
        write_curves(run_dir)
    path = run.directory / "README.md"
    ModelCard(f"---\n{_metadata(run, license).to_yaml()}\n---\n\n{_body(run)}\n").save(path)
    return path


def _metadata(run: Run, license: str | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    hub_sources = [source.name.removeprefix(HUB_SOURCE) for source in summary.sources(run) if _is_hub(source.name)]
    results = _results(run, hub_sources)
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=TAGS,
        license=license,
        base_model=_hub_base(run),
        datasets=hub_sources or None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _results(run: Run, hub_sources: list[str]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    names = [source.name.removeprefix(HUB_SOURCE) for source in summary.sources(run)]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub_sources[0] if len(names) == len(hub_sources) == 1 else "text",
            dataset_name=f"held out from {', '.join(names)}" if names else "held-out text",
            metric_type="loss" if key == "eval_loss" else key,
            metric_name=summary.metric(key).label,
            metric_value=value,
        )
        for key, value in run.figures.items()
        if key not in summary.COST
    ]


def _body(run: Run) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gpt_finetune.report", "."),
        autoescape=False,  # Markdown: the filters escape
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"inline": _inline, "fence": _fence}
    step, samples = next(iter(samples_by_step(run)), ("", []))
    return environment.get_template("card.md.j2").render(
        run=run,
        model=_describe(run),
        verdict=summary.verdict(run),
        figures=summary.figures(run),
        load_snippet=summary.load_snippet(run),
        sources=summary.sources(run),
        ledger=summary.ledger(run),
        step=step,
        samples=samples[:2],
        facts=facts(run),
    )


def _describe(run: Run) -> str:
    model = run.section("model")
    parameters = number(model.get("parameters"))
    size = f" of {summary.count(parameters)} parameters" if parameters else ""
    preset = f" (preset {_inline(model['preset'])})" if model.get("preset") else ""
    base = model.get("base_model")
    origin = f"trained further from {_inline(base)}" if base else "trained from scratch" if model else "trained"
    recipe = f", recipe {_inline(run.record['recipe'])}" if run.record.get("recipe") else ""
    return f"A GPT language model{size}{preset}, {origin} with gpt_finetune{recipe}."


def _is_hub(source: str) -> bool:
    return source.startswith(HUB_SOURCE) and _HUB_ID.fullmatch(source.removeprefix(HUB_SOURCE)) is not None


def _hub_base(run: Run) -> str | None:
    """Return the base model's Hub id; a folder on this machine has none."""
    base = run.section("model").get("base_model")
    is_hub = isinstance(base, str) and _HUB_ID.fullmatch(base) and not Path(base).exists()
    return base if is_hub else None


def _inline(value: Any) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#~&])", r"\\\1", " ".join(str(value).split()))


def _fence(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any in the text."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
