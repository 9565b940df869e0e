"""What patterns of words around them find of names in a text, where a text has one of each kind at most."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from gpt_finetune.metrics.sequences import entities_of
from gpt_finetune.tasks.baselines import Baseline
from gpt_finetune.tasks.config import ENTITIES
from gpt_finetune.tasks.generation_baselines import Pair, pattern
from gpt_finetune.tasks.tag_reading import OUTSIDE, Tagged, find_slots, tag_spans

if TYPE_CHECKING:
    from gpt_finetune.tasks.tagging import PreparedTagging

PATTERN = "pattern"


def fits(data: PreparedTagging) -> bool:
    """Tell whether names are fields with one value: no text has two of a kind."""
    if data.problem != ENTITIES:
        return False
    kinds = ([kind for kind, *_ in entities_of(row.target.tags)] for row in data.texts["train"])
    return all(len(set(found)) == len(found) for found in kinds)


def find_by_pattern(data: PreparedTagging) -> Baseline:
    """Learn what stands around names, and tag held-out words by it; see `generation_baselines.pattern`.

    Args:
        data: The rows, for which `fits` holds.
    """
    begin, joiner = time.perf_counter(), data.facts["joiner"]
    train = [Pair(row.text, json.dumps(_slots(row.target, joiner))) for row in data.texts["train"]]
    held = data.texts["validation"]
    tags: list[str] = []
    for row, answer in zip(held, pattern(train, [row.text for row in held]), strict=True):
        found = find_slots(row.text, json.loads(answer), spaced=bool(joiner))
        spans = [(name, places[0]) for name, places in found if places]
        tags += tag_spans(row.text, row.target.words, spans)
    told = [tag if tag in data.labels.names else OUTSIDE for tag in tags]  # a name can begin where none of its kind did
    return Baseline(data.labels.encode(told), time.perf_counter() - begin)


def _slots(target: Tagged, joiner: str) -> dict[str, str]:
    names = sorted(entities_of(target.tags), key=lambda name: name[1:])
    return {kind: joiner.join(target.words[first : last + 1]) for kind, first, last in names}
