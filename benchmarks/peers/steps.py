"""One training in this process: transformers', ours or nanoGPT's model, under a Trainer or in a bare loop."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import peers.nanogpt
from peers.measuring import peak_mb
from peers.ways import Size, Way

RATE, BETAS, DECAY, CLIP = 1e-3, (0.9, 0.95), 0.1, 1.0


def save_first_weights(size: Size, kind: str, folder: Path) -> None:
    """Draw the weights that all ways of one kind begin with.

    Args:
        size: The model's.
        kind: `gpt2` or `llama`.
        folder: Where to.
    """
    import transformers

    common = {"vocab_size": size.vocabulary, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "llama":
        shape = {"hidden_size": size.width, "num_hidden_layers": size.layers, "num_attention_heads": size.heads}
        inner = {"intermediate_size": 64 * -(-size.width // 24), "max_position_embeddings": size.tokens}
        config: Any = transformers.LlamaConfig(**common, **shape, **inner, tie_word_embeddings=True)
        made: Any = transformers.LlamaForCausalLM
    else:
        shape = {"n_embd": size.width, "n_layer": size.layers, "n_head": size.heads, "n_positions": size.tokens}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config, made = transformers.GPT2Config(**common, **shape, **dropout), transformers.GPT2LMHeadModel
    torch.manual_seed(0)
    made(config).save_pretrained(folder)


def batches(size: Size, count: int) -> torch.Tensor:
    """Return the rows that every way trains on: (count * B, T)."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(size.vocabulary, (count * size.batch, size.tokens), generator=generator)


def masked(rows: torch.Tensor) -> torch.Tensor:
    """Return labels without the first token: nothing predicts it, but Trainer counts it among those it divides by."""
    labels = rows.clone()
    labels[:, 0] = -100
    return labels


def under_trainer(way: Way, size: Size, weights: Path, steps: int, precision: str) -> dict[str, float]:
    """Train under transformers' Trainer, or ours, with the same arguments."""
    from transformers import Trainer, TrainerCallback

    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.trainer import GPTTrainer

    ends: list[float] = []
    losses: list[float] = []
    base: Any = GPTTrainer if way.ours else Trainer

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class Listening(base):
        """Hears the losses: what Trainer logs is rounded."""

        def training_step(self, *given: Any, **named: Any) -> Any:
            loss = super().training_step(*given, **named)
            losses.append(loss.item())
            return loss

    config = TrainConfig(
        max_steps=1 + steps,
        batch_size=size.batch,
        log_steps=1,
        precision=precision,
        schedule="constant",
        learning_rate=RATE,
        weight_decay=DECAY,
        beta1=BETAS[0],
        beta2=BETAS[1],
        max_grad_norm=CLIP,
        compile=way.compiled,
        residual="bfloat16" if way.narrow else "float32",
        trainer={"train_sampling_strategy": "sequential"},
    )
    rows = batches(size, 1 + steps)
    with TemporaryDirectory() as folder:
        trainer = Listening(
            model=_load(way, weights),
            args=training_arguments(config, Path(folder), disable_tqdm=True),
            train_dataset=[{"input_ids": r, "labels": told} for r, told in zip(rows, masked(rows), strict=True)],
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [end - begin for begin, end in itertools.pairwise(ends)]
    return _figures(size, seconds, losses)


def bare(way: Way, size: Size, weights: Path, steps: int, precision: str, nanogpt: Path | None) -> dict[str, float]:
    """Train in a loop of a dozen lines, with the update that a Trainer makes."""
    if nanogpt is not None and way.model == "nanogpt":
        model = peers.nanogpt.build(size, weights, nanogpt)
    else:
        model = _load(way, weights)
    model.train()
    if way.compiled:
        model.compile()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=BETAS, fused=True)
    rows = batches(size, 1 + steps)
    seconds, losses = [], []
    for batch in rows.split(size.batch):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    return _figures(size, seconds[1:], losses)


def _figures(size: Size, seconds: list[float], losses: list[float]) -> dict[str, float]:
    if not all(map(math.isfinite, losses)):
        raise SystemExit(f"the losses are not finite: {losses}")
    rate = size.batch * size.tokens / statistics.median(seconds)
    return {"tokens_per_second": rate, "peak_mb": peak_mb(), "last_loss": losses[-1]}


def _load(way: Way, weights: Path) -> Any:
    import transformers

    import gpt_finetune

    loaders: dict[str, Callable[..., Any]] = {
        "ours": gpt_finetune.GPTForCausalLM.from_pretrained,
        "transformers": transformers.AutoModelForCausalLM.from_pretrained,
    }
    return loaders["ours" if way.ours else "transformers"](weights, dtype=torch.float32)
