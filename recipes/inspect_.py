"""Say what an architecture costs, before any weight exists: parameters, FLOPs, cache and memory.

    gpt-finetune inspect --model gpt-oss-20b
    python recipes/inspect_.py --model runs/quickstart --context_length 128 --format json

Expected with the first: 20.9B parameters, 3.61B of them active, as its model card says (arXiv:2508.10925 table 1).
"""

# The underscore: a script's folder comes first on sys.path, so a recipes/inspect.py would be what torch gets, from this
# recipe or any beside it, when it imports Python's own `inspect`.
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_finetune.config import run
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.presets import PRESETS, preset

if TYPE_CHECKING:
    from gpt_finetune import GPTConfig
    from gpt_finetune.costs import Costs


@dataclass
class InspectConfig:
    """Say what an architecture costs.

    Args:
        model: Preset; or folder or Hub id of a checkpoint, of ours or of an architecture that gpt_finetune/conversion
            reads; or the name of a model that arrives as a package.
        context_length: Tokens of a sequence; null means as many as the model has positions.
        batch_size: Sequences computed at once.
        dtype: Precision of computing, and of weights and cache when serving.
        train_dtype: Precision of the weights in training, of their gradients and of AdamW's two moments.
        overrides: Fields of GPTConfig to change, e.g. `overrides.num_key_value_heads=4`.
        format: Tables to read, or JSON: plain numbers, memory in bytes.
    """

    model: str = "gpt2"
    context_length: int | None = None
    batch_size: int = 1
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    train_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    overrides: dict[str, Any] = field(default_factory=dict)
    format: Literal["text", "json"] = "text"


def architecture(config: InspectConfig) -> tuple[GPTConfig, str]:
    """Return the model's configuration, which is all that is read of a checkpoint, and where it comes from."""
    from gpt_finetune import GPTConfig
    from gpt_finetune.packaged import PACKAGES, locate

    known = {*GPTConfig.__dataclass_fields__, *GPTConfig.attribute_map}
    for name, value in config.overrides.items():
        if name not in known:
            raise InputError(f"overrides.{name}", value, "there is no such field", did_you_mean(name, known))
    try:
        if config.model in PRESETS and not Path(config.model).exists():
            return preset(config.model, **config.overrides), PRESETS[config.model].paper
        resolved = GPTConfig.from_pretrained(locate(config.model), **config.overrides)
        resolved.validate()
    except InputError:
        raise
    except OSError:
        problem = "there is no such preset, and no checkpoint can be read there"
        raise InputError("model", config.model, problem, did_you_mean(config.model, [*PRESETS, *PACKAGES])) from None
    except Exception as error:  # @strict wraps what it finds in errors of its own
        field, value = ("overrides", config.overrides) if config.overrides else ("model", config.model)
        raise InputError(field, value, str(error.__cause__ or error), "Give fields that fit each other") from None
    return resolved, "a checkpoint"


def main(config: InspectConfig) -> Costs:
    """Run the recipe; returns the costs."""
    resolved, source = architecture(config)
    from rich.console import Console
    from rich.table import Table

    from gpt_finetune.costs import estimate, tables

    costs = estimate(resolved, config.context_length, config.batch_size, config.dtype, config.train_dtype)
    if config.format == "json":
        print(json.dumps({**asdict(config), **asdict(costs)}, indent=2))
        return costs
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{config.model}[/bold]: {source}")
    for title, rows in tables(resolved, costs).items():
        table = Table("", "", box=None, show_header=False, padding=(0, 2, 0, 0))
        table.columns[0].min_width, table.columns[1].min_width = 27, 8
        for row in rows:
            table.add_row(*row)
        console.print(f"\n[bold]{title}[/bold]")
        console.print(table)
    return costs


if __name__ == "__main__":
    run(main, InspectConfig)
