"""Loss per minute: nanoGPT's published CPU recipe against the modern options with Muon, and each option's share.

    PYTHONPATH=. python benchmarks/loss_per_minute.py --minutes 4            # the comparison
    PYTHONPATH=. python benchmarks/loss_per_minute.py --minutes 20 --seeds 3 # and the ablation
    PYTHONPATH=. python benchmarks/loss_per_minute.py --nanogpt ../nanoGPT --text ../nanoGPT/data/…/input.txt

Characters of one text of 1.1 MB (the Brown corpus, which arrives as a package, unless `--text` names another); 4 layers
x 128, rows of 64 characters, batches of 12, no dropout. The recipe is that of nanoGPT's README for a CPU: 2000 steps
of AdamW at 1e-3 with 100 of warm-up, then a cosine to 1e-4. Its numbers run on our plain GPT-2 block (whose norms keep
a bias that nanoGPT's `bias=False` leaves out), or with `--nanogpt` on nanoGPT's own model and optimiser. Every run goes
through one bare loop and one evaluator, in one process; the clock leaves evaluations out. What is compared: how long,
and how many tokens, until the loss on the last tenth of the text is what the recipe ends with. Each length is a run of
its own, from the shortest on, since its schedule ends with it. Writes `benchmarks/results/loss-per-minute.json`.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peers import nanogpt
from peers.measuring import Figures, arguments, machine, write
from torch import nn

from gpt_finetune import GPTForCausalLM, preset
from gpt_finetune.packaged import locate
from gpt_finetune.training.muon import MuonFactory, is_vector

CHARACTERS, TOKENS, BATCH, STEPS = 1_100_000, 64, 12, 2000
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": TOKENS}
LENGTHS = (1 / 16, 1 / 12, 1 / 10, 23 / 200, 1 / 8, 3 / 20, 1 / 5, 2 / 5)  # of the recipe's steps
ABLATION = 1 / 8  # likewise


@dataclass(frozen=True)
class Optimiser:
    """How to update, and by how much when.

    Args:
        name: adamw or muon.
        rate: Peak learning rate.
        table_rate: Of embeddings, head and vectors under muon.
        warmup: Share of the steps.
        constant: Share of the steps until which the rate stays, before it falls in a straight line to nothing; None
            for a cosine to a tenth.
        decay: Of matrices.
        beta2: Of AdamW's second moment.
    """

    name: str = "adamw"
    rate: float = 1e-3
    table_rate: float = 1e-3
    warmup: float = 0.05
    constant: float | None = None
    decay: float = 0.1
    beta2: float = 0.99

    def rate_at(self, share: float) -> float:
        """Return the rate as a part of its peak, after some share of the steps."""
        if share < self.warmup:
            return share / self.warmup
        if self.constant is None:
            return 0.1 + 0.45 * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup)))
        return min(1.0, (1 - share) / (1 - self.constant))


NANOGPT = Optimiser()
LINEAR = Optimiser(rate=5e-3, warmup=0.03, constant=0.4, decay=0.0, beta2=0.95)
MUON = replace(LINEAR, name="muon", rate=7e-3, table_rate=4e-2, constant=0.1)


@dataclass(frozen=True)
class Recipe:
    """A model and how it is trained.

    Args:
        fields: Of `GPTConfig`.
        optimiser: The update.
        zero: Whether the projections back into the residual stream begin as zero.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    optimiser: Optimiser = NANOGPT
    zero: bool = False

    def with_(self, change: Change) -> Recipe:
        """Return the recipe with one thing changed."""
        fields = {**self.fields, **change.fields}
        zero = self.zero if change.zero is None else change.zero
        return Recipe(fields, change.optimiser or self.optimiser, zero)


@dataclass(frozen=True)
class Change:
    """One ingredient put in, or taken out."""

    fields: dict[str, Any] = field(default_factory=dict)
    optimiser: Optimiser | None = None
    zero: bool | None = None


# ingredient -> (what puts it in, what takes it out)
INGREDIENTS: dict[str, tuple[Change, Change]] = {
    "Muon": (Change(optimiser=MUON), Change(optimiser=LINEAR)),
    "higher rate, falling in a line": (Change(optimiser=LINEAR), Change(optimiser=NANOGPT)),
    "rotary positions": (
        Change({"position_embedding_type": "rotary"}),
        Change({"position_embedding_type": "learned"}),
    ),
    "QK norm": (Change({"qk_norm": True}), Change({"qk_norm": False})),
    "relu squared": (Change({"hidden_act": "relu2"}), Change({"hidden_act": "gelu"})),
    "RMSNorm": (Change({"norm_type": "rmsnorm"}), Change({"norm_type": "layernorm"})),
    "zero projections": (Change(zero=True), Change(zero=False)),
    "soft-cap at 15": (Change({"final_logit_softcapping": 15.0}), Change({"final_logit_softcapping": None})),
    "untied head": (Change({"tie_word_embeddings": False}), Change({"tie_word_embeddings": True})),
}
INSIDE = ("rotary positions", "QK norm", "relu squared", "RMSNorm", "untied head", "Muon")  # of the modern recipe
PLAIN = Recipe({"hidden_act": "gelu", "attention_bias": False, "mlp_bias": False})
MODERN = PLAIN
for _name in INSIDE:
    MODERN = MODERN.with_(INGREDIENTS[_name][0])


def ablations() -> dict[str, Recipe]:
    """Return the recipes of the ablation: what the modern one lacks or gains, then what the plain one gains."""
    found = {"modern": MODERN}
    for name, (put, take) in INGREDIENTS.items():
        if name in INSIDE:
            found[f"modern without {name}"] = MODERN.with_(take)
        elif name != "higher rate, falling in a line":  # Muon's rates are high already
            found[f"modern with {name}"] = MODERN.with_(put)
    return found | {"plain": PLAIN} | {f"plain with {name}": PLAIN.with_(put) for name, (put, _) in INGREDIENTS.items()}


class Text:
    """Characters as ids, the last tenth of them held out.

    Args:
        text: The text.
    """

    def __init__(self, text: str) -> None:
        characters = sorted(set(text))
        self.size = len(characters)
        number = {character: i for i, character in enumerate(characters)}
        ids = torch.tensor([number[character] for character in text])
        self.train, held_out = ids.tensor_split([int(0.9 * len(ids))])
        count = (len(held_out) - 1) // TOKENS
        self.rows = held_out[: count * TOKENS].view(count, TOKENS)
        self.targets = held_out[1 : count * TOKENS + 1].view(count, TOKENS)

    def batches(self, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield rows from anywhere in the text, with what follows each character, without end."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self.train) - TOKENS, (BATCH,), generator=generator)
            places = starts[:, None] + torch.arange(TOKENS)
            yield self.train[places], self.train[places + 1]


def read_text(path: Path | None) -> str:
    """Return the text: a file's, or so much of the Brown corpus, a sentence a line."""
    if path is not None:
        return path.read_text(encoding="utf-8")
    with (Path(locate("brown")) / "pos.jsonl").open(encoding="utf-8") as lines:
        sentences = (" ".join(json.loads(line)["words"]) for line in lines)
        text = ""
        while len(text) < CHARACTERS:
            text += next(sentences) + "\n"
    return text[:CHARACTERS]


def build(recipe: Recipe, vocabulary: int, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model with new weights, and what updates it."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    model = GPTForCausalLM(preset("gpt2", **{**_DROPLESS, **SHAPE, **ids, "vocab_size": vocabulary, **recipe.fields}))
    if recipe.zero:
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(parameter)
    how = recipe.optimiser
    if how.name == "muon":
        given = {"lr": how.rate, "adamw_lr": how.table_rate, "weight_decay": how.decay, "betas": (0.9, how.beta2)}
        return model, MuonFactory()(model, **given, fused=True)
    vectors = [p for name, p in model.named_parameters() if is_vector(name, p)]
    matrices = [p for name, p in model.named_parameters() if not is_vector(name, p)]
    groups = [{"params": matrices, "weight_decay": how.decay}, {"params": vectors, "weight_decay": 0.0}]
    return model, torch.optim.AdamW(groups, lr=how.rate, betas=(0.9, how.beta2), fused=True)


_DROPLESS = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.0)


def build_theirs(checkout: Path, vocabulary: int, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return nanoGPT's own model and optimiser, by the numbers of its recipe."""
    torch.manual_seed(seed)
    theirs = nanogpt.load(checkout)
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": TOKENS, "vocab_size": vocabulary}
    model = theirs.GPT(theirs.GPTConfig(dropout=0.0, bias=False, **shape))
    return nanogpt.Called(model), model.configure_optimizers(NANOGPT.decay, NANOGPT.rate, (0.9, NANOGPT.beta2), "cpu")


@torch.no_grad()
def evaluate(model: nn.Module, text: Text, every: int = 1) -> float:
    """Return the mean loss on the held-out rows, in nats a character, or on every so manieth of them."""
    model.eval()
    rows, targets = (part[::every].contiguous() for part in (text.rows, text.targets))
    sums = [
        model(input_ids=x, labels=y, shift_labels=y).loss.item() * len(x)
        for x, y in zip(rows.split(128), targets.split(128), strict=True)
    ]
    model.train()
    return sum(sums) / len(rows)


Made = Callable[[int, int], tuple[nn.Module, torch.optim.Optimizer]]


def train(made: Made, how: Optimiser, text: Text, steps: int, seed: int, points: int = 16) -> Figures:
    """Train and evaluate.

    Args:
        made: Makes model and optimiser of vocabulary and seed.
        how: The schedule.
        text: Rows.
        steps: Optimiser steps, at whose end the schedule ends.
        seed: Of weights and rows.
        points: Of the curve.
    """
    model, optimiser = made(text.size, seed)
    peaks = [group["lr"] for group in optimiser.param_groups]
    curve: list[list[float]] = []
    seconds = 0.0
    for step, (rows, targets) in zip(range(steps), text.batches(seed), strict=False):
        start = time.perf_counter()
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * how.rate_at((step + 1) / steps)
        model(input_ids=rows, labels=targets, shift_labels=targets).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seconds += time.perf_counter() - start
        if (step + 1) % max(1, steps // points) == 0:
            curve.append([round(seconds, 2), step + 1, round(evaluate(model, text, every=8), 4)])
    loss = evaluate(model, text)
    return {"loss": round(loss, 4), "seconds": round(seconds, 2), "steps": steps, "curve": curve}


class Budget:
    """Minutes, and whether another run fits into what is left of them."""

    def __init__(self, minutes: float) -> None:
        self.end = time.perf_counter() + 60 * minutes
        self.longest = 0.0  # of the runs' seconds a step, evaluation included

    def fits(self, steps: int) -> bool:
        """Tell whether a run of so many steps fits, by the slowest so far."""
        return time.perf_counter() + steps * self.longest < self.end

    def run(self, name: str, act: Callable[[], Figures]) -> Figures:
        """Run one training, and note how long it took."""
        start = time.perf_counter()
        figures = act()
        took = time.perf_counter() - start
        self.longest = max(self.longest, took / figures["steps"])
        print(f"{name}: {figures['loss']} after {figures['steps']} steps, {figures['seconds']} s", file=sys.stderr)
        return figures


def made_by(recipe: Recipe) -> Made:
    """Return what makes a recipe's model."""
    return lambda vocabulary, seed: build(recipe, vocabulary, seed)


def compare(text: Text, given: Any, budget: Budget) -> Figures:
    """Run the recipe, then the modern one at growing lengths until one ends below it."""
    theirs: Made = made_by(PLAIN)
    if given.nanogpt:
        theirs = lambda vocabulary, seed: build_theirs(given.nanogpt, vocabulary, seed)  # noqa: E731
    # the first steps of a process are slow
    train(made_by(MODERN), MUON, text, 4, 0)
    published = budget.run("nanoGPT's recipe", lambda: train(theirs, NANOGPT, text, given.steps, 0))
    tried: list[Figures] = []
    for length in LENGTHS:
        steps = max(1, round(length * given.steps))
        if tried and not budget.fits(steps):
            break
        tried.append(budget.run("modern", lambda steps=steps: train(made_by(MODERN), MUON, text, steps, 0)))
        if tried[-1]["loss"] <= published["loss"]:
            break
    last = tried[-1]
    reached = last["loss"] <= published["loss"]
    return {
        "model_of_the_recipe": "nanoGPT's own" if given.nanogpt else "our plain GPT-2 block",
        "recipe": published,
        "modern": tried,
        "reached": reached,
        "share_of_time": round(last["seconds"] / published["seconds"], 3) if reached else None,
        "share_of_tokens": round(last["steps"] / published["steps"], 4) if reached else None,
    }


def ablate(text: Text, given: Any, budget: Budget) -> dict[str, Figures]:
    """Run every change for as many seeds as there is time for."""
    losses: dict[str, list[Figures]] = {}
    steps = max(1, round(ABLATION * given.steps))
    for seed in range(given.seeds):
        for name, recipe in ablations().items():
            if not budget.fits(steps):
                break
            run = budget.run(name, lambda r=recipe, s=seed: train(made_by(r), r.optimiser, text, steps, s, points=1))
            losses.setdefault(name, []).append(run)
    return {
        name: {
            "loss": round(statistics.mean(run["loss"] for run in runs), 4),
            "losses": [run["loss"] for run in runs],
            "milliseconds_a_step": round(1e3 * statistics.median(run["seconds"] for run in runs) / steps, 2),
        }
        for name, runs in losses.items()
    }


def main() -> None:
    """Compare, ablate, print and write down."""
    parser = arguments("Loss per minute.", 1)
    parser.add_argument("--minutes", type=float, default=20, help="begin no run that would end later")
    parser.add_argument("--seeds", type=int, default=3, help="of the ablation, as far as the minutes go")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the published recipe")
    parser.add_argument("--text", type=Path, help="a file of UTF-8; unset: the Brown corpus")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT, whose own model is then trained")
    given = parser.parse_args()
    if given.nanogpt and not nanogpt.is_checkout(given.nanogpt):
        parser.error(f"--nanogpt = {given.nanogpt}: there is no model.py in it. Give a checkout of nanoGPT")
    if given.text and not given.text.is_file():
        parser.error(f"--text = {given.text}: there is no such file. Give one of UTF-8 text")
    budget, text = Budget(given.minutes), Text(read_text(given.text))
    report = {
        "text": f"{given.text.name if given.text else 'Brown corpus'}: {len(text.train):,} characters to train on, "
        f"{text.rows.numel():,} held out, {text.size} kinds",
        "batch": f"{BATCH} x {TOKENS} characters, 4 layers x 128",
        **machine("float32"),
        **compare(text, given, budget),
        "ablation": ablate(text, given, budget),
    }
    write("loss-per-minute", report, given.results)


if __name__ == "__main__":
    main()
