"""Measure a language model on examples: loss of the answers it should give, and the answers that it does give.

    python recipes/evaluate_.py --model runs/smollm2-lora-dialogue --run runs/smollm2-lora-dialogue
    python recipes/evaluate_.py --model smollm2-135m-instruct --run runs/smollm2-lora-dialogue --output base.json
    python recipes/evaluate_.py --run runs/headline-en --compare.baselines '[lead, retrieval]' --compare.metric rouge1

`--run` takes the examples of a fine-tuning run, of which the held-out ones are measured: those that it never saw. With
`--compare.baselines`, these answer the same prompts; of the run's own model and prompts, the outcome goes into the
run's receipt and report.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gpt_finetune.build import require_positions
from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.config import ExamplesConfig
from gpt_finetune.tasks.generation import CompareConfig, chosen, compare, read_run, record
from gpt_finetune.training.arguments import AnswerConfig, TrainConfig, training_arguments

log = logging.getLogger("gpt_finetune.evaluate")
ANSWERS = AnswerConfig(max_prompts=1000)


@dataclass
class EvaluateConfig:
    """Measure a language model on held-out examples, by source; or beside baselines, on all sources together.

    Args:
        model: Folder or Hub id of a causal language model, name of a packaged one, or folder of an adapter; null: the
            run's own.
        run: Folder of a fine-tuning run whose examples and precision to take, instead of `data`.
        data: The examples; its held-out part is measured.
        answer: The answers, of each source. What is not set here is as the run has it.
        compare: Baselines, and how to compare with them.
        batch_size: Rows a forward pass.
        output: JSON file for the figures; null prints them.
    """

    model: str | None = None
    run: str | None = None
    data: ExamplesConfig = field(default_factory=ExamplesConfig)
    answer: AnswerConfig = field(default_factory=lambda: AnswerConfig(max_prompts=1000))
    compare: CompareConfig = field(default_factory=CompareConfig)
    batch_size: int = 4
    output: str | None = None


def main(config: EvaluateConfig) -> dict[str, Any]:
    """Run the recipe; returns the figures by source, or those of all with what they are compared to."""
    config.compare.validate()
    run_of: tuple[Any, ...] = read_run(config.run) if config.run else (config.data, ANSWERS, "auto")
    examples, own, precision = run_of
    asking = chosen(config.answer, ANSWERS, own)
    examples.validate()
    from gpt_finetune.adaptation.loading import load_tuned
    from gpt_finetune.supervised.prepare import HeldOut, prepare_examples
    from gpt_finetune.supervised.templates import grow
    from gpt_finetune.training.answers import AnsweringTrainer

    path = config.model or config.run or "runs/finetune"
    model, tokenizer = load_tuned(path)
    require_positions(model.config, "data.max_length", examples.max_length)
    compared = config.compare.baselines is not None
    data = prepare_examples(examples, tokenizer, keep_examples=compared)
    if not data.held_out or data.validation is None:
        remedy = "Raise data.validation_fraction, or name data.validation"
        raise InputError("data.validation", examples.validation, "no example is held out", remedy)
    grow(model, data.tokenizer, data.added)  # as training began, where the template's tokens are new to the model

    train = TrainConfig(batch_size=config.batch_size, precision=precision)

    def ask(part: HeldOut, folder: str) -> AnsweringTrainer:
        trainer = AnsweringTrainer(
            model=model,
            args=training_arguments(train, Path(folder), disable_tqdm=False),
            eval_dataset=part.rows,
            data_collator=data.collate,
            processing_class=data.tokenizer,
            eval_tokens_per_byte=part.tokens_per_byte,
            prompts=part.prompts,
            answering=asking,
        )
        trainer.evaluate()
        return trainer

    with TemporaryDirectory() as folder:
        if compared:
            trainer = ask(HeldOut(data.validation, data.prompts, data.validation_bytes), folder)
            if not trainer.prompts:
                raise InputError("answer.max_prompts", asking.max_prompts, "no prompt is asked", "Raise it")
            outcome = compare(trainer.prompts, trainer.answers, data.examples, config.compare)
            found: dict[str, Any] = {"figures": trainer.final_figures() | outcome.figures, "task": outcome.section}
            same = (asking.max_prompts, asking.max_new_tokens) == (own.max_prompts, own.max_new_tokens)
            if config.run and path == config.run and same:
                record(config.run, outcome)
            elif config.run:
                log.warning("Another model or other prompts than the run's own: its receipt stays as it is.")
        else:
            found = {name: ask(part, folder).final_figures() for name, part in data.held_out.items()}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    if config.output:
        Path(config.output).write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    return found


if __name__ == "__main__":
    run(main, EvaluateConfig)
