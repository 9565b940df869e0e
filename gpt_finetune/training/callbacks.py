"""What a run writes and shows while it goes on: metrics, samples, one line a log."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from gpt_finetune.errors import InputError
from gpt_finetune.generation import generate
from gpt_finetune.training.arguments import SampleConfig

log = logging.getLogger(__name__)


class MetricsWriter(TrainerCallback):
    """Appends each log to `metrics.jsonl`, one JSON object a line.

    Args:
        path: The file. Lines beyond the step that a run resumes from are removed: those steps happen again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock, going on from what is there."""
        if not state.is_world_process_zero:
            return
        kept = rows_until(self.path, state.global_step)
        self._start = time.perf_counter() - seconds_of(kept)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Write one line; the keys lose their `eval_`, which becomes the split."""
        if not state.is_world_process_zero or not logs or not (_evaluated(logs) or {"loss", "skipped_steps"} & {*logs}):
            return
        split = "eval" if _evaluated(logs) else "train"
        # `tokens` counts those trained on, in both kinds of rows; those evaluated on keep their prefix
        figures = {key if key == "eval_tokens" else key.removeprefix("eval_"): value for key, value in logs.items()}
        elapsed = round(time.perf_counter() - self._start, 3)
        row = {"step": state.global_step, "elapsed_s": elapsed, "split": split, **figures}
        append_json_line(self.path, row)


class SampleWriter(TrainerCallback):
    """Generates from fixed prompts at each evaluation and at the end; shows them and appends them to `samples.jsonl`.

    Args:
        config: Prompts and sampling options.
        tokenizer: The model's.
        path: The file.
        console: Where to show them.
    """

    def __init__(self, config: SampleConfig, tokenizer: PreTrainedTokenizerBase, path: Path, console: Console) -> None:
        self.config, self.tokenizer, self.path, self.console = config, tokenizer, path, console
        self._sampled_at = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Keep the samples of the steps before the one that a run resumes from, and no others.

        Raises:
            InputError: A prompt leaves no room in the model's positions.
        """
        limit = model.config.max_position_embeddings
        for prompt in self.config.prompts:
            used = len(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
            if used >= limit:
                problem = f"its {used} tokens leave no room in the model's {limit} positions"
                raise InputError("sample.prompts", prompt, problem, "Shorten it")
        if state.is_world_process_zero:
            kept = [row for row in read_json_lines(self.path) if 0 < row.get("step", 0) <= state.global_step]
            self.path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Sample from each prompt; not from a model that the processes share, for all of them would have to."""
        if not state.is_world_process_zero or state.global_step == self._sampled_at:
            return
        if self.config.prompts and is_shared(model):
            log.warning("no samples: the model's weights are spread over the processes (FSDP2, ZeRO-3)")
            self._sampled_at = state.global_step
            return
        self._sampled_at = state.global_step
        for prompt in self.config.prompts:
            text = sample(model, self.tokenizer, prompt, self.config)
            append_json_line(
                self.path,
                {
                    "step": state.global_step,
                    "prompt": prompt,
                    "text": text,
                    "seed": self.config.seed,
                    "temperature": self.config.temperature,
                    "top_p": self.config.top_p,
                },
            )
            self.console.print(prompt, style="bold", end="", markup=False, highlight=False)
            self.console.print(text, style="cyan", markup=False, highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sample at the end in any case, also where nothing is evaluated."""
        self.on_evaluate(args, state, control, **kwargs)


def rows_until(path: Path, step: int) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics up to the step that it goes on from; none where it begins, at 0."""
    return [row for row in read_json_lines(path) if row.get("step", 0) <= step] if step else []


def seconds_of(rows: list[dict[str, Any]]) -> float:
    """Return how long a run had taken when it wrote the last of its metrics' rows, in all sittings."""
    return max((row.get("elapsed_s", 0.0) for row in rows), default=0.0)


def is_shared(model: Any) -> bool:
    """Tell whether other processes hold parts of a model's weights: FSDP2's have a mesh, those of ZeRO-3 an id."""
    return any(hasattr(weight, "device_mesh") or hasattr(weight, "ds_id") for weight in model.parameters())


def sample(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, config: SampleConfig) -> str:
    """Return the continuation of one prompt, without touching the global random state or the model's mode.

    The sample is shortened to what the model's positions hold.
    """
    choice: dict[str, Any] = {"do_sample": False}
    if config.temperature > 0:
        choice = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    used = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    length = min(config.max_new_tokens, model.config.max_position_embeddings - max(used, 1))
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            torch.manual_seed(config.seed)
            return generate(model, tokenizer, [prompt], length, **choice)[0]
    finally:
        model.train(was_training)


# log key -> (label, format), in the order shown
_SHOWN = {
    "loss": ("loss", ".3f"),
    "eval_loss": ("eval loss", ".4f"),
    "perplexity": ("ppl", ".1f"),
    "eval_perplexity": ("ppl", ".2f"),
    "bits_per_byte": ("bits/byte", ".3f"),
    "eval_bits_per_byte": ("bits/byte", ".4f"),
    "eval_chrf": ("chrF", ".1f"),
    "eval_stop_rate": ("stopped", ".0%"),
    "learning_rate": ("lr", ".2e"),
    "grad_norm": ("grad", ".2f"),
    "tokens_per_second": ("tokens/s", ",.0f"),
    "mfu": ("mfu", ".0%"),
    "peak_memory_mb": ("MB", ",.0f"),
}
_NAMED = "_bits_per_byte"


class Progress(ProgressCallback):
    """transformers' progress bars with time left; a log is one line of the figures that people look for."""

    prediction_bar: Any
    _evaluating: Any = None  # the loader that it shows

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show one line above the bar."""
        if not state.is_world_process_zero or not logs or not (_evaluated(logs) or "loss" in logs):
            return
        parts = [f"{label} {logs[key]:{form}}" for key, (label, form) in _SHOWN.items() if key in logs]
        named = ((key[len("eval_") : -len(_NAMED)], key) for key in logs if key.endswith(_NAMED))
        parts += [f"{name} {logs[key]:.4f}" for name, key in named if name]  # data sets beside the run's own
        line = f"step {state.global_step}/{state.max_steps}  " + "  ".join(parts)
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, file=sys.stderr)  # standard output belongs to results

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Give each data set of an evaluation a bar of its own."""
        if self.prediction_bar is not None and eval_dataloader is not self._evaluating:
            self.prediction_bar.close()
            self.prediction_bar = None
        self._evaluating = eval_dataloader
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)


def _evaluated(logs: dict[str, Any]) -> bool:
    """Tell whether a log is an evaluation's: of the run's own data set, or of a named one."""
    return any(key.startswith("eval_") and key.endswith("_loss") for key in logs)


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON object and a newline in a single write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Sequence[dict[str, Any]]:
    """Read the objects of a JSON-lines file; a missing file has none, and a last line cut by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):  # splitlines would also cut at U+2028
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows
