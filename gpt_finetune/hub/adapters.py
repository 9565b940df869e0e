"""An adapter says on which model it stands: by its Hub id, its commit and its number of labels."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError
from gpt_finetune.hub.outcomes import patiently
from gpt_finetune.report.heads import Head, adapter_snippet, find_peft_head

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE = "gpt_finetune.json"  # beside PEFT's own file, which has no place for labels and warns of keys it does not know
LABELLED = ("SEQ_CLS", "TOKEN_CLS")


@dataclass(frozen=True)
class Adapter:
    """What an adapter stands on.

    Args:
        base: The base model's Hub id.
        commit: Its commit, so that the adapter means the same when the base's main branch has moved.
        num_labels: Of a classifier.
        head: The head that it adapts.
        record: `adapter_config.json` as it is pushed; PEFT loads the base at its `revision`.
    """

    base: str
    commit: str
    num_labels: int | None
    head: Head
    record: dict[str, Any]

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The JSON files that say all this, by name."""
        base = {"base_model": self.base, "revision": self.commit, "task_type": self.head.peft}
        return {ADAPTER_CONFIG: self.record, BASE: base | {"num_labels": self.num_labels}}

    def snippet(self, path: str, prompt: str) -> str:
        """Return Python code that loads base and adapter, without this package."""
        labels = self.num_labels
        return adapter_snippet(self.head, self.base, path, prompt, revision=self.commit, num_labels=labels)


def read_adapter(folder: Path) -> Adapter | None:
    """Read an adapter's folder and pin its base to the commit of today; None where there is no adapter.

    Raises:
        InputError: There is no base, it is not on the Hub, or the account may not read it.
    """
    from huggingface_hub import HfApi, hf_hub_url
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
    url = hf_hub_url(base, "config.json", revision=info.sha)
    try:  # whoever has no access to a gated model may yet see its page
        patiently(lambda: HfApi().get_hf_file_metadata(url=url), base)
    except InputError as error:
        raise InputError(field, base, error.problem, error.remedy) from None
    labels = _count_labels(folder / ADAPTER_WEIGHTS) if record["task_type"] in LABELLED else None
    return Adapter(base, str(info.sha), labels, head, record | {"revision": info.sha})


def load_adapter(path: str | Path, revision: str | None = None) -> PeftModel:
    """Load a pushed adapter on its base, at the commit and with the number of labels that it was trained with.

    Args:
        path: The adapter's Hub id, or a folder that it was downloaded to.
        revision: Branch, tag or commit of the adapter.

    Raises:
        InputError: It does not say what it stands on.
    """
    import transformers
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from peft import PeftModel

    def download() -> dict[str, Any]:
        with suppress(EntryNotFoundError):
            return read_json(Path(hf_hub_download(str(path), BASE, revision=revision)))
        return {}

    base = read_json(Path(path) / BASE) if Path(path).is_dir() else patiently(download, str(path))
    head = find_peft_head(base.get("task_type"))
    if head is None:
        remedy = "Load its base with from_pretrained and the adapter with PeftModel; what recipes/push.py sends has it"
        raise InputError("path", str(path), f"{BASE}, which says what it stands on, is not there", remedy)
    labels = {"num_labels": base["num_labels"]} if base["num_labels"] else {}
    auto = getattr(transformers, head.auto)
    model = auto.from_pretrained(base["base_model"], revision=base["revision"], **labels)
    return PeftModel.from_pretrained(model, str(path), revision=revision)


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
