"""An adapter's folder says on which model it stands: by its Hub id, its commit and its number of labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_finetune.errors import InputError
from gpt_finetune.hub.outcomes import patiently
from gpt_finetune.report.heads import Head, find_peft_head, quote

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LABELLED = ("SEQ_CLS", "TOKEN_CLS")


@dataclass(frozen=True)
class Adapter:
    """What an adapter stands on.

    Args:
        base: The base model's Hub id.
        commit: Its commit, so that the adapter means the same when the base's main branch has moved.
        num_labels: Of a classifier.
        head: The head that it adapts.
        record: `adapter_config.json` with all that; PEFT loads the base at `revision`. It has no place for num_labels,
            and warns of keys that it does not know: the card says it.
    """

    base: str
    commit: str
    num_labels: int | None
    head: Head
    record: dict[str, Any]

    def snippet(self, path: str, prompt: str) -> str:
        """Return Python code that loads base and adapter, without this package."""
        labels = f", num_labels={self.num_labels}" if self.num_labels else ""
        pinned = "path, revision=commit"
        return f"""from peft import PeftModel
from transformers import {", ".join(sorted((self.head.auto, "AutoTokenizer")))}

path, commit = {quote(self.base)}, "{self.commit}"
tokenizer = AutoTokenizer.from_pretrained({pinned}, trust_remote_code=True)
model = {self.head.auto}.from_pretrained({pinned}{labels}, trust_remote_code=True)
model = PeftModel.from_pretrained(model, {quote(path)})

{self.head.use.format(prompt=quote(prompt))}"""


def read_adapter(folder: Path) -> Adapter | None:
    """Read an adapter's folder and pin its base to the commit of today; None where there is no adapter.

    Raises:
        InputError: There is no base, or it is not on the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return None
    record = read_json(path)
    base, field = record.get("base_model_name_or_path"), f"{ADAPTER_CONFIG}: base_model_name_or_path"
    if not base:
        raise InputError(field, base, "nobody can load an adapter without its base", "Write the base's Hub id there")
    try:
        validate_repo_id(base)
        is_local = Path(base).exists()
    except HFValidationError:
        is_local = True
    if is_local:
        remedy = "Push the base first and write its Hub id there, or merge the adapter into it"
        raise InputError(field, Path(base).name, "the base is a folder of this machine", remedy)
    head = find_peft_head(record.get("task_type"))
    if head is None:
        known = "Give LoraConfig(task_type=…), such as CAUSAL_LM"
        raise InputError(f"{ADAPTER_CONFIG}: task_type", record.get("task_type"), "it says not what to load", known)
    info = patiently(lambda: HfApi().model_info(base, revision=record.get("revision")), base)
    labels = _count_labels(folder / ADAPTER_WEIGHTS) if record["task_type"] in LABELLED else None
    return Adapter(base, str(info.sha), labels, head, record | {"revision": info.sha})


def _count_labels(path: Path) -> int | None:
    """Return the rows of the classifier that was trained along with the adapter."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as weights:
        names = [name for name in weights.keys() if name.endswith(("score.weight", "classifier.weight"))]  # noqa: SIM118
        return int(weights.get_slice(names[0]).get_shape()[0]) if names else None


def read_json(path: Path) -> dict[str, Any]:
    """Read one of the model's JSON files; nothing where there is none.

    Raises:
        InputError: It is broken.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError("model", path.name, "it is no JSON object", "Save the model again")
    return content
