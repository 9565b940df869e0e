"""`ReliableTrainer`: transformers' Trainer whose checkpoints are whole or absent, and which stops in good order."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, has_length

from gpt_finetune.checkpoints.choice import find_whole, newest_whole
from gpt_finetune.checkpoints.space import check_space, checkpoint_bytes, full, is_full
from gpt_finetune.checkpoints.staging import STAGING, clear, commit, rotate
from gpt_finetune.errors import InputError
from gpt_finetune.training.drawing import SeededCollator, draws
from gpt_finetune.training.finite import StepFigures, StepWatch, first_bad, rows_of_step
from gpt_finetune.training.position import ElasticTrainer
from gpt_finetune.training.stopping import Agreement, Interrupted, Signals

log = logging.getLogger(__name__)


class ReliableTrainer(ElasticTrainer):
    """A `transformers.Trainer` that loses nothing and keeps nothing quiet.

    A checkpoint is written into a hidden folder, signed and then renamed; older ones go after that. SIGTERM and Ctrl-C
    save one at the end of the step. A step whose loss or gradient is not finite stops the run before the optimiser has
    made use of it, or is skipped (`bad_steps` of the arguments).

    Args:
        *args: As `transformers.Trainer`.
        **kwargs: As `transformers.Trainer`.

    Attributes:
        skipped_steps: How many steps were skipped, those before a resume included.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.skipped_steps = 0
        self._signals = Signals()
        self._drawing: SeededCollator | None = None
        self._agree = Agreement(self.accelerator.num_processes)
        self._watch = StepWatch()
        self._skips = getattr(self.args, "bad_steps", "stop") == "skip"
        # A skip must be known before the optimiser's step; to stop, the next step is soon enough.
        self._deferred = self.args.device.type == "cuda" and not self._skips
        self._staging: Path | None = None  # the folder that stands for the run's while a checkpoint is written
        self._saved_at = -1  # the step of the last checkpoint of this process
        self._logged_at = self._unlogged_skips = 0
        self._loss_before: torch.Tensor | None = None  # the sum for the log, as it was before this step
        if self.train_dataset is not None and not has_length(self.train_dataset):
            self.args.dataloader_persistent_workers = False  # they would never hear of a stream's next epoch
        if self._skips and self.is_deepspeed_enabled:
            problem = "DeepSpeed keeps the gradients to itself"
            raise InputError("train.bad_steps", "skip", problem, "Use stop")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as transformers does; of True for a checkpoint, from the newest that is whole.

        Raises:
            InputError: The checkpoints do not fit on the disk.
            Interrupted: A signal came; a checkpoint of the last step is saved.
            FloatingPointError: A loss or gradient is not finite.
        """
        folder = Path(self.args.output_dir)
        if self.args.should_save:
            for name in clear(folder):
                log.warning("removed what a killed run has left of a save: %s in %s", name, folder / STAGING)
        if self.args.save_strategy != SaveStrategy.NO:
            folder.mkdir(parents=True, exist_ok=True)
            check_space(folder, self._checkpoint_bytes(), self.args.save_total_limit)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_whole(folder, main=self.args.should_save))
        self._watch, self._saved_at = StepWatch(), -1
        try:
            with self._signals:
                result = super().train(resume_from_checkpoint, *args, **kwargs)
        except Interrupted as error:
            log.warning("%s", error)
            raise
        self._judge(self._watch.flush())
        return result

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: str | None, trial: Any
    ) -> tuple[int, int]:
        """Begin as transformers does, but in a stream's right epoch, and with the count of skipped steps going on."""
        begun = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        self.skipped_steps = max((row.get("skipped_steps", 0) for row in self.state.log_history), default=0)
        self._logged_at, self._unlogged_skips, self._loss_before = self.state.global_step, 0, None
        if self.state.global_step >= max_steps:
            return epochs, 0  # killed when all was trained: transformers would train one step more
        known = has_length(self.train_dataset) or self._stream_past is not None
        if resume_from_checkpoint is None or known or self.args.ignore_data_skip:
            return begun
        # transformers takes all steps for one epoch, and would skip batches of the first for those of a later one. What
        # it saved as the epoch's fraction are the batches read in it, in units of all that the run had to read.
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        whole, fraction = divmod(saved.epoch or 0.0, 1)
        return int(whole), round(fraction * saved.max_steps * self.args.gradient_accumulation_steps)

    def get_train_dataloader(self) -> Any:
        """Return transformers' loader, whose random numbers are none of training's.

        Workers that stay are begun once a process, not once an epoch. Were their seed drawn from training's random
        numbers, a resumed run would draw it at another place than one that was never stopped, and go on with other
        dropout. So would what a collator draws, for batches that a loader fetches ahead: see `SeededCollator`.
        """
        loader = super().get_train_dataloader()
        torch_loader = getattr(loader, "base_dataloader", loader)
        if self.args.dataloader_num_workers and self.args.dataloader_persistent_workers:
            torch_loader.generator = torch.Generator().manual_seed(self.args.seed)
        if draws(self.data_collator):
            self._drawing = torch_loader.collate_fn = SeededCollator(torch_loader.collate_fn, self.args.seed)
        return loader

    def _run_epoch(self, **given: Any) -> Any:
        """Run an epoch as transformers does; what its collator draws is this epoch's."""
        if self._drawing is not None:
            self._drawing.set_epoch(given["epoch"])
        return super()._run_epoch(**given)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _checkpoint_bytes(self) -> int:
        name = str(getattr(self.args.optim, "value", self.args.optim))
        made = self.optimizer_cls_and_kwargs
        return checkpoint_bytes(self.model, "muon" if made and "Muon" in made[0].__name__ else name)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the run's folder; while a checkpoint is written, the one that hides it."""
        return str(super()._get_output_dir(trial) if self._staging is None else self._staging)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint out of sight, sign it, give it its name; then let older ones go.

        Raises:
            InputError: The disk is full. What was written of it is removed, and the checkpoints before it stay.
        """
        if self._saved_at == self.state.global_step:
            return  # nothing has changed, and no moment is without it
        self._judge(self._watch.flush())  # no checkpoint of a model that is spoilt
        run = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        error = _attempt(lambda: self._stage(model, trial, run, name))
        if not self._agree(int(error is not None)) and self.args.should_save:
            error = _attempt(lambda: commit(run, name, self.state.global_step))
        # also: nobody goes on before it has its name
        if failed := self._agree(0 if error is None else 2 if is_full(error) else 1):
            self._give_up(run, name, error, is_space=failed == 2)
        self._saved_at = self.state.global_step
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / name))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(run, self.args.save_total_limit, {run / name} | ({run / Path(best).name} if best else set()))

    def _stage(self, model: nn.Module, trial: Any, run: Path, name: str) -> None:
        """Let transformers write the checkpoint into the hidden folder."""
        self._staging, pushes = run / STAGING, self.args.push_to_hub
        self.args.push_to_hub = False  # later, from where it will stay
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staging, self.args.push_to_hub = None, pushes
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent == run / STAGING:
            self.state.best_model_checkpoint = str(run / name)
            if self.args.should_save:
                self.state.save_to_json(str(run / STAGING / name / TRAINER_STATE_NAME))

    def _give_up(self, run: Path, name: str, error: Exception | None, *, is_space: bool) -> None:
        """Remove what there is of a checkpoint, and raise what went wrong in whichever process."""
        if self.args.should_save:
            clear(run)
        if is_space:
            whole, _ = find_whole(run)
            raise full(run, name, self._checkpoint_bytes(), whole.name if whole else None) from error
        raise error or RuntimeError(f"{name} could not be saved: another process has the reason")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save as transformers does, but for its pickled arguments: nothing reads them, and they may hold a token."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    # ----------------------------------------------------------------------------------------------------- signals

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """End the step as transformers does; where a signal has come, with a checkpoint, and then the run."""
        number = self._agree(self._signals.received)
        if not number:
            super()._maybe_log_save_evaluate(*args, **kwargs)
            return
        skipped = self.control.should_evaluate
        self.control.should_log, self.control.should_save, self.control.should_evaluate = True, True, False
        super()._maybe_log_save_evaluate(*args, **kwargs)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        said = f"stopped after step {self.state.global_step}; {name} is saved, go on from it with --resume"
        if skipped:
            said += " (the evaluation due at this step is left out)"
        raise Interrupted(number, said, agreed=True)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as transformers does, but draw none of training's random numbers: its loaders take one each time.

        Dropout would else go another way where an evaluation is made more, less or, by a signal, left out.
        """
        drawn, devices = (random.getstate(), np.random.get_state()), [self.args.device]
        try:
            with torch.random.fork_rng(devices=devices if self.args.device.type == "cuda" else []):
                return super().evaluate(*args, **kwargs)
        finally:
            random.setstate(drawn[0])
            np.random.set_state(drawn[1])

    # --------------------------------------------------------------------------------------------------- bad steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Run one forward and backward pass, and keep its loss in view."""
        if self._skips and self._loss_before is None:
            self._loss_before = self._tr_loss.clone()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._watch.add(loss)
        return loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip as transformers does, but nothing where the norm is not finite: all would be NaN, and hide the first."""
        engine = self.is_fsdp_enabled or self.is_deepspeed_enabled or self._has_mixed_mesh_grads(model)
        if self._deferred or engine or self._scaled:
            return super()._clip_grad_norm(model)
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if torch.isfinite(norm):
            nn.utils.clip_grads_with_norm_(parameters, self.args.max_grad_norm, norm)
        return norm

    @property
    def _scaled(self) -> bool:
        """Whether losses are scaled (float16): gradients that overflow are then the scaler's business."""
        return getattr(self.accelerator, "scaler", None) is not None

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradient's norm; a step that is not finite ends here, before the optimiser has it."""
        norm = super()._get_grad_norm(model, grad_norm)
        step = self.state.global_step + 1
        look = self._watch.later if self._deferred else self._watch.now
        found = look(step, None if self._scaled else norm)
        if not self._skips:
            self._judge(found)
            return norm
        assert found is not None
        bad = self._agree(int(not found.finite))
        if bad:
            self._skip(model, found)
        self._loss_before = None
        return None if bad else norm

    def _judge(self, found: StepFigures | None) -> None:
        if found is not None and not found.finite:
            raise FloatingPointError(
                f"{self._describe(found)}. Lower train.learning_rate (now {self._get_learning_rate():.3g}), use "
                "train.precision=float32, look at the rows, or pass such steps by with train.bad_steps=skip"
            )

    def _describe(self, found: StepFigures) -> str:
        rows = None
        with contextlib.suppress(Exception):  # a report must not fail for want of the rows' numbers
            loader = self.callback_handler.train_dataloader
            if self._past is None:  # else steps had other batches once, and their numbers do not tell
                rows = rows_of_step(loader, found.step, self.args.gradient_accumulation_steps)
        text = f"loss is {found.loss} at step {found.step} (gradient norm {found.norm:.3g})"
        text += f"; first bad tensor: {first_bad(self.model)}"
        if rows is None:
            return text
        more = f" and {len(rows) - 64} more" if len(rows) > 64 else ""
        return f"{text}; rows of the training data: {', '.join(map(str, rows[:64]))}{more}"

    def _skip(self, model: nn.Module, found: StepFigures) -> None:
        """Take the gradients away, so that the optimiser does nothing, and the loss out of the sum for the log."""
        self.skipped_steps += 1
        self._unlogged_skips += 1
        log.warning("skipped a step (%d so far): %s", self.skipped_steps, self._describe(found))
        model.zero_grad(set_to_none=True)
        assert self._loss_before is not None
        self._tr_loss.copy_(self._loss_before)
        self.control.should_log = True  # at its own step

    def leave_out_skipped(self, logs: dict[str, float]) -> None:
        """Make a log's loss the mean of the steps that were not skipped; without any, there is none."""
        if "loss" not in logs:
            return
        steps, skipped = self.state.global_step - self._logged_at, self._unlogged_skips
        self._logged_at, self._unlogged_skips = self.state.global_step, 0
        if self.skipped_steps:
            logs["skipped_steps"] = self.skipped_steps
        if skipped == steps:
            del logs["loss"]
        elif skipped:
            logs["loss"] *= steps / (steps - skipped)


def _attempt(work: Callable[[], None]) -> Exception | None:
    """Do something, and return the error that it raises: other processes must hear of it before it ends this one."""
    try:
        work()
    except Exception as error:
        return error
    return None
