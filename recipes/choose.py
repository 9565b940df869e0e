"""Train any checkpoint to choose the right answer among several; beside chance and similarity of words.

Each choice is read with the question as a row of its own, scored at its last token, and a softmax makes them compete:
Radford et al. 2018 (GPT-1), section 3.3.

    accelerate launch recipes/choose.py --config configs/answer/choice-en.yaml
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import read_architecture, require_positions
from gpt_finetune.config import run
from gpt_finetune.tasks.choose_config import ChooseDataConfig
from gpt_finetune.tasks.config import CHOICES, JudgeConfig
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class ChooseConfig:
    """Train a model that chooses among answers.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        model: The base: folder or Hub id of one of ours or of a dialect that gpt_finetune/conversion reads, or the name
            of one that arrives as a package.
        tokenizer: Folder or Hub id of its tokenizer; null means the base's own.
        attn_implementation: Attention backend: eager, sdpa, flex_attention, flash_attention_2; null lets transformers
            choose.
        folds: Hold each of so many folds out once, a run for each in a folder of its own; null holds one part out.
        data: The questions and choices.
        adapt: What of the model learns; the head always does.
        train: The training.
        judge: What counts, and beside what.
    """

    output_dir: str = "runs/choose"
    resume: bool = False
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    tokenizer: str | None = None
    attn_implementation: str | None = None
    folds: int | None = None
    data: ChooseDataConfig = field(default_factory=ChooseDataConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(learning_rate=3e-4, weight_decay=0.0))
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def main(config: ChooseConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    config.data.validate()
    config.adapt.validate()
    metric, greater = config.judge.chosen(CHOICES)
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.tasks import choosing, folds, heads

    method = choosing.check_method(config.adapt)
    if config.folds is not None:
        return folds.train_folds(config, "choose", main, choosing.training_texts)
    base = locate(config.model)
    require_positions(read_architecture(base), "data.max_length", config.data.max_length)
    given = load_tokenizer(locate(config.tokenizer) if config.tokenizer else base)
    tokenizer = heads.padded_tokenizer(given, config.data.max_length, base)
    data = choosing.prepare_choices(config.data, tokenizer)
    with Run(config.output_dir, "choose", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.adaptation.methods import adapt
        from gpt_finetune.tasks import training

        options = training.options(config.train, config.judge, True, metric, greater)
        arguments = training_arguments(config.train, launched.folder, **options)
        others = choosing.run_baselines(data) if config.judge.baselines and launched.main else {}
        set_seed(config.train.seed)
        model = heads.load_with_head(base, choosing.CHOOSER, data.settings(), method, config.attn_implementation)
        facts = {"base_model": config.model, "method": config.adapt.method}
        batches = training.unlabelled(data, config.train.batch_size)
        model = adapt(model, method, example_batches=batches, bf16=arguments.bf16)
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
        )
        launched.describe(trainer, data, config, config.data.max_length, **facts)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        outcome = choosing.judge(data, trainer.outputs, others, config.judge)
        launched.receipt |= outcome.receipt(config.data)
        trainer.model = heads.merged(trainer.model, method)
        training.tidy(launched.folder, config.train)
        launched.finish(trainer, figures)
    return figures


if __name__ == "__main__":
    run(main, ChooseConfig)
