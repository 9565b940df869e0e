"""Streams that are gone on with: what a checkpoint says of one, and how the trainer learns it batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import Trainer

from gpt_finetune.data.resuming import Change, StreamState
from gpt_finetune.data.streaming import StreamingBlocks
from gpt_finetune.errors import InputError

FILE = "stream.npz"


class Told:
    """A collator that sends along what became of the stream, in the process that reads it.

    Args:
        collate: Makes a batch of rows.
        rows: The stream.
    """

    def __init__(self, collate: Callable[[list[Any]], Any], rows: StreamingBlocks) -> None:
        self.collate, self.rows = collate, rows

    def __call__(self, rows: list[Any]) -> tuple[Any, Change]:
        """Collate, and tell."""
        return self.collate(rows), self.rows.change()


class Follower:
    """A dataloader that keeps what its batches say of the stream, until an optimiser step is made of them.

    Loaders and workers read ahead; where the run stands is what its last step's batches stood at.

    Args:
        loader: The dataloader, of `rows`.
        rows: The stream.
        state: That of a pass that has not begun.
        at_once: How many of its batches make one of training's, for all processes together.

    Attributes:
        state: Where the last step has left the stream.
        batches: How many batches of training were made in this pass, by this process.
    """

    def __init__(self, loader: Any, rows: StreamingBlocks, state: StreamState, at_once: int) -> None:
        loader.collate_fn = Told(loader.collate_fn, rows)
        self.loader, self.rows, self.state, self.at_once = loader, rows, state, at_once
        self._clear()

    def _clear(self) -> None:
        self.batches, self._ended = 0, False
        self._ahead: deque[Change] = deque()
        self._taken: deque[tuple[int, int]] = deque()  # batches, and how many steps were made before them

    @property  # type: ignore[misc]  # accelerate's own loaders also say that they are torch's
    def __class__(self) -> type:
        return type(self.loader)

    @property
    def collate_fn(self) -> Any:
        """The dataloader's collator, which may be put into another one."""
        return self.loader.collate_fn

    @collate_fn.setter
    def collate_fn(self, collate: Any) -> None:
        self.loader.collate_fn = collate

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        begin = self.rows.begin
        if begin is not None and begin.epoch == self.rows.epoch:
            self.state = begin.copy()
        else:
            self.state = StreamState(self.rows.epoch, self.state.shards, self.state.made_with)
        self._clear()
        return self._follow(iter(self.loader))  # which draws a random number now, in each process

    def _follow(self, batches: Iterator[tuple[Any, Change]]) -> Iterator[Any]:
        for batch, change in batches:
            self._ahead.append(change)
            yield batch
        self._ended = True

    def taken(self, batches: int, step: int) -> None:
        """Note that training has taken batches, after so many steps."""
        self._taken.append((batches, step))

    def settle(self, step: int) -> None:
        """Count the batches of which a step is made by now. A pass may end with some that the next one completes."""
        while self._taken and self._taken[0][1] < step:
            batches = self._taken.popleft()[0]
            self.batches += batches
            for _ in range(min(batches * self.at_once, len(self._ahead))):
                self.state.follow(self._ahead.popleft())

    def following(self) -> StreamState:
        """Return where a run goes on: in this pass, or in the next one where nothing of this one is left."""
        if self._ended and not self._ahead:
            return StreamState(self.state.epoch + 1, self.state.shards, self.state.made_with)
        return self.state


class StreamTrainer(Trainer):
    """A `transformers.Trainer` whose checkpoints say where the training stream stands, so that it can go on there.

    The process that reads the stream writes it; accelerate's other processes are given their share of its batches.
    """

    _follower: Follower | None = None
    _follows = True

    def get_train_dataloader(self) -> Any:
        """Return transformers' loader, followed where it reads a stream of ours."""
        loader = super().get_train_dataloader()
        self._follower, rows = None, self.train_dataset
        base = getattr(loader, "base_dataloader", None)
        if self._follows and isinstance(rows, StreamingBlocks) and base is not None and base.dataset is rows:
            rows.followed = True
            single = getattr(loader, "split_batches", False) or getattr(loader, "submesh_tp", None) is not None
            at_once = 1 if single else self.accelerator.num_processes
            self._follower = Follower(base, rows, self._unread(rows), at_once)
            loader.base_dataloader = self._follower
        elif isinstance(rows, StreamingBlocks):
            rows.followed = False
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of an optimiser step, and note them."""
        self._settle()
        found = super().get_batch_samples(*args, **kwargs)
        if self._follower is not None:
            self._follower.taken(len(found[0]), self.state.global_step)
        return found

    def _settle(self) -> None:
        if self._follower is not None:
            self._follower.settle(self.state.global_step)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random states, and where the stream stands."""
        super()._save_rng_state(output_dir)
        if self._follower is not None and self.accelerator.process_index == 0:
            self._settle()
            self._follower.following().save(Path(output_dir) / FILE, self._follower.rows.config.block_size)

    def _find_stream(self, checkpoint: Path) -> bool:
        """Let the stream begin where a checkpoint says that it stood; return whether it says so.

        Raises:
            InputError: Something that the rows depend on has changed.
        """
        rows = self.train_dataset
        if not isinstance(rows, StreamingBlocks) or not (checkpoint / FILE).is_file():
            return False
        state = StreamState.load(checkpoint / FILE)
        for key, now in self._unread(rows).made_with.items():
            if (was := state.made_with.get(key)) != now:
                problem = f"the run that is resumed had {was!r}, and its stream goes on only with that"
                raise InputError(key, now, problem, "Set it to what it was")
        for part in state.parts.values():
            assert part.tokens is not None
            rows.stream.read(state.epoch).go_on(part.tokens.place, b"")  # raises where files are gone
        rows.begin = state
        return True

    def _unread(self, rows: StreamingBlocks) -> StreamState:
        """Return a stream's state before anything is read."""
        data, workers = rows.config, self.args.dataloader_num_workers
        made_with: dict[str, Any] = {
            "train.workers": workers,
            **{f"data.{name}": getattr(data, name) for name in _SETTINGS},
            "tokenizer": rows.encoder.fingerprint,
            # the data may lie in another folder now
            "data.sources": [asdict(source) | {"path": Path(source.path).name} for source in data.sources],
        }
        return StreamState(rows.epoch, max(1, workers), made_with)


_SETTINGS = ("block_size", "shuffle_buffer", "seed", "deduplicate")  # of the data: what rows are made of follows
