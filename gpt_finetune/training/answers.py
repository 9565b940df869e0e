"""Evaluation by generation: held-out prompts answered at each evaluation, scored, and shown beside the right answers.

What transformers' Trainer does for encoder-decoders only (transformers#26474), for decoders.
"""

from __future__ import annotations

import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate.utils import gather_object
from transformers.integrations import is_deepspeed_zero3_enabled

from gpt_finetune.errors import InputError
from gpt_finetune.generation import GREEDY, Answer, Prompt, answer, fits
from gpt_finetune.metrics import text_metrics
from gpt_finetune.training.arguments import AnswerConfig
from gpt_finetune.training.callbacks import read_json_lines
from gpt_finetune.training.trainer import GPTTrainer

log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWERS = "answers.jsonl"
# Of those that text_metrics computes, the ones that say different things.
SHOWN = ("exact_match", "bleu", "chrf", "rougeL", "token_f1")


class AnsweringTrainer(GPTTrainer):
    """A `GPTTrainer` whose evaluation also answers prompts and compares the answers with their references.

    Each evaluation logs exact match, BLEU, chrF, ROUGE-L and token F1 (see `text_metrics`), the mean length of an
    answer in tokens, and the share of answers that the model ended itself. Several processes share the prompts out;
    the figures are those of one process.

    Args:
        *args: As `GPTTrainer`; `processing_class` is the model's tokenizer.
        prompts: Held-out prompts with their references. Those too long for the model are left out, and counted in the
            log.
        answering: How many, and how long the answers may be.
        **kwargs: As `GPTTrainer`.

    Attributes:
        prompts: Those that are asked.
        answers: What the model said to them at the last evaluation.
    """

    FINAL: ClassVar[dict[str, str]] = GPTTrainer.FINAL | {
        f"eval_{name}": name for name in (*SHOWN, "answer_tokens", "stop_rate")
    }

    def __init__(self, *args: Any, prompts: list[Prompt], answering: AnswerConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zero3 = self.is_deepspeed_enabled and is_deepspeed_zero3_enabled()
        if answering.max_prompts and prompts and (self.is_fsdp_enabled or zero3):
            problem = "each process answers prompts of its own, which weights spread over all of them do not allow"
            raise InputError("answer.max_prompts", answering.max_prompts, problem, "Set it to 0")
        self.answering = answering
        self.prompts = self._choose(prompts)
        self.answers: list[Answer] = []

    def _choose(self, prompts: list[Prompt]) -> list[Prompt]:
        """Return at most `max_prompts` of the prompts that the model has room for, at even distances."""
        room = fits(self.model, self.processing_class, [prompt.text for prompt in prompts])
        kept = [prompt for prompt, has_room in zip(prompts, room, strict=True) if has_room]
        if len(kept) < len(prompts):
            log.warning(
                "%d of %d held-out prompts leave no room for an answer and are not asked",
                len(prompts) - len(kept),
                len(prompts),
            )
        return spread(kept, self.answering.max_prompts)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate as ever, then answer the prompts; other data sets than the run's own get no answers."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if metric_key_prefix == "eval" and self.prompts:
            self.answers = answers = self.answer_prompts()
            figures = score(self.prompts, answers)
            output.metrics.update({f"eval_{name}": value for name, value in figures.items()})
            if self.is_world_process_zero():
                self._keep(answers)
        return output

    def answer_prompts(self) -> list[Answer]:
        """Answer the prompts as the model stands; every process returns all answers.

        Neither the model's mode nor any random state changes.
        """
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            processes, index = 1, 0  # a sharded model computes only where all processes compute the same
        mine = [prompt.text for prompt in self.prompts[index::processes]]
        with _resting(self.model):
            answers = self.answer_texts(mine)
        if processes == 1:
            return answers
        places = range(index, len(self.prompts), processes)
        gathered = dict(gather_object(list(zip(places, answers, strict=True))))
        return [gathered[place] for place in range(len(self.prompts))]

    def answer_texts(self, texts: list[str]) -> list[Answer]:
        """Answer texts in this process, the model being in evaluation mode."""
        config = self.answering
        options = {"batch_size": config.batch_size, **GREEDY}
        return answer(self.model, self.processing_class, texts, config.max_new_tokens, **options)

    def _keep(self, answers: list[Answer]) -> None:
        """Write some answers behind those of earlier steps; what a run stopped later has left gives way."""
        step, path = self.state.global_step, Path(self.args.output_dir) / ANSWERS
        rows = [row for row in read_json_lines(path) if row.get("step", 0) < step]
        for prompt, given in spread(list(zip(self.prompts, answers, strict=True)), self.answering.shown):
            rows.append(
                {
                    "step": step,
                    "prompt": prompt.shown,
                    "reference": prompt.reference,
                    "answer": given.text,
                    "tokens": given.tokens,
                    "stopped": given.stopped,
                }
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.part")  # whole or not at all
        staged.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        staged.replace(path)


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return at most `count` items at even distances, so that each source has its share."""
    count = min(len(items), count)
    return [items[index * len(items) // count] for index in range(count)]


def score(prompts: list[Prompt], answers: list[Answer]) -> dict[str, float]:
    """Return the figures of answers: those named in `SHOWN`, `answer_tokens` and `stop_rate`.

    Args:
        prompts: What was asked, with references; at least one.
        answers: In the same order.
    """
    figures = text_metrics([given.text for given in answers], [prompt.reference for prompt in prompts])
    return {name: figures[name] for name in SHOWN} | {
        "answer_tokens": statistics.fmean(given.tokens for given in answers),
        "stop_rate": statistics.fmean(given.stopped for given in answers),
    }


@contextmanager
def _resting(model: torch.nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode for a while; its mode and the random state come back as they were."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
