"""A checkpoint with a new head for a task, and a finished one for use."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.adaptation.bases import ADAPTER_CONFIG, read_config
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.merging import load_adapters, merge
from gpt_finetune.adaptation.methods import QUANTIZERS
from gpt_finetune.build import read_architecture
from gpt_finetune.conversion import find_tokenizer
from gpt_finetune.data.tokenizer import load_tokenizer, require_tokens
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import locate
from gpt_finetune.report.heads import HEADS, find_peft_head
from gpt_finetune.supervised.templates import PADS
from gpt_finetune.tasks.labels import Labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSIFIER, TAGGER = "GPTForSequenceClassification", "GPTForTokenClassification"
RECEIPT = "run.json"


def padded_tokenizer(
    tokenizer: PreTrainedTokenizerBase, max_length: int, base: str | None = None
) -> PreTrainedTokenizerBase:
    """Return a copy that can pad, and that cuts texts where training does when it is asked to truncate.

    Without a pad token, one of the vocabulary's that is named like one serves, else the end token: what is padding is
    told by the mask, never by the id.

    Args:
        tokenizer: A fast tokenizer.
        max_length: Tokens that are kept of a text.
        base: Folder or Hub id of the checkpoint that is to read its tokens.

    Raises:
        InputError: It has tokens that the checkpoint does not embed.
    """
    if base is not None:
        require_tokens(tokenizer, read_architecture(base).vocab_size)
    ready = copy.deepcopy(tokenizer)
    if ready.pad_token is None:
        known = ready.get_vocab()
        ready.pad_token = next((name for name in PADS if name in known), ready.eos_token)
    ready.padding_side = ready.truncation_side = "right"
    ready.model_max_length = max_length
    return ready


def load_with_head(
    path: str,
    head: str,
    settings: Mapping[str, Any],
    adapt: AdaptConfig,
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a checkpoint with a new head, in float32 or with its linear layers in fewer bits.

    Args:
        path: Folder or Hub id of a checkpoint of ours or of a dialect that we read, or a packaged model's name. One
            that has this head, and as many labels, goes on from it.
        head: Name of the class, e.g. `CLASSIFIER`.
        settings: Further fields of its configuration, such as the labels' names.
        adapt: The section; `quantization` counts.
        attn_implementation: Attention backend; None lets transformers choose.

    Raises:
        InputError: There is no such checkpoint, or a package that quantises is missing.
    """
    import transformers

    import gpt_finetune

    adapt.validate()
    where = locate(path)
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would report the head as missing, which we know
    try:
        config = gpt_finetune.GPTConfig.from_pretrained(where)
        _check_labels(path, config, head, settings)
        for name, value in settings.items():
            setattr(config, name, value)
        return getattr(gpt_finetune, head).from_pretrained(
            where,
            config=config,
            dtype="float32",
            attn_implementation=attn_implementation,
            quantization_config=QUANTIZERS[adapt.quantization](),
        )
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = str(error).splitlines()[0]
        raise InputError("model", path, problem, "Give a checkpoint folder or a Hub id") from None
    finally:
        transformers.logging.set_verbosity(level)


def _check_labels(path: str, config: Any, head: str, settings: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that has the head already, but for another number of labels."""
    wanted = settings.get("num_labels", config.num_labels)
    if head in (config.architectures or []) and config.num_labels != wanted:
        problem = f"its head tells {config.num_labels} labels apart, and the training rows have {wanted}"
        raise InputError("model", path, problem, "Give rows with the same labels, or a base without this head")


def merged(model: Any, adapt: AdaptConfig) -> Any:
    """Return a model without adapters where the method merges and nothing is quantised, else the model itself."""
    return merge(model) if METHODS[adapt.method].merges and adapt.quantization == "none" else model


def find_task(path: str) -> str:
    """Return the end of a finished model's architecture, such as `ForTokenClassification`; an adapter's from its task.

    Args:
        path: Folder or Hub id of a model, or folder of an adapter.

    Raises:
        InputError: There is no such model.
    """
    import transformers

    import gpt_finetune  # noqa: F401  # registers our classes

    folder = Path(path)
    if (folder / ADAPTER_CONFIG).is_file():
        head = find_peft_head(read_config(folder).get("task_type"))
        return head.auto.removeprefix("AutoModel") if head else "an adapter without a task"
    try:
        architectures = transformers.AutoConfig.from_pretrained(path).architectures or []
    except (OSError, ValueError) as error:
        raise InputError("model", path, str(error).splitlines()[0], "Give a folder or a Hub id") from None
    name = str(next(iter(architectures), "unknown"))
    return next((ending for ending in HEADS if name.endswith(ending)), name)


def load_finished(path: str, head: str) -> tuple[Any, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load a finished model of a task with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id of a model that transformers opens with such a head, or folder of an adapter that a run
            of ours left.
        head: Name of our class, e.g. `TAGGER`.

    Returns:
        The model in evaluation mode, the tokenizer, and the task's section of the run's receipt, empty without one.

    Raises:
        InputError: There is no such model, or its head is another.
    """
    import torch
    import transformers

    import gpt_finetune  # noqa: F401  # registers our classes

    folder, ending = Path(path), head.removeprefix("GPT")
    if (found := find_task(path)) != ending:
        raise InputError("model", path, f"it is no model {ending}, but {found}", "Give one that has this head")
    task = _read_task(folder)
    if (folder / ADAPTER_CONFIG).is_file():
        model = _load_adapter(folder, head, task)
    else:
        try:
            model = getattr(transformers, f"AutoModel{ending}").from_pretrained(path, dtype="float32")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("model", path, str(error).splitlines()[0], "Give a folder or a Hub id") from None
    tokenizer = load_tokenizer(path)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer, task


def labels_of(config: Any) -> Labels:
    """Return the labels that a finished model's configuration names."""
    several = "single_label_classification" if config.num_labels > 1 else "regression"
    return Labels(config.problem_type or several, tuple(config.id2label[i] for i in range(config.num_labels)))


def _read_task(folder: Path) -> dict[str, Any]:
    """Return the task's section of a run's receipt; nothing where there is none."""
    try:
        task = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return task if isinstance(task, dict) else {}


def _load_adapter(folder: Path, head: str, task: Mapping[str, Any]) -> Any:
    """Load an adapter on its base; the run's receipt names the labels, and whether it reads both ways.

    Raises:
        InputError: Base or labels are not named.
    """
    base = read_config(folder).get("base_model_name_or_path")
    try:
        settings = Labels(str(task["problem_type"]), tuple(task["labels"])).settings()
    except (KeyError, TypeError):
        problem = f"{RECEIPT}, which names an adapter's labels, is not there or not whole"
        raise InputError("model", str(folder), problem, "Give the folder as the run left it") from None
    tokenizer = find_tokenizer(folder)
    if not base or tokenizer is None:
        problem = "the adapter names no base, or has no tokenizer"
        raise InputError("model", str(folder), problem, "Give the folder as the run left it")
    if head != CLASSIFIER:
        del settings["problem_type"]
    settings |= {"is_causal": False} if task.get("bidirectional") else {}
    model = load_with_head(base, head, settings | {"pad_token_id": int(tokenizer.pad_token_id)}, AdaptConfig())
    return load_adapters(model, {"adapter": folder})
