"""Train a tagger of words on any checkpoint: names in a text, parts of speech, slots; beside a simple baseline.

A word's tag stands at its last token, the only one that has seen all of it when a model reads to the right; with
bidirectional=true it reads both ways (as BERT does, Devlin et al. 2018, arXiv:1810.04805, section 5.3).

    accelerate launch recipes/tag.py --config configs/tag/ner-zh.yaml
    python recipes/predict.py --model runs/ner-zh --input.path texts.txt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import read_architecture, require_positions
from gpt_finetune.config import run
from gpt_finetune.tasks.config import JudgeConfig
from gpt_finetune.tasks.tag_config import TagDataConfig
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class TagConfig:
    """Train a tagger of words.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        folds: Hold each of so many folds out once, a run for each in a folder of its own; null holds one part out.
        model: The base: folder or Hub id of one of ours or of a dialect that gpt_finetune/conversion reads, or the name
            of one that arrives as a package; or `new:` and a preset, for a model from scratch with its own tokenizer.
        overrides: Fields of GPTConfig that replace the preset's, of a model of `new:`.
        tokenizer: Folder or Hub id of its tokenizer; null means the base's own.
        attn_implementation: Attention backend: eager, sdpa, flex_attention, flash_attention_2; null lets transformers
            choose.
        bidirectional: Let the model read both ways, though it learned to read to the right.
        data: The words with their tags.
        adapt: What of the model learns; the head always does.
        train: The training.
        judge: What counts, and beside what.
    """

    output_dir: str = "runs/tag"
    resume: bool = False
    overwrite: bool = False
    folds: int | None = None
    model: str = "smollm2-135m-instruct"
    overrides: dict[str, Any] = field(default_factory=dict)
    tokenizer: str | None = None
    attn_implementation: str | None = None
    bidirectional: bool = False
    data: TagDataConfig = field(default_factory=TagDataConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(learning_rate=3e-4, weight_decay=0.0))
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def main(config: TagConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    config.data.validate()
    config.adapt.validate()
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.tasks import folds, heads, scratch, tagging

    tagging.check_method(config.adapt)
    if config.folds is not None:
        return folds.train_folds(config, "tag", main, tagging.training_texts)
    base = scratch.find_base(config, lambda: tagging.training_texts(config.data))
    require_positions(read_architecture(base), "data.max_length", config.data.max_length)
    given = load_tokenizer(locate(config.tokenizer) if config.tokenizer else base)
    tokenizer = heads.padded_tokenizer(given, config.data.max_length, base)
    data = tagging.prepare_tagging(config.data, tokenizer, bidirectional=config.bidirectional)
    metric, greater = config.judge.chosen(data.problem)
    with Run(config.output_dir, "tag", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.adaptation.methods import adapt
        from gpt_finetune.tasks import training
        from gpt_finetune.tasks.attribution import explain_tags
        from gpt_finetune.tasks.tag_judging import judge, run_baselines

        options = training.options(config.train, config.judge, config.data.packing, metric, greater)
        arguments = training_arguments(config.train, launched.folder, **options)
        others = run_baselines(data) if config.judge.baselines and launched.main else {}
        set_seed(config.train.seed)
        model = heads.load_with_head(base, heads.TAGGER, data.settings(), config.adapt, config.attn_implementation)
        facts = scratch.base_facts(config.model, model, config.adapt)
        batches = training.unlabelled(data, config.train.batch_size)
        model = adapt(model, config.adapt, example_batches=batches, bf16=arguments.bf16)
        trainer = tagging.TagTrainer(
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
        outcome = judge(data, trainer.outputs, others, config.judge)
        launched.receipt |= outcome.receipt(config.data)
        if config.judge.merge:
            trainer.model = heads.merged(trainer.model, config.adapt)
        if launched.main and not trainer.is_fsdp_enabled:
            explain_tags(trainer.model, data, outcome.section["errors"])
        training.tidy(launched.folder, config.train)
        launched.finish(trainer, figures)
    return figures


if __name__ == "__main__":
    run(main, TagConfig)
