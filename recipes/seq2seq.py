"""Train an encoder-decoder on pairs of texts: translation, summaries, whatever reads one text and writes another.

Vaswani et al. 2017, arXiv:1706.03762: an encoder that sees both ways, and a decoder that attends to it.

    accelerate launch recipes/seq2seq.py --config configs/seq2seq/translate-en-fr.yaml

What it writes of held-out texts is measured beside a copy and a dictionary. To use the finished model:

    model = EncoderDecoderModel.from_pretrained("runs/translate-en-fr")  # from transformers; import gpt_finetune before
    tokenizer = AutoTokenizer.from_pretrained("runs/translate-en-fr")
    print(tokenizer.batch_decode(model.generate(**tokenizer("Peace", return_tensors="pt")), skip_special_tokens=True))
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from gpt_finetune.adaptation.config import AdaptConfig
from gpt_finetune.build import ModelConfig
from gpt_finetune.config import run
from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.generation import CompareConfig
from gpt_finetune.tasks.seq2seq_config import AlignConfig, Seq2SeqDataConfig, WriteConfig
from gpt_finetune.training.arguments import TrainConfig, custom_optimizer, training_arguments
from gpt_finetune.training.run import Run


@dataclass
class Seq2SeqConfig:
    """Train an encoder-decoder on pairs of texts.

    Args:
        output_dir: Folder for the model and all that the run leaves.
        resume: Go on from the last checkpoint in output_dir.
        overwrite: Replace the run that output_dir holds.
        model: Both halves: an architecture to train from scratch; a language model's checkpoint that both begin from,
            the cross-attention being new; or a finished encoder-decoder to go on from.
        tokenizer: Of both halves: an existing one, or how to train one on the pairs.
        data: The pairs.
        adapt: What of a finished encoder-decoder learns; the cross-attention's layers are among those to adapt.
        align: Whether a head of the decoder is told where to look.
        train: The training.
        write: What is written of held-out sources at each evaluation.
        compare: Beside what it is put at the end.
    """

    output_dir: str = "runs/seq2seq"
    resume: bool = False
    overwrite: bool = False
    model: ModelConfig = field(default_factory=lambda: ModelConfig(preset="transformer-base"))
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: Seq2SeqDataConfig = field(default_factory=Seq2SeqDataConfig)
    adapt: AdaptConfig = field(default_factory=lambda: AdaptConfig(method="full"))
    align: AlignConfig = field(default_factory=AlignConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    write: WriteConfig = field(default_factory=WriteConfig)
    compare: CompareConfig = field(default_factory=lambda: CompareConfig(["copy", "dictionary"]))


def check(config: Seq2SeqConfig) -> None:
    """Refuse what cannot work before anything is computed or written."""
    config.data.validate()
    config.tokenizer.validate()
    config.compare.validate()
    if config.write.max_prompts == 0:
        raise InputError("write.max_prompts", 0, "without texts nothing is known of the model", "Give e.g. 1000")
    if config.model.from_pretrained:
        config.tokenizer.path = config.tokenizer.path or config.model.from_pretrained
    from gpt_finetune.tasks.seq2seq_model import check_adapt, check_model

    check_adapt(config.adapt, config.model)
    config.align.validate(check_model(config.model, config.data.lengths)[1].num_hidden_layers, config.train)


def main(config: Seq2SeqConfig) -> dict[str, float]:
    """Run the recipe; returns the final figures."""
    check(config)
    from gpt_finetune.tasks.seq2seq import prepare_pairs

    data = prepare_pairs(config.data, config.tokenizer)
    with Run(config.output_dir, "seq2seq", config, resume=config.resume, overwrite=config.overwrite) as launched:
        from transformers import set_seed

        from gpt_finetune.adaptation.methods import adapt
        from gpt_finetune.tasks.alignment import guided_loss
        from gpt_finetune.tasks.scratch import NEW, base_facts
        from gpt_finetune.tasks.seq2seq_model import build_pair
        from gpt_finetune.tasks.seq2seq_training import WritingTrainer, judge

        arguments = training_arguments(config.train, launched.folder, train_sampling_strategy="group_by_length")
        arguments.eval_on_start = launched.checkpoint is None
        set_seed(config.train.seed)
        model = build_pair(config.model, config.data.lengths, data.tokenizer, data.start_id)
        facts = base_facts(config.model.from_pretrained or f"{NEW}{config.model.preset}", model, config.adapt)
        model = adapt(model, config.adapt, bf16=arguments.bf16)
        trainer = WritingTrainer(
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=data.collate,
            processing_class=data.tokenizer,
            compute_loss_func=guided_loss(config.align, model, data, arguments.label_smoothing_factor),
            callbacks=launched.callbacks(),
            optimizer_cls_and_kwargs=custom_optimizer(config.train, arguments),
            prompts=data.prompts,
            answering=replace(config.write, max_new_tokens=config.write.max_new_tokens or config.data.lengths[1]),
        )
        launched.describe(trainer, data, config, max(config.data.lengths), **facts)
        trainer.train(resume_from_checkpoint=launched.checkpoint)
        figures = trainer.final_figures()
        outcome = judge(data, trainer, config.compare)
        launched.receipt |= {"baselines": outcome.baselines, "task": outcome.section}
        launched.finish(trainer, figures, before=trainer.before())
    return figures


if __name__ == "__main__":
    run(main, Seq2SeqConfig)
