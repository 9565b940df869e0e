"""The training section of a configuration, and the `TrainingArguments` that it becomes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gpt_finetune.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass
class TrainConfig:
    """How to train.

    Args:
        max_steps: Optimiser steps; null means `epochs` decides.
        epochs: Passes over the data, when max_steps is null.
        batch_size: Rows a process in one forward pass.
        accumulation: Forward passes summed into one optimiser step; loss and gradient equal the big batch's.
        optimizer: adamw (torch's fused one), muon (for matrices, AdamW for the rest), schedule_free (AdamW that
            averages its weights instead of lowering the rate; schedule=constant), or any of transformers' by name.
        learning_rate: Peak learning rate.
        embedding_learning_rate: Peak learning rate of embeddings, head, norms and biases under muon; null means
            learning_rate. Rows of an embedding are seen seldom, and bear a few times more.
        muon_precision: What muon orthogonalises in: auto takes bfloat16 where the training computes in it, as
            torch.optim.Muon always does. Directions a thousand times weaker than a gradient's strongest come to a
            length of 0.34 to 0.6 then, in float32 to 0.43 to 0.58; strong ones to 1 within an eighth in both.
        schedule: Shape after warm-up: cosine, wsd (warm-up, stable, decay), linear or constant.
        warmup_steps: Optimiser steps of linear warm-up.
        decay_steps: Optimiser steps of the final decay (wsd only); null means a fifth of all.
        min_learning_rate: Where cosine and wsd end, as a fraction of the peak.
        weight_decay: Decay of matrices; norms and biases have none.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        max_grad_norm: Clip the gradient's norm here; 0 does not clip.
        z_loss: Weight of the squared logarithm of the softmax's denominator in a language model's training loss, which
            keeps logits from drifting (PaLM, arXiv:2204.02311, section 5, has 1e-4); 0 leaves it out.
        precision: Arithmetic: auto takes bfloat16 where this machine is faster at it (measured), else float32.
            Weights stay float32.
        residual: What the residual stream is kept in when products are bfloat16. bfloat16 takes less time and memory,
            and rounds the stream to 8 bits after each sub-layer: gradients are up to 2.5 times as far from float32's as
            they are with the stream in float32.
        short_attention: How attention is trained on a CPU where torch's fused kernel is slow, on rows of up to 512
            tokens in bfloat16, or has to give way, to dropout at any length: products rounds scores and weights to
            bfloat16 if that is the precision, as eager attention does, and takes a fraction of the time; fused leaves
            it to torch, which keeps scores in float32.
        recompute: Compute what norms, activations and gates give, and autocast's copies of it and of weights, again in
            the backward pass instead of keeping them: the same numbers in less memory. Not with gradient_checkpointing,
            which keeps less still, nor where compile, FSDP or DeepSpeed decide what is kept.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        compile: Compile the model with torch.compile.
        eval_batch_size: Rows a process in one evaluation pass; null means batch_size. Does not change the figures.
        eval_steps: Optimiser steps between evaluations; null means only at the end.
        log_steps: Optimiser steps between lines of metrics.
        save_steps: Optimiser steps between checkpoints to resume from; null means none.
        save_total_limit: How many checkpoints to keep, the newest ones.
        bad_steps: What to do where the loss or the gradient is NaN or infinite: stop, with the step, its rows and the
            first bad tensor; or skip, which leaves the optimiser as it was, counts the step and goes on.
        halve_on_out_of_memory: Run a batch that does not fit in parts of half as many rows, down to one, from then on.
            Effective batch, order and loss stay; dropout draws other numbers. For one process.
        threads: CPU threads a process, when there is no GPU; null shares the cores among the processes.
        workers: Processes that load data; 0 loads in the training process.
        report_to: Trackers besides metrics.jsonl: tensorboard, trackio.
        seed: Seed of weights, order and dropout.
        trainer: Any further field of transformers.TrainingArguments, e.g. `train.trainer.label_smoothing_factor=0.1`.
    """

    max_steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 8
    accumulation: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    embedding_learning_rate: float | None = None
    muon_precision: Literal["auto", "float32", "bfloat16"] = "auto"
    schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup_steps: int = 0
    decay_steps: int | None = None
    min_learning_rate: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    z_loss: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    residual: Literal["float32", "bfloat16"] = "float32"
    short_attention: Literal["products", "fused"] = "products"
    recompute: bool = True
    gradient_checkpointing: bool = False
    compile: bool = False
    eval_batch_size: int | None = None
    eval_steps: int | None = None
    log_steps: int = 10
    save_steps: int | None = None
    save_total_limit: int = 2
    bad_steps: Literal["stop", "skip"] = "stop"
    halve_on_out_of_memory: bool = False
    threads: int | None = None
    workers: int = 0
    report_to: list[Literal["tensorboard", "trackio"]] = field(default_factory=list)
    seed: int = 0
    trainer: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        for name in (
            "max_steps",
            "batch_size",
            "accumulation",
            "eval_batch_size",
            "eval_steps",
            "log_steps",
            "save_steps",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"train.{name}", value, "it must be at least 1", "Raise it")
        for name in ("epochs", "learning_rate"):
            if getattr(self, name) <= 0:
                raise InputError(f"train.{name}", getattr(self, name), "it must be above 0", "Raise it")
        for name in ("warmup_steps", "weight_decay", "max_grad_norm", "min_learning_rate", "z_loss"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"train.{name}", getattr(self, name), "it must not be negative", "Raise it to 0 or more"
                )
        if self.embedding_learning_rate is not None and self.optimizer != "muon":
            problem = f"optimizer={self.optimizer} has one learning rate"
            remedy = "Leave it out, or use optimizer=muon"
            raise InputError("train.embedding_learning_rate", self.embedding_learning_rate, problem, remedy)
        if self.muon_precision != "auto" and self.optimizer != "muon":
            problem = f"optimizer={self.optimizer} orthogonalises nothing"
            remedy = "Leave it out, or use optimizer=muon"
            raise InputError("train.muon_precision", self.muon_precision, problem, remedy)
        if self.is_schedule_free and self.schedule != "constant":
            problem = f"optimizer={self.optimizer} averages its weights instead of lowering the rate"
            raise InputError("train.schedule", self.schedule, problem, "Use schedule=constant")
        if self.max_steps is not None and self.warmup_steps > self.max_steps:
            problem = f"warm-up is longer than max_steps={self.max_steps}"
            raise InputError("train.warmup_steps", self.warmup_steps, problem, "Lower it")

    @property
    def is_schedule_free(self) -> bool:
        """Whether the optimiser evaluates at an average of its weights (Defazio et al. 2024, arXiv:2405.15682)."""
        return self.optimizer.startswith("schedule_free")


@dataclass
class SampleConfig:
    """Text samples, written at each evaluation.

    Args:
        prompts: What to go on from; empty samples none.
        max_new_tokens: Length of a sample, in tokens.
        temperature: 0 takes the likeliest token each time; 1 samples from the model as it is.
        top_p: Sample from the likeliest tokens that together have this probability.
        seed: Seed of the samples; training's own random numbers are not touched.
    """

    prompts: list[str] = field(default_factory=list)
    max_new_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        if self.max_new_tokens < 1:
            raise InputError("sample.max_new_tokens", self.max_new_tokens, "it must be at least 1", "Raise it")
        if self.temperature < 0:
            raise InputError("sample.temperature", self.temperature, "it must not be negative", "Use 0 for greedy")
        if not 0 < self.top_p <= 1:
            raise InputError("sample.top_p", self.top_p, "it is a probability above 0", "Use 1 to keep every token")


@dataclass
class AnswerConfig:
    """Answers to held-out prompts at each evaluation: greedy, so that they are the model's own and repeat.

    Args:
        max_prompts: How many to answer, taken at even distances; 0 answers none.
        max_new_tokens: Longest answer, in tokens.
        batch_size: Prompts that a process answers at once; does not change the figures.
        shown: How many of them to keep in answers.jsonl, of each evaluation, at even distances.
    """

    max_prompts: int = 64
    max_new_tokens: int = 64
    batch_size: int = 16
    shown: int = 8

    def __post_init__(self) -> None:
        """Check ranges; costs nothing."""
        for name, least in (("max_prompts", 0), ("max_new_tokens", 1), ("batch_size", 1), ("shown", 0)):
            if getattr(self, name) < least:
                raise InputError(f"answer.{name}", getattr(self, name), f"it must be at least {least}", "Raise it")


# schedule -> (transformers' name, its keyword arguments)
_SCHEDULES: dict[str, tuple[str, Callable[[TrainConfig], dict[str, Any]]]] = {
    "cosine": ("cosine_with_min_lr", lambda c: {"min_lr_rate": c.min_learning_rate}),
    "wsd": (
        "warmup_stable_decay",
        lambda c: {"num_decay_steps": c.decay_steps, "decay_type": "linear", "min_lr_ratio": c.min_learning_rate},
    ),
    "linear": ("linear", lambda c: {}),
    "constant": ("constant_with_warmup", lambda c: {}),
}
_OPTIMIZERS = {  # for muon see custom_optimizer
    "adamw": "adamw_torch_fused",
    "muon": "adamw_torch_fused",
    "schedule_free": "schedule_free_adamw",
}
# What Trainer's own upload would send along is a pickle of its arguments, the token included.
_PUSH = ("a token in a configuration ends up in files that are passed on", "Use recipes/push.py when the run is done")
_REFUSED = dict.fromkeys(("push_to_hub", "hub_token", "push_to_hub_token"), _PUSH)


_ELSEWHERE = {  # what to do where there is no GPU, by engine
    "FSDP": "Launch with configs/accelerate/cpu-2.yaml; FSDP2 shards on GPUs",
    "DEEPSPEED": "Launch with configs/accelerate/cpu-2.yaml, or as docs/distributed.md says",
}


def _refuse_unheard_engine(*engines: str) -> None:
    """Refuse engines that Accelerate would pass over without a word, if `accelerate launch` was told to shard by one.

    Raises:
        InputError: It was.
    """
    for engine in engines:
        if os.environ.get(f"ACCELERATE_USE_{engine}", "false").lower() == "true":
            problem = "on the CPU, Accelerate passes over it and gives each process the whole model"
            raise InputError("accelerate launch", engine, problem, _ELSEWHERE[engine])


def training_arguments(
    config: TrainConfig, output_dir: Path, *, evaluate: bool = True, **recipe: Any
) -> TrainingArguments:
    """Translate the section into transformers' own arguments; `config.trainer` has the last word.

    Args:
        config: The training section.
        output_dir: The run's folder; checkpoints go below it.
        evaluate: Whether there is something to evaluate on.
        **recipe: Further fields of `TrainingArguments` that the recipe needs.

    Raises:
        InputError: `config.trainer` has a field that transformers does not, or transformers refuses a value.
    """
    import torch
    from transformers import TrainingArguments

    from gpt_finetune.training.extended import ReliableArguments
    from gpt_finetune.training.throughput import resolve_precision, use_cpu_threads

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    use_cpu = accelerator is None
    if use_cpu:
        use_cpu_threads(config.threads)
    if config.trainer.get("use_cpu", use_cpu):
        _refuse_unheard_engine("FSDP", "DEEPSPEED")
    schedule, schedule_arguments = _SCHEDULES[config.schedule]
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "max_steps": config.max_steps or -1,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.eval_batch_size or config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "optim": _OPTIMIZERS.get(config.optimizer, config.optimizer),
        "learning_rate": config.learning_rate,
        # a schedule-free optimiser warms up by itself: twice would be its square
        "lr_scheduler_type": "constant" if config.is_schedule_free else schedule,
        "lr_scheduler_kwargs": schedule_arguments(config),
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "adam_beta1": config.beta1,
        "adam_beta2": config.beta2,
        "max_grad_norm": config.max_grad_norm,
        "bf16": resolve_precision(config.precision, accelerator.type if accelerator else "cpu") == "bfloat16",
        "residual": config.residual,
        "short_attention": config.short_attention,
        "recompute": config.recompute,
        "activation_checkpointing": config.gradient_checkpointing,
        "torch_compile": config.compile,
        "eval_strategy": "steps" if evaluate and config.eval_steps else "no",
        "eval_steps": config.eval_steps,
        "logging_steps": config.log_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN must be seen: the filter would log the average of earlier losses
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 500,
        "save_total_limit": config.save_total_limit,
        "bad_steps": config.bad_steps,
        "halve_on_out_of_memory": config.halve_on_out_of_memory,
        "prediction_loss_only": True,
        "dataloader_num_workers": config.workers,
        "dataloader_persistent_workers": config.workers > 0,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
        "report_to": list(config.report_to) or "none",
        "seed": config.seed,
        "use_cpu": use_cpu,
        "log_level": "warning",
    }
    known = set(TrainingArguments.__dataclass_fields__)
    for name in config.trainer:
        if name in _REFUSED:
            raise InputError(f"train.trainer.{name}", "…", *_REFUSED[name])
        if name not in known:
            raise InputError(
                f"train.trainer.{name}", config.trainer[name], "no such argument", did_you_mean(name, known)
            )
    try:
        arguments = ReliableArguments(**{**values, **recipe, **config.trainer})
    except (ValueError, TypeError, ImportError) as error:
        raise InputError("train", config.trainer or "…", str(error), "Mend the train section") from None
    # that config.trainer says use_cpu=false makes Accelerate shard no more than before
    if accelerator is None and arguments.distributed_state.distributed_type != "MULTI_GPU":
        _refuse_unheard_engine("FSDP")
    return arguments


def custom_optimizer(config: TrainConfig, arguments: TrainingArguments) -> tuple[type, dict[str, Any]] | None:
    """Return class and arguments of an optimiser that transformers does not have, as its Trainer takes them.

    Args:
        config: The training section.
        arguments: What `training_arguments` made of it.
    """
    if config.optimizer != "muon":
        return None
    from gpt_finetune.training.muon import MuonFactory

    narrow = config.muon_precision == "bfloat16" or (config.muon_precision == "auto" and arguments.bf16)
    return MuonFactory, {
        "precision": "bfloat16" if narrow else "float32",
        "lr": config.learning_rate,
        "adamw_lr": config.embedding_learning_rate,
        "weight_decay": config.weight_decay,
        "betas": (config.beta1, config.beta2),
        "fused": True,
    }
