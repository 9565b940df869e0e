"""Train any checkpoint to find answers in a text, or to say that it holds none; beside answers that need no model.

A decoder reads the question first, then the text; no answer stands at the row's last token, which alone has seen all.
Head: Devlin et al. 2018, arXiv:1810.04805, section 4.2; no answer: Rajpurkar et al. 2018, arXiv:1806.03822.

    accelerate launch recipes/answer.py --config configs/answer/qa-en.yaml
    python recipes/predict.py --model runs/qa-en --input.path questions.jsonl
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import read_architecture, require_positions
from gpt_finetune.config import run
from gpt_finetune.tasks.answer_config import AnswerDataConfig, SpanConfig
from gpt_finetune.tasks.config import ANSWERS, JudgeConfig
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class AnswerConfig:
    """Train a model that answers questions on texts.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        model: The base: folder or Hub id of one of ours or of a dialect that gpt_finetune/conversion reads, or the name
            of one that arrives as a package.
        tokenizer: Folder or Hub id of its tokenizer; null means the base's own.
        attn_implementation: Attention backend: eager, sdpa, flex_attention, flash_attention_2; null lets transformers
            choose.
        bidirectional: Let the model read both ways, though it learned to read to the right.
        folds: Hold each of so many folds out once, a run for each in a folder of its own; null holds one part out.
        data: The questions, texts and answers.
        spans: How answers are chosen.
        adapt: What of the model learns; the head always does.
        train: The training.
        judge: What counts, and beside what.
    """

    output_dir: str = "runs/answer"
    resume: bool = False
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    tokenizer: str | None = None
    attn_implementation: str | None = None
    folds: int | None = None
    bidirectional: bool = False
    data: AnswerDataConfig = field(default_factory=AnswerDataConfig)
    spans: SpanConfig = field(default_factory=SpanConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(learning_rate=3e-4, weight_decay=0.0))
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def main(config: AnswerConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    config.data.validate()
    config.adapt.validate()
    metric, greater = config.judge.chosen(ANSWERS)
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.tasks import answering, folds, heads, scratch, training

    answering.check_method(config.adapt)
    if config.folds is not None:
        return folds.train_folds(config, "answer", main, answering.training_texts)
    base = locate(config.model)
    require_positions(read_architecture(base), "data.max_length", config.data.max_length)
    given = load_tokenizer(locate(config.tokenizer) if config.tokenizer else base)
    tokenizer = heads.padded_tokenizer(given, config.data.max_length, base)
    data = answering.prepare_answers(config.data, tokenizer, config.spans, bidirectional=config.bidirectional)
    with Run(config.output_dir, "answer", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.adaptation.methods import adapt
        from gpt_finetune.tasks.answer_attribution import explain_answers
        from gpt_finetune.tasks.answer_judging import judge, run_baselines

        options = training.options(config.train, config.judge, False, metric, greater)
        arguments = training_arguments(config.train, launched.folder, **options)
        others = run_baselines(data) if config.judge.baselines and launched.main else {}
        set_seed(config.train.seed)
        head, batches = (answering.ANSWERER, data.settings()), training.unlabelled(data, config.train.batch_size)
        model = heads.load_with_head(base, *head, config.adapt, config.attn_implementation)
        facts = scratch.base_facts(config.model, model, config.adapt)
        model = adapt(model, config.adapt, example_batches=batches, bf16=arguments.bf16)
        trainer = answering.AnswerTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            processing_class=tokenizer,
            callbacks=[*launched.callbacks(), *training.stoppers(config.judge)],
            optimizer_cls_and_kwargs=custom_optimizer(config.train, arguments),
            measure=data.measure,
            spans=config.spans,
        )
        launched.describe(trainer, data, config, config.data.max_length, **facts)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        outcome = judge(data, trainer.outputs, others, config.judge)
        launched.receipt |= outcome.receipt(config.data)
        if config.judge.merge:
            trainer.model = heads.merged(trainer.model, config.adapt)
        if launched.main and not trainer.is_fsdp_enabled:
            shown = [*outcome.section["errors"], *outcome.section["examples"]]
            explain_answers(trainer.model, data, trainer.outputs, shown)
        training.tidy(launched.folder, config.train)
        launched.finish(trainer, figures)
    return figures


if __name__ == "__main__":
    run(main, AnswerConfig)
