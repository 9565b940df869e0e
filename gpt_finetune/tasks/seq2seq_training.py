"""`WritingTrainer`: an encoder-decoder's evaluation also writes of held-out sources, and compares with the targets."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from gpt_finetune.generation import Answer, Prompt
from gpt_finetune.tasks.alignment import GuidedLoss
from gpt_finetune.tasks.generation import CompareConfig, Compared, compare
from gpt_finetune.tasks.judging import lengths
from gpt_finetune.tasks.seq2seq import PreparedPairs
from gpt_finetune.tasks.seq2seq_config import WriteConfig
from gpt_finetune.tasks.seq2seq_model import write
from gpt_finetune.training.answers import AnsweringTrainer, spread


class WritingTrainer(AnsweringTrainer):
    """An `AnsweringTrainer` for encoder-decoders: what is read and what is written are two texts.

    Args:
        *args: As `AnsweringTrainer`; `answering` is a `WriteConfig` whose `max_new_tokens` is set.
        **kwargs: As `AnsweringTrainer`.
    """

    answering: WriteConfig

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one forward and backward pass, and count the tokens of both sides."""
        self.throughput.count(inputs["decoder_input_ids"].numel() * self.accelerator.num_processes)
        return super().training_step(model, inputs, num_items_in_batch)

    def leave_out_skipped(self, logs: dict[str, float]) -> None:
        """Tell a guided loss's parts apart, too, so that training's and evaluation's curves are of one thing."""
        super().leave_out_skipped(logs)
        if "loss" in logs and isinstance(self.compute_loss_func, GuidedLoss):
            self.compute_loss_func.told_apart(logs, self.accelerator.reduce)

    def answer_texts(self, texts: list[str]) -> list[Answer]:
        """Write of sources in this process, the model being in evaluation mode."""
        config = self.answering
        length = int(config.max_new_tokens or 0)
        return write(self.model, self.processing_class, texts, length, config.batch_size, config.num_beams)

    def _choose(self, prompts: list[Prompt]) -> list[Prompt]:
        """Return at most `max_prompts` of the sources, at even distances; there is room for each: it is cut."""
        return spread(prompts, self.answering.max_prompts)


def judge(data: PreparedPairs, trainer: WritingTrainer, config: CompareConfig) -> Compared:
    """Put what the model writes at the end beside baselines, and say how sure the figures are.

    Args:
        data: The pairs.
        trainer: After training. What it wrote at its last evaluation counts; where a resumed run had no step left to do
            and so none, it writes now.
        config: The section.
    """
    answers = trainer.answers or trainer.answer_prompts()
    outcome = compare(trainer.prompts, answers, data.examples, config)
    outcome.section.update({"loss_unit": "nats per token", "lengths": lengths(data)})
    return outcome
