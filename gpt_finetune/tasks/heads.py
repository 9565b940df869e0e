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
from gpt_finetune.conversion import find_tokenizer
from gpt_finetune.data.tokenizer import load_tokenizer
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import locate
from gpt_finetune.supervised.templates import PADS
from gpt_finetune.tasks.labels import Labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSIFIER = "GPTForSequenceClassification"
HEAD = "ForSequenceClassification"
RECEIPT = "run.json"


def padded_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedTokenizerBase:
    """Return a copy that can pad, and that cuts texts where training does when it is asked to truncate.

    Without a pad token, one of the vocabulary's that is named like one serves, else the end token: what is padding is
    told by the mask, never by the id.
    """
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


def merged(model: Any, adapt: AdaptConfig) -> Any:
    """Return a model without adapters where the method merges and nothing is quantised, else the model itself."""
    return merge(model) if METHODS[adapt.method].merges and adapt.quantization == "none" else model


def load_classifier(path: str) -> tuple[Any, PreTrainedTokenizerBase, Labels]:
    """Load a finished classifier with its tokenizer, on the accelerator if there is one.

    Args:
        path: Folder or Hub id of a model that transformers opens as a classifier of texts, or folder of an adapter that
            a run of ours left.

    Returns:
        The model in evaluation mode, the tokenizer, and the labels.

    Raises:
        InputError: There is no such model, or it is no classifier.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    import gpt_finetune  # noqa: F401  # registers our classes

    folder = Path(path)
    if (folder / ADAPTER_CONFIG).is_file():
        model, labels = _load_adapter(folder)
    else:
        try:
            config = AutoConfig.from_pretrained(path)
            if not any(name.endswith(HEAD) for name in config.architectures or ()):
                problem = f"it is no classifier of texts, but {', '.join(config.architectures or ['unknown'])}"
                raise InputError("model", path, problem, "Train one with recipes/classify.py")
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype="float32")
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError("model", path, str(error).splitlines()[0], "Give a folder or a Hub id") from None
        several = "single_label_classification" if config.num_labels > 1 else "regression"
        labels = Labels(config.problem_type or several, tuple(config.id2label[i] for i in range(config.num_labels)))
    tokenizer = load_tokenizer(path)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer, labels


def _load_adapter(folder: Path) -> tuple[Any, Labels]:
    """Load an adapter on its base; the run's receipt names the labels.

    Raises:
        InputError: Base or labels are not named.
    """
    base = read_config(folder).get("base_model_name_or_path")
    try:
        task = json.loads((folder / RECEIPT).read_text(encoding="utf-8"))["task"]
        labels = Labels(str(task["problem_type"]), tuple(task["labels"]))
    except (OSError, ValueError, KeyError, TypeError):
        problem = f"{RECEIPT}, which names an adapter's labels, is not there or not whole"
        raise InputError("model", str(folder), problem, "Give the folder of a run of recipes/classify.py") from None
    tokenizer = find_tokenizer(folder)
    if not base or tokenizer is None:
        problem = "the adapter names no base, or has no tokenizer"
        raise InputError("model", str(folder), problem, "Give the folder as the run left it")
    settings = labels.settings() | {"pad_token_id": int(tokenizer.pad_token_id)}
    model = load_with_head(base, CLASSIFIER, settings, AdaptConfig())
    return load_adapters(model, {"adapter": folder}), labels
