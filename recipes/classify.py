"""Train a classifier of texts on any checkpoint: one label, several labels, or a number; beside simple baselines.

Radford et al. 2018 (GPT-1), section 3.2: a linear layer over the last token. LoRA: Hu et al. 2021, arXiv:2106.09685.

    accelerate launch recipes/classify.py --config configs/classify/sentiment-en.yaml
    python recipes/predict.py --model runs/sentiment-en --input.path texts.txt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import read_architecture, require_positions
from gpt_finetune.config import run
from gpt_finetune.tasks.config import ClassifyDataConfig, JudgeConfig
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class ClassifyConfig:
    """Train a classifier of texts.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        folds: Hold each of so many folds out once, a run for each in a folder of its own; null holds one part out.
        model: The base: folder or Hub id of one of ours or of a dialect that gpt_finetune/conversion reads, or the name
            of one that arrives as a package; or `new:` and a preset, for a model from scratch with its own tokenizer.
        overrides: Fields of GPTConfig that replace the preset's, of a model of `new:`.
        tokenizer: Folder or Hub id of its tokenizer; null means the base's own.
        bidirectional: Let the model read both ways, though it learned to read to the right.
        attn_implementation: Attention: eager, sdpa, flex_attention, flash_attention_2; null: as transformers chooses.
        data: The texts with their labels.
        adapt: What of the model learns; the head always does.
        train: The training.
        judge: What counts, and beside what.
    """

    output_dir: str = "runs/classify"
    resume: bool = False
    overwrite: bool = False
    folds: int | None = None
    model: str = "smollm2-135m-instruct"
    overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    bidirectional: bool = False
    attn_implementation: str | None = None
    data: ClassifyDataConfig = field(default_factory=ClassifyDataConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(learning_rate=3e-4, weight_decay=0.0))
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def main(config: ClassifyConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    config.data.validate()
    config.adapt.validate()
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.tasks import classification, folds, heads, judging, scratch, training

    classification.check_method(config.adapt, config.data)
    if config.folds is not None:
        return folds.train_folds(config, "classify", main, classification.training_texts)
    base = scratch.find_base(config, lambda: classification.training_texts(config.data))
    require_positions(read_architecture(base), "data.max_length", config.data.max_length)
    given = load_tokenizer(locate(config.tokenizer) if config.tokenizer else base)
    tokenizer = heads.padded_tokenizer(given, config.data.max_length, base)
    data = classification.prepare_task(config.data, tokenizer)
    metric, greater = config.judge.chosen(data.labels.problem)
    with Run(config.output_dir, "classify", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.adaptation.methods import adapt
        from gpt_finetune.tasks.attribution import explain
        from gpt_finetune.tasks.baselines import run_baselines

        options = training.options(config.train, config.judge, config.data.packing, metric, greater)
        arguments = training_arguments(config.train, launched.folder, **options)
        sides = [[row.text for row in data.texts[side]] for side in ("train", "validation")]
        wanted = config.judge.baselines and launched.main
        others = run_baselines(data.labels.problem, sides[0], data.targets["train"], sides[1]) if wanted else {}
        set_seed(config.train.seed)
        settings = data.settings() | ({"is_causal": False} if config.bidirectional else {})
        model = heads.load_with_head(base, heads.CLASSIFIER, settings, config.adapt, config.attn_implementation)
        facts = scratch.base_facts(config.model, model, config.adapt)
        batches = training.unlabelled(data, config.train.batch_size)
        model = adapt(model, config.adapt, example_batches=batches, bf16=arguments.bf16)
        trainer = training.TaskTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            processing_class=tokenizer,
            callbacks=[*launched.callbacks(), *training.stoppers(config.judge)],
            optimizer_cls_and_kwargs=custom_optimizer(config.train, arguments),
            measure=data.measure,
            class_weights=training.weights(data, config.judge),
        )
        launched.describe(trainer, data, config, config.data.max_length, **facts)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        outcome = judging.judge(data, trainer.outputs, others, config.judge)
        launched.receipt |= outcome.receipt(config.data)
        if config.judge.merge:
            trainer.model = heads.merged(trainer.model, config.adapt)
        if launched.main and not trainer.is_fsdp_enabled:
            explain(trainer.model, data, outcome.section["errors"])
        training.tidy(launched.folder, config.train)
        launched.finish(trainer, figures)
    return figures


if __name__ == "__main__":
    run(main, ClassifyConfig)
