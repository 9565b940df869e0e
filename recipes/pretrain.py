"""Train a GPT from scratch, tokenizer included, or go on training a checkpoint (Radford et al. 2019, GPT-2).

    accelerate launch recipes/pretrain.py --config configs/pretrain/quickstart.yaml train.learning_rate=1e-3

Expected with that configuration: 1.30 bits per byte or below on held-out files, where `xz -9e` needs 1.58.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_finetune.build import ModelConfig, architecture, build_model
from gpt_finetune.config import run
from gpt_finetune.data.config import DataConfig, TokenizerConfig
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import SampleConfig, TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class PretrainConfig:
    """Train a GPT language model on text.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        model: The model.
        tokenizer: The tokenizer.
        data: The text.
        train: The training.
        sample: Text samples at each evaluation.
    """

    output_dir: str = "runs/pretrain"
    resume: bool = False
    overwrite: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)


def check(config: PretrainConfig) -> None:
    """Refuse what cannot work before anything is computed or written."""
    config.data.validate()
    config.tokenizer.validate()
    if config.data.streaming and config.train.max_steps is None:
        raise InputError("train.max_steps", None, "a stream has no known end", "Give the number of steps")
    if config.model.from_pretrained:
        config.tokenizer.path = config.tokenizer.path or config.model.from_pretrained
    architecture(config.model, config.data.block_size, 1 if config.tokenizer.path else config.tokenizer.vocab_size)


def main(config: PretrainConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    check(config)
    with Run(config.output_dir, "pretrain", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.data.prepare import prepare
        from gpt_finetune.supervised.config import PACKAGE
        from gpt_finetune.supervised.sources import in_package
        from gpt_finetune.training.trainer import GPTTrainer

        arguments = training_arguments(config.train, launched.folder, evaluate=config.data.holds_out)
        with arguments.main_process_first(desc="data preparation"):
            data = prepare(config.data, config.tokenizer, finders={PACKAGE: in_package})
        arguments.eval_on_start = bool(data.watched) and launched.checkpoint is None
        set_seed(config.train.seed)
        trainer = GPTTrainer(
            model=build_model(config.model, config.data.block_size, data.tokenizer),
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            processing_class=data.tokenizer,
            callbacks=launched.callbacks(config.sample, data.tokenizer),
            optimizer_cls_and_kwargs=custom_optimizer(config.train, arguments),
            z_loss=config.train.z_loss,
            tokens_per_byte=data.tokens_per_byte,
            eval_tokens_per_byte=data.validation_tokens / data.validation_bytes if data.validation else None,
            watched=data.watched,
        )
        preset = None if config.model.from_pretrained else config.model.preset
        facts = {"preset": preset, "base_model": config.model.from_pretrained}
        launched.describe(trainer, data, config, config.data.block_size, **facts)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        if data.watched:
            launched.receipt["forgetting"] = trainer.forgetting()
        launched.finish(trainer, figures, before=trainer.before())
    return figures


if __name__ == "__main__":
    run(main, PretrainConfig)
