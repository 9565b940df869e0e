"""Fine-tune a pretrained GPT on dialogues, instructions or texts: in full, in part, or by an adapter.

LoRA: Hu et al. 2021, arXiv:2106.09685. Loss on answers only, as in InstructGPT's (arXiv:2203.02155) first stage.

    accelerate launch recipes/finetune.py --config configs/finetune/smollm2-lora-dialogue.yaml
    python recipes/finetune.py --config configs/finetune/smollm2-lora-dialogue.yaml --preview 3
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import read_architecture, require_positions
from gpt_finetune.config import run
from gpt_finetune.supervised.config import ExamplesConfig
from gpt_finetune.training.arguments import AnswerConfig, TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class FinetuneConfig:
    """Fine-tune a language model.

    Args:
        output_dir: Folder for the model or adapter and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        preview: Show so many examples with what is learned of them, and end without training.
        model: The base: folder or Hub id of one of ours or of a dialect that gpt_finetune/conversion reads, or the name
            of one that arrives as a package.
        tokenizer: Folder or Hub id of its tokenizer; null means the base's own.
        attn_implementation: Attention backend: eager, sdpa, flex_attention, flash_attention_2; null lets transformers
            choose.
        data: The examples.
        adapt: What of the model learns.
        train: The training.
        answer: Answers to held-out prompts, at each evaluation.
    """

    output_dir: str = "runs/finetune"
    resume: bool = False
    overwrite: bool = False
    preview: int = 0
    model: str = "smollm2-135m-instruct"
    tokenizer: str | None = None
    attn_implementation: str | None = None
    data: ExamplesConfig = field(default_factory=ExamplesConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)


def main(config: FinetuneConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    config.data.validate()
    config.adapt.validate()
    from gpt_finetune.data.tokenizer import load_tokenizer
    from gpt_finetune.packaged import locate
    from gpt_finetune.supervised.prepare import prepare_examples

    path = locate(config.model)
    require_positions(read_architecture(path), "data.max_length", config.data.max_length)
    tokenizer = load_tokenizer(locate(config.tokenizer) if config.tokenizer else path)
    if config.preview:
        from rich.console import Console

        from gpt_finetune.supervised.preview import show_examples

        show_examples(prepare_examples(config.data, tokenizer), config.preview, Console())
        return {}
    with Run(config.output_dir, "finetune", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from torch.utils.data import DataLoader
        from transformers import set_seed

        from gpt_finetune.adaptation.bases import fingerprint_of
        from gpt_finetune.adaptation.methods import adapt, load_base
        from gpt_finetune.supervised.templates import grow
        from gpt_finetune.training.answers import AnsweringTrainer

        sampling = {} if config.data.packing else {"train_sampling_strategy": "group_by_length"}
        arguments = training_arguments(config.train, launched.folder, evaluate=config.data.holds_out, **sampling)
        with arguments.main_process_first(desc="data preparation"):
            data = prepare_examples(config.data, tokenizer)
        arguments.eval_on_start = data.validation is not None and launched.checkpoint is None
        set_seed(config.train.seed)
        model = load_base(path, config.adapt, config.attn_implementation)
        base = {"base_model": config.model, "base_fingerprint": fingerprint_of(model)}
        new_rows = grow(model, data.tokenizer, data.added)
        batches = DataLoader(data.train, config.train.batch_size, collate_fn=data.collate)
        model = adapt(model, config.adapt, new_rows=new_rows, example_batches=batches, bf16=arguments.bf16)
        trainer = AnsweringTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            processing_class=data.tokenizer,
            callbacks=launched.callbacks(),
            optimizer_cls_and_kwargs=custom_optimizer(config.train, arguments),
            z_loss=config.train.z_loss,
            tokens_per_byte=data.tokens_per_byte,
            eval_tokens_per_byte=data.eval_tokens_per_byte,
            prompts=data.prompts,
            answering=config.answer,
        )
        changes = {"method": config.adapt.method, "added_tokens": data.added}
        launched.describe(trainer, data, config, config.data.max_length, **base, **changes)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        launched.finish(trainer, figures, before=trainer.before())
    return figures


if __name__ == "__main__":
    run(main, FinetuneConfig)
