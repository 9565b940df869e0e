"""Where a run stands in its data, counted in samples: so that a resumed one may have other batches."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import BatchSampler, IterableDataset
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import has_length

from gpt_finetune.data.streaming import StreamingBlocks
from gpt_finetune.errors import InputError
from gpt_finetune.training.streams import FILE, StreamTrainer

log = logging.getLogger(__name__)

_KEY = "Position"  # beside the states of callbacks, where whoever else reads the file passes over it


@dataclass(frozen=True)
class Position:
    """What a checkpoint says of the data.

    Args:
        epoch: Epochs that are over.
        samples: Rows of the next one, in its order, that are trained on, by all processes.
        begun_at: With how many of them this process began the epoch: what came before had other batches.
        batch_size: Rows a process in one forward pass.
        accumulation: Forward passes a step.
        processes: How many there were.
        grouped_by: Rows among which those of similar length were looked for; None where lengths do not matter.
    """

    epoch: int
    samples: int
    begun_at: int
    batch_size: int
    accumulation: int
    processes: int
    grouped_by: int | None = None

    @property
    def rows(self) -> int:
        """Rows of an optimiser step."""
        return self.batch_size * self.accumulation * self.processes


class From:
    """A sampler without the first rows of one epoch's order; later epochs are whole.

    Args:
        sampler: The sampler; sized.
        rows: How many rows to leave out.
        epoch: Of which epoch.
    """

    def __init__(self, sampler: Any, rows: int, epoch: int) -> None:
        self.sampler, self.rows, self.epoch = sampler, rows, epoch

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch's order comes next; Trainer does."""
        if epoch != self.epoch:
            self.rows = 0
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.rows, None)

    def __len__(self) -> int:
        return len(self.sampler) - self.rows


class ElasticTrainer(StreamTrainer):
    """A `transformers.Trainer` whose resumed runs may have other batches, other accumulation and other processes.

    Every checkpoint says how many samples of its epoch are trained on. Where the batches of a resumed run are others,
    it goes on with the samples that are left of the epoch, in its order, each once; transformers would skip as many
    batches as there were, of another size. The steps made so far keep their number. `max_steps` stays what it is; where
    epochs decide, as many steps follow as the samples that are left need, and the schedule is that of the new total.

    A stream of ours goes on after the last row that was trained on; of any other iterable data set nobody knows where
    it stands, and its batches must stay as they were.
    """

    _past: Position | None = None  # of the checkpoint, where it needs more than to skip batches
    _stream_past: Position | None = None  # of the checkpoint, where it says where its stream stands
    _first_step = 0
    _epoch = _begun_at = _batches = 0
    _random_states: str | None = None  # the checkpoint whose random numbers the first step is to go on from

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does.

        Raises:
            InputError: A stream is to go on with other batches, and nobody knows where it stands.
        """
        self._past = self._stream_past = None
        goes_on = isinstance(resume_from_checkpoint, str) and not self.args.ignore_data_skip
        if isinstance(self.train_dataset, StreamingBlocks):
            self.train_dataset.begin = None
        if goes_on:
            self._past = self._look_back(Path(str(resume_from_checkpoint)))
        # where a stream's batches are skipped, nobody learns where it stands then
        self._follows = not goes_on or self._stream_past is not None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _look_back(self, checkpoint: Path) -> Position | None:
        """Return where a checkpoint stands, if going on from there takes more than skipping batches."""
        file = checkpoint / TRAINER_STATE_NAME
        state = TrainerState.load_from_json(str(file)) if file.is_file() else TrainerState()
        told = (state.stateful_callbacks or {}).get(_KEY)
        if isinstance(self.train_dataset, StreamingBlocks) and not (checkpoint / FILE).is_file():
            log.warning("%s has no %s: its stream is read again from the epoch's beginning", checkpoint.name, FILE)
        if told is None:
            return None
        past, now = Position(**told), self._position()
        if self._find_stream(checkpoint):
            self._stream_past = past
            return None
        batches = (past.batch_size, past.accumulation, past.processes)
        if batches == (now.batch_size, now.accumulation, now.processes) and past.begun_at == 0:
            return None
        if not has_length(self.train_dataset) or isinstance(self.train_dataset, IterableDataset):
            was = f"{past.batch_size} with accumulation {past.accumulation} in {past.processes} processes"
            problem = f"the run that is resumed had {was}, and nobody knows where its stream stands for others"
            raise InputError("train.batch_size", now.batch_size, problem, "Resume it with the same three")
        self._first_step = state.global_step
        if past.rows != now.rows:
            log.warning(
                "resumed with %d rows a step instead of %d: %d of %d rows of epoch %d are trained on, the rest follow",
                now.rows,
                past.rows,
                past.samples,
                len(self.train_dataset),
                past.epoch + 1,
            )
        return past

    def _position(self) -> Position:
        """Return where this run stands."""
        args, processes = self.args, self.accelerator.num_processes
        done = self._begun_at + self._batches * self._train_batch_size * processes
        epoch, begun_at = self._epoch, self._begun_at
        if self._follower is not None:
            self._settle()
            done = begun_at + self._follower.batches * self._train_batch_size * processes
            if self._follower.following().epoch > epoch:
                epoch, done, begun_at = epoch + 1, 0, 0
        if has_length(self.train_dataset) and done >= len(self.train_dataset):
            epoch, done, begun_at = epoch + 1, 0, 0
        settings = (self._train_batch_size, args.gradient_accumulation_steps, processes)
        return Position(epoch, done, begun_at, *settings, getattr(self, "_grouped_by", None))

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """Order the rows; similar lengths are looked for among as many as before, else the order would change."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if hasattr(sampler, "lengths"):
            if self._past is not None and self._past.grouped_by:
                sampler.batch_size = self._past.grouped_by
            self._grouped_by = sampler.batch_size
        return sampler

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Count epochs and steps as transformers does; after other batches, by the samples that are left."""
        epochs, each, *others, max_steps = super().set_initial_training_values(args, dataloader)
        if self._past is not None:
            past, size = self._past, len(self.train_dataset)
            first = _steps(size - past.samples, self._position())
            if args.max_steps <= 0:
                left = args.num_train_epochs - past.epoch - 1
                share = min(1.0, 1 + left - past.samples / size) if left < 0 else 1.0
                last = first if share == 1.0 else math.ceil(max(0.0, share) * size / self._position().rows)
                max_steps = self._first_step + last + math.ceil(max(0.0, left) * each)
            epochs = past.epoch + 1 + max(0, math.ceil((max_steps - self._first_step - first) / each))
        return epochs, each, *others, max_steps

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        begun: tuple[int, int] = super()._init_training_state(*args, **kwargs)
        past = self._past or self._stream_past
        return begun if past is None else (past.epoch, 0)

    def _load_callback_state(self) -> None:
        self.state.stateful_callbacks.pop(_KEY, None)  # no callback's
        super()._load_callback_state()

    def _run_epoch(self, **given: Any) -> Any:
        """Run an epoch as transformers does; the first one after other batches, on the samples that are left of it."""
        self._epoch, self._begun_at, self._batches = given["epoch"], 0, 0
        self._passes = given["steps_in_epoch"]
        if given["epoch"] == given["epochs_trained"]:
            self._batches = given["steps_trained_in_current_epoch"]
            if self._stream_past is not None:
                self._begun_at = self._stream_past.samples
                self._random_states = given["resume_from_checkpoint"] if self._begun_at else None
            if self._past is not None:
                self._begun_at = self._past.samples
                self._random_states = given["resume_from_checkpoint"] if self._begun_at else None
                batches = _innermost(given["train_dataloader"].batch_sampler)
                batches.sampler = From(batches.sampler, self._past.samples, given["epoch"])
                given["steps_in_epoch"] = len(given["train_dataloader"])
                passes = self.args.gradient_accumulation_steps
                given["num_update_steps_per_epoch"] = math.ceil(given["steps_in_epoch"] / passes)
        return super()._run_epoch(**given)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of an optimiser step, and count them."""
        found = super().get_batch_samples(*args, **kwargs)
        self._batches += len(found[0])
        if self._random_states is not None:  # a loader that begins has drawn a number that it drew long ago
            self._load_rng_state(self._random_states)
            self._random_states = None
        return found

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """End the step as transformers does; the epoch's share is that of all its rows."""
        if self._begun_at and self._follower is not None:
            self._settle()
            passes = self._follower.batches + self._begun_at / self._train_batch_size / self.accelerator.num_processes
            self.state.epoch = self._epoch + passes / self._passes
        elif self._begun_at:
            place = self._position()
            self.state.epoch = place.epoch + place.samples / len(self.train_dataset)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.state.stateful_callbacks[_KEY] = asdict(self._position())
        super()._save_checkpoint(*args, **kwargs)


def _steps(samples: int, batches: Position) -> int:
    """Return how many optimiser steps samples take, the last one short."""
    passes = math.ceil(math.ceil(samples / batches.batch_size) / batches.processes)
    return math.ceil(passes / batches.accumulation)


def _innermost(sampler: Any) -> BatchSampler:
    """Return what makes the batches that are then shared among processes."""
    while not isinstance(sampler, BatchSampler) or hasattr(sampler, "batch_sampler"):
        sampler = sampler.batch_sampler
    return sampler
