"""Measure a language model on examples: loss of the answers it should give, and the answers that it does give.

    python recipes/evaluate_.py --model runs/smollm2-lora-dialogue --run runs/smollm2-lora-dialogue
    python recipes/evaluate_.py --model smollm2-135m-instruct --run runs/smollm2-lora-dialogue --output base.json

`--run` takes the examples of a fine-tuning run, of which the held-out ones are measured: those that it never saw.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from gpt_finetune.build import require_positions
from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.config import ExamplesConfig, ExampleSourceConfig
from gpt_finetune.training.arguments import AnswerConfig, TrainConfig, training_arguments


@dataclass
class EvaluateConfig:
    """Measure a language model on held-out examples, by source.

    Args:
        model: Folder or Hub id of a causal language model, name of a packaged one, or folder of an adapter.
        run: Folder of a fine-tuning run whose examples to take, instead of `data`.
        data: The examples; its held-out part is measured.
        answer: The answers; of each source.
        batch_size: Rows a forward pass.
        output: JSON file for the figures; null prints them.
    """

    model: str = "runs/finetune"
    run: str | None = None
    data: ExamplesConfig = field(default_factory=ExamplesConfig)
    answer: AnswerConfig = field(default_factory=lambda: AnswerConfig(max_prompts=1000))
    batch_size: int = 4
    output: str | None = None


def read_run(folder: str) -> ExamplesConfig:
    """Return the examples of a run.

    Raises:
        InputError: The folder holds no fine-tuning run.
    """
    try:
        data = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))["data"]
        sources = {key: [ExampleSourceConfig(**source) for source in data[key]] for key in ("sources", "validation")}
        return ExamplesConfig(**(data | sources))
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        problem = f"its config.yaml has no examples ({type(error).__name__})"
        raise InputError("run", folder, problem, "Give the folder of a run of recipes/finetune.py") from None


def main(config: EvaluateConfig) -> dict[str, dict[str, float]]:
    """Run the recipe; returns the figures by source."""
    examples = read_run(config.run) if config.run else config.data
    examples.validate()
    from gpt_finetune.adaptation.loading import load_tuned
    from gpt_finetune.supervised.prepare import prepare_examples
    from gpt_finetune.supervised.templates import grow
    from gpt_finetune.training.answers import AnsweringTrainer

    model, tokenizer = load_tuned(config.model)
    require_positions(model.config, "data.max_length", examples.max_length)
    data = prepare_examples(examples, tokenizer)
    if not data.held_out:
        remedy = "Raise data.validation_fraction, or name data.validation"
        raise InputError("data.validation", examples.validation, "no example is held out", remedy)
    grow(model, data.tokenizer, data.added)  # as training began, where the template's tokens are new to the model
    found = {}
    with TemporaryDirectory() as folder:
        arguments = training_arguments(TrainConfig(batch_size=config.batch_size), Path(folder), disable_tqdm=False)
        for name, part in data.held_out.items():
            trainer = AnsweringTrainer(
                model=model,
                args=arguments,
                eval_dataset=part.rows,
                data_collator=data.collate,
                processing_class=data.tokenizer,
                eval_tokens_per_byte=part.tokens_per_byte,
                prompts=part.prompts,
                answering=config.answer,
            )
            trainer.evaluate()
            found[name] = trainer.final_figures()
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if config.output:
        Path(config.output).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return found


if __name__ == "__main__":
    run(main, EvaluateConfig)
