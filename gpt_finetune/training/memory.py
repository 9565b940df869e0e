"""Memory: holes go back from time to time; where it does not suffice, what to lower is said, or the batch halved."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping
from typing import Any

import psutil
import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from gpt_finetune.allocation import return_holes
from gpt_finetune.errors import InputError
from gpt_finetune.training.throughput import peak_memory_mb

log = logging.getLogger(__name__)

# How torch's CPU allocator, CUDA's libraries and drivers say it, where they raise no class of their own.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed", "cannot allocate memory")
Inputs = dict[str, Any]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in _SAID)


class HoleReturner(TrainerCallback):
    """Returns a heap's holes to the system between steps, seldom enough to cost nothing.

    Args:
        every: Seconds between two times, at least.
    """

    def __init__(self, every: float = 30.0) -> None:
        self.every, self._last = every, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        now = time.perf_counter()
        if now - self._last >= self.every:
            return_holes()
            self._last = now


class MemoryTrainer(Trainer):
    """A `transformers.Trainer` that says what to lower when memory does not suffice, or lowers it itself.

    With `halve_on_out_of_memory` of the arguments, an optimiser step that does not fit begins again: its gradients are
    zeroed, and its batches run in parts of half as many rows, down to one, whose gradients add up to those of the whole
    batch. Order of data, effective batch and schedule stay; dropout draws other numbers. The parts stay small after it.

    Attributes:
        halvings: How often the parts were halved, before a resume included.
        rows_at_once: Rows of a forward pass at most; None while batches run whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.halvings = 0
        self.rows_at_once: int | None = None
        self._halves = getattr(self.args, "halve_on_out_of_memory", False)
        self._begun: list[Inputs] = []  # the batches of this optimiser step, as far as it has come
        spread = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self._halves and (self.accelerator.num_processes > 1 or self.args.n_gpu > 1 or spread):
            problem = "a process that begins a step again would leave the others waiting"
            raise InputError("train.halve_on_out_of_memory", True, problem, "Leave it out, and lower train.batch_size")

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does.

        Raises:
            InputError: Memory did not suffice: says the step, its batch, what was taken, and what to lower.
        """
        try:
            return super().train(*args, **kwargs)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            step, batch = self.state.global_step + 1, shape_of(self._begun[-1] if self._begun else {})
            problem = f"memory did not suffice for step {step}, {batch}: {memory_taken(self.args.device)} ({error})"
            problem += "".join(f"; {note}" for note in getattr(error, "__notes__", []))
            size, accumulation = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
            remedy = _what_to_lower(size, accumulation, halves=self._halves)
            raise InputError("train.batch_size", size, problem, remedy) from error

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as transformers does.

        Raises:
            InputError: Memory did not suffice.
        """
        try:
            return super().evaluation_loop(*args, **kwargs)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            size = self.args.per_device_eval_batch_size
            problem = f"memory did not suffice for an evaluation: {memory_taken(self.args.device)} ({error})"
            remedy = f"Set it to {max(1, size // 2)}, which does not change the figures" if size > 1 else "Shorten rows"
            raise InputError("train.eval_batch_size", size, problem, remedy) from error

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of an optimiser step, which begins."""
        self._begun = []
        return super().get_batch_samples(*args, **kwargs)

    def training_step(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one forward and backward pass; in parts, where the whole does not fit."""
        self._begun.append(inputs)
        if not self._halves:
            return super().training_step(model, inputs, num_items_in_batch)
        batches = [inputs]
        while True:
            try:
                return [self._in_parts(model, batch, num_items_in_batch) for batch in batches][-1]
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                at_once = min(_rows(inputs), self.rows_at_once or _rows(inputs))
                reason = "one row is too much" if at_once <= 1 else self._obstacle(inputs, num_items_in_batch)
                if reason is not None:
                    error.add_note(f"the batch cannot be halved: {reason}")
                    raise
            # Here the error is gone, and with it the frames that kept the pass's tensors.
            self._halve(model, inputs)
            batches = self._begun

    def _in_parts(self, model: nn.Module, inputs: Inputs, num_items_in_batch: Any) -> torch.Tensor:
        """Run a batch, in parts if need be; each part's loss is divided by the items of the whole step."""
        rows = _rows(inputs)
        if self.rows_at_once is None or rows <= self.rows_at_once or self._obstacle(inputs, num_items_in_batch):
            return super().training_step(model, inputs, num_items_in_batch)
        parts = cut(inputs, self.rows_at_once)
        assert parts is not None
        return torch.stack(
            [super(MemoryTrainer, self).training_step(model, p, num_items_in_batch) for p in parts]
        ).sum()

    def _obstacle(self, inputs: Inputs, num_items_in_batch: Any) -> str | None:
        """Return why a batch cannot be halved, None if it can."""
        config = self.model.config
        if num_items_in_batch is None:
            return "its loss is a mean that knows nothing of the other parts"
        if getattr(config, "router_aux_loss_coef", 0) and getattr(config, "output_router_logits", False):
            return "its load-balancing loss is one of the whole batch"
        return None if cut(inputs, 1) is not None else "not all that it holds lies row by row"

    def _halve(self, model: nn.Module, inputs: Inputs) -> None:
        """Make the parts half as large, and the step begin again."""
        model.zero_grad(set_to_none=True)
        gc.collect()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        rows = _rows(inputs)
        self.rows_at_once = -(-min(rows, self.rows_at_once or rows) // 2)
        self.halvings += 1
        self.control.should_log = True  # at its own step, so that a resume goes on in these parts
        where = f"step {self.state.global_step + 1}, {shape_of(inputs)}"
        log.warning(
            "memory did not suffice for %s: from here on %d rows at once, the batch as before", where, self.rows_at_once
        )

    def _init_training_state(self, *args: Any, **kwargs: Any) -> Any:
        """Begin as transformers does; a run that is resumed goes on in the parts that it had come to."""
        begun = super()._init_training_state(*args, **kwargs)
        told = [row for row in self.state.log_history if "halvings" in row]
        self.halvings, self.rows_at_once = (told[-1]["halvings"], told[-1]["rows_at_once"]) if told else (0, None)
        return begun

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as transformers does; where batches were halved, with how often and what they have come to."""
        if self.halvings and "loss" in logs:
            logs |= {"halvings": self.halvings, "rows_at_once": self.rows_at_once or 0}
        super().log(logs, start_time)


def cut(inputs: Mapping[str, Any], rows: int) -> list[Inputs] | None:
    """Cut a batch into parts of some rows; None where it does not say which of its entries are whose.

    Args:
        inputs: Tensors whose first dimension is the batch's, B, or single values. Where `position_ids` (B, T) say how
            many texts are packed into each row, there may be one entry for each text, in reading order.
        rows: Rows of a part; the last one may have fewer.
    """
    count = _rows(inputs)
    ends = [*range(rows, count, rows), count]
    bounds = {count: [0, *ends]}
    positions = inputs.get("position_ids")
    if positions is not None:
        if positions.ndim != 2 or len(positions) != count:
            return None
        texts = (positions == 0).sum(1).cumsum(0).tolist()
        bounds.setdefault(texts[-1], [0, *(texts[end - 1] for end in ends)])
    made: list[Inputs] = [{} for _ in ends]
    for name, value in inputs.items():
        single = isinstance(value, bool | int | float | str) or value is None
        if single or (isinstance(value, torch.Tensor) and value.ndim == 0):
            places = None
        elif not isinstance(value, torch.Tensor) or name.startswith("cu_seq") or len(value) not in bounds:
            return None
        else:
            places = bounds[len(value)]
        for i, part in enumerate(made):
            part[name] = value if places is None else value[places[i] : places[i + 1]]
    return made


def shape_of(inputs: Mapping[str, Any]) -> str:
    """Say how large a batch is: rows x tokens."""
    main = _main(inputs)
    return (
        "its batch unread"
        if main is None
        else f"a batch of {' x '.join(map(str, main.shape[:-1]))} rows x {main.shape[-1]} tokens"
    )


def memory_taken(device: torch.device) -> str:
    """Say how much memory was taken at the most, of how much."""
    if device.type == "cuda":
        total, of = torch.cuda.get_device_properties(device).total_memory, "the GPU's"
    else:
        total, of = psutil.virtual_memory().total, "this machine's"
    return f"{peak_memory_mb():,.0f} MB at the most, of {of} {total / 1e6:,.0f}"


def _what_to_lower(size: int, accumulation: int, *, halves: bool) -> str:
    """Return the remedy: the same effective batch in smaller passes; for single rows, less of each."""
    others = "train.gradient_checkpointing=true"
    if size == 1:
        return f"Set {others}, shorten the rows (data.block_size, data.max_length), or train less (adapt.method=lora)"
    by = next(divisor for divisor in range(2, size + 1) if size % divisor == 0)
    same = f"Set train.batch_size={size // by} and train.accumulation={accumulation * by}, which is the same batch"
    return f"{same}, or {others}" + ("" if halves else ", or train.halve_on_out_of_memory=true")


def _main(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    return next((inputs[name] for name in ("input_ids", "inputs_embeds") if inputs.get(name) is not None), None)


def _rows(inputs: Mapping[str, Any]) -> int:
    main = _main(inputs)
    return 0 if main is None else len(main)
