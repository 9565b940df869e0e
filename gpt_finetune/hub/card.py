"""The model card: metadata that the Hub can search, and a page made from what a run left in its folder."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gpt_finetune.errors import InputError
from gpt_finetune.packaged import PACKAGES
from gpt_finetune.report import Run, read_run, summary, write_curves
from gpt_finetune.report.folder import number
from gpt_finetune.report.heads import Head, load_snippet, quote, read_head
from gpt_finetune.report.page import facts, questions, samples_by_step

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

    from gpt_finetune.hub.adapters import Adapter

CARD = "README.md"
_BLANK = "# Model Card for Model ID"  # the form to fill in that PEFT and transformers leave
_PICTURE = "![Curves of the run](curves.png)\n"
HUB_SOURCE = "hub:"
TAGS = ["gpt_finetune", "custom_code"]
ADAPTER_TAGS = ["gpt_finetune", "lora"]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# The way to a file on this machine; its name may stay.
_WAY = re.compile(r"(?<![\w.:/~<>-])(?:/(?:[^\s/'\"`,;=()\[\]{}]+/)+|[A-Za-z]:\\(?:[^\s\\'\"`,;]+\\)*)(?=[\w.*])")


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
    run = _without_ways(read_run(run_dir))
    if not (run.directory / "curves.png").is_file():
        write_curves(run_dir)
    path = run.directory / CARD
    path.write_text(_card_of_run(run, read_head(run.directory), license), encoding="utf-8", newline="\n")
    return path


def card_to_push(
    folder: Path, repo_id: str, *, license: str | None, head: Head, adapter: Adapter | None, native: bool
) -> str:
    """Return the card of a folder as it will be on the Hub.

    A card that the folder has is kept, for somebody may have written on it: what its metadata lacks is added, and its
    code loads from the Hub instead of a folder.

    Args:
        folder: The model's folder.
        repo_id: Where it goes.
        license: The model's licence by its Hub name.
        head: The model's head.
        adapter: What it stands on, if it is an adapter.
        native: There is no code beside the weights.

    Raises:
        InputError: The card that is there has metadata that cannot be read.
    """
    from huggingface_hub import ModelCard

    run = _without_ways(read_run(folder))
    named = replace(run, record=run.record | {"model": run.section("model") | {"hub_id": repo_id}})
    wanted = _metadata(named, head, license)
    if adapter:
        wanted.library_name, wanted.base_model, wanted.tags = "peft", adapter.base, list(ADAPTER_TAGS)
    elif native:
        wanted.tags = None
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else _BLANK
    if _BLANK in text and run.record and not adapter:
        text = _card_of_run(named, head, license)
        text = text if (folder / "curves.png").is_file() else text.replace(_PICTURE, "")
    elif _BLANK in text:
        body = _short_body(repo_id, head, adapter, native)
        text = f"---\n{wanted.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n\n{body}\n"
    try:
        card = ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(CARD, folder.name, " ".join(str(error).split()), "Mend the metadata at its top") from None
    for name, value in vars(wanted).items():
        if getattr(card.data, name, None) in (None, []) or (name == "license" and license):
            setattr(card.data, name, value)
    card.text = card.text.replace(quote(f"path/to/{run.folder_name}"), quote(repo_id))
    return str(card)


def _card_of_run(run: Run, head: Head, license: str | None) -> str:
    return f"---\n{_metadata(run, head, license).to_yaml()}\n---\n\n{_body(run, head)}\n"


def _short_body(repo_id: str, head: Head, adapter: Adapter | None, native: bool) -> str:
    """Return the page of a model that no run of ours left: a conversion, an export, an adapter."""
    prompt = "Once upon a time"
    code = "" if native else " (its own Python files lie beside its weights: read them first)"
    what, snippet = f"A {head.kind}{code}.", load_snippet(head, repo_id, prompt, remote_code=not native)
    if adapter:
        labels = f", with {adapter.num_labels} labels" if adapter.num_labels else ""
        what = f"An adapter that makes a {head.kind} of {adapter.base} at commit `{adapter.commit}`{labels}."
        snippet = adapter.snippet(repo_id, prompt)
    return f"{what}\n\n## Load\n\n{_fence(snippet, 'python')}"


def _without_ways(run: Run) -> Run:
    """Return the run with files and folders of this machine under their bare names."""

    def shorten(value: Any) -> Any:
        if isinstance(value, str):
            return _WAY.sub("…/", value)
        if isinstance(value, dict):
            return {key: shorten(item) for key, item in value.items()}
        return [shorten(item) for item in value] if isinstance(value, list) else value

    return replace(run, record=shorten(run.record))


def _metadata(run: Run, head: Head, license: str | None) -> ModelCardData:
    from huggingface_hub import ModelCardData

    hub_sources = [source.name.removeprefix(HUB_SOURCE) for source in summary.sources(run) if _is_hub(source.name)]
    results = _results(run, head, hub_sources)
    return ModelCardData(
        library_name="peft" if run.is_adapter else "transformers",
        pipeline_tag=head.task,
        tags=list(ADAPTER_TAGS if run.is_adapter else TAGS),
        license=license,
        base_model=_hub_base(run),
        datasets=hub_sources or None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _results(run: Run, head: Head, hub_sources: list[str]) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    names = [source.name.removeprefix(HUB_SOURCE) for source in summary.sources(run)]
    return [
        EvalResult(
            task_type=head.task,
            dataset_type=hub_sources[0] if len(names) == len(hub_sources) == 1 else "text",
            dataset_name=f"held out from {', '.join(names)}" if names else "held-out text",
            metric_type=key.removeprefix("eval_"),
            metric_name=summary.metric(key).label,
            metric_value=value,
        )
        for key, value in run.figures.items()
        if key not in summary.COST
    ]


def _body(run: Run, head: Head) -> str:
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
        model=_describe(run, head),
        verdict=summary.verdict(run),
        figures=summary.figures(run),
        load_snippet=summary.load_snippet(run, head),
        needs_package=head.needs_package,
        sources=summary.sources(run),
        ledger=summary.ledger(run),
        step=step,
        samples=samples[:2],
        changes=summary.changes(run),
        forgetting=summary.forgetting(run),
        questions=questions(run)[:2],
        facts=facts(run),
    )


def _describe(run: Run, head: Head) -> str:
    model = run.section("model")
    parameters = number(model.get("parameters"))
    size = f" of {summary.count(parameters)} parameters" if parameters else ""
    preset = f" (preset {_inline(model['preset'])})" if model.get("preset") else ""
    base = model.get("base_model")
    if run.is_adapter:
        trained = number(model.get("parameters_trained"))
        size = f" of {summary.count(trained)} parameters" if trained else ""
        method = f", method {_inline(model['method'])}," if model.get("method") else ""
        return f"An adapter{size}{method} that makes a {head.kind} of {_inline(base)}, trained with gpt_finetune."
    origin = f"trained further from {_inline(base)}" if base else "trained from scratch" if model else "trained"
    recipe = f", recipe {_inline(run.record['recipe'])}" if run.record.get("recipe") else ""
    return f"A GPT {head.kind}{size}{preset}, {origin} with gpt_finetune{recipe}."


def _is_hub(source: str) -> bool:
    return source.startswith(HUB_SOURCE) and _HUB_ID.fullmatch(source.removeprefix(HUB_SOURCE)) is not None


def _hub_base(run: Run) -> str | None:
    """Return the base model's Hub id; a folder on this machine has none, a packaged model that of its origin."""
    base = run.section("model").get("base_model")
    if base in PACKAGES:
        return PACKAGES[base].hub_id
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
