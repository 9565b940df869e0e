"""A run's folder: refused, resumed or replaced at the start; its receipt, card and report at the end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpt_finetune.checkpoints.choice import newest_whole
from gpt_finetune.config import command_line, to_yaml
from gpt_finetune.errors import InputError
from gpt_finetune.training.arguments import SampleConfig

log = logging.getLogger(__name__)

RECEIPT = "run.json"
OF_ONE_COMMAND = ("resume", "overwrite")  # of a configuration, what whoever goes on with a run says anew
GUESTS: list[Any] = []  # callbacks that join those of each run in this process, see `replay`
_KEPT: list[Any] = []  # see _part


class Run:
    """The folder of one run.

    Args:
        folder: Where everything goes.
        recipe: Name of the recipe, for the receipt.
        config: The recipe's configuration, written as `config.yaml`.
        resume: Go on from the newest checkpoint in the folder that is whole.
        overwrite: Remove the run that the folder holds.

    Raises:
        InputError: The folder cannot be written, holds a run and neither switch is given, holds something else, or has
            no whole checkpoint to resume from.
    """

    def __init__(self, folder: str, recipe: str, config: Any, *, resume: bool = False, overwrite: bool = False) -> None:
        self.folder = Path(folder)
        self.main = os.environ.get("RANK", "0") == "0"
        self.checkpoint: str | None = None
        self._begin = time.perf_counter()
        if resume and overwrite:
            raise InputError("resume", True, "overwrite=true is given too", "Give one of them")
        # Every process looks before the first one writes: a later one would see what the first has just made.
        if self.main:
            self._claim(resume, overwrite)
        before: list[int] = []
        if resume:
            self.checkpoint = str(newest_whole(self.folder, main=self.main))
            step = int(self.checkpoint.rpartition("-")[2])
            before = _resumed(self.folder, step)

            from gpt_finetune.training.callbacks import rows_until, seconds_of

            self._begin -= seconds_of(rows_until(self.folder / "metrics.jsonl", step))
        self.receipt: dict[str, Any] = {
            "title": self.folder.name,
            "recipe": recipe,
            "command": command_line(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "status": "running",
            **({"resumed_from": before} if before else {}),
        }
        if self.main:
            began = dict.fromkeys(vars(config).keys() & OF_ONE_COMMAND, False)
            self.write("config.yaml", to_yaml(dataclasses.replace(config, **began)))
            self.save_receipt()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Part from the other processes; say in the receipt when the run did not end by itself.

        Raises:
            InputError: Another process is gone, see `lost`.
        """
        from gpt_finetune.training.lost import lost
        from gpt_finetune.training.stopping import Interrupted

        gone = lost(error)
        if gone is not None:
            error, cause = gone, error
        if error is not None and self.main:
            stopped = isinstance(error, Interrupted | KeyboardInterrupt)
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            self.receipt |= {"status": "interrupted" if stopped else "failed", "error": said}
            self.save_receipt()
        if error is None or (isinstance(error, Interrupted) and error.agreed):
            _part()
        if gone is not None:
            raise gone from cause

    def _claim(self, resume: bool, overwrite: bool) -> None:
        held = (self.folder / RECEIPT).exists()
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError("output_dir", str(self.folder), "it is a file", "Give a folder")
        if not held and self.folder.exists() and any(self.folder.iterdir()):
            raise InputError("output_dir", str(self.folder), "it is not empty and holds no run", "Give a new folder")
        fresh = held and not resume and _never_began(self.folder)
        if held and not (resume or overwrite or fresh):
            remedy = "Add --resume to go on from its last checkpoint, --overwrite to replace it, or give another folder"
            raise InputError("output_dir", str(self.folder), "it already holds a run", remedy)
        if resume and not held:
            raise InputError("resume", True, f"{self.folder} holds no run", "Leave resume out to start one")
        if held and (overwrite or fresh):
            why = "it failed before its first step" if fresh else "overwrite=true"
            log.warning("removing the run in %s (%s)", self.folder, why)
            shutil.rmtree(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            problem = error.strerror or "it cannot be written"
            raise InputError("output_dir", str(self.folder), problem, "Give a folder that you may write to") from None

    def callbacks(self, samples: SampleConfig | None = None, tokenizer: Any = None) -> list[Any]:
        """Return what writes the run's metrics, keeps its memory small, and samples if it is to, while it goes on."""
        from rich.console import Console

        from gpt_finetune.training.callbacks import MetricsWriter, SampleWriter
        from gpt_finetune.training.memory import HoleReturner

        written: list[Any] = [MetricsWriter(self.folder / "metrics.jsonl"), HoleReturner(), *GUESTS]
        if samples is not None:
            written.append(SampleWriter(samples, tokenizer, self.folder / "samples.jsonl", Console(stderr=True)))
        return written

    def write(self, name: str, text: str) -> None:
        """Write one file of the folder whole: a reader sees the old text or the new, never half."""
        staged = self.folder / f".{name}.part"
        staged.write_text(text, encoding="utf-8")
        staged.replace(self.folder / name)

    def save_receipt(self) -> None:
        """Write what is known so far."""
        self.write(RECEIPT, json.dumps(self.receipt, indent=2, ensure_ascii=False) + "\n")

    def describe(self, trainer: Any, prepared: Any, config: Any, context_length: int, **model_facts: Any) -> None:
        """Put model, data and environment into the receipt, before training starts.

        Args:
            trainer: The trainer.
            prepared: The data, as `prepare` or `prepare_examples` returns it.
            config: The recipe's configuration.
            context_length: Tokens a row.
            **model_facts: What the recipe knows of its model: preset, base_model and so on.
        """
        from gpt_finetune.adaptation.memory import describe
        from gpt_finetune.costs import flops_per_token
        from gpt_finetune.training.pairs import is_pair
        from gpt_finetune.training.throughput import compute_dtype

        model, args = trainer.model, trainer.args
        memory = describe(
            model,
            args.per_device_train_batch_size,
            context_length,
            1 if config.train.optimizer == "muon" else 2,
            dtype=compute_dtype(args),
            checkpointing=args.activation_checkpointing,
            recompute=trainer.recomputes,
        )
        self.receipt |= {
            "environment": environment(trainer),
            "model": {
                **model_facts,
                "parameters": model.num_parameters(),
                "parameters_embedding": model.num_parameters() - model.num_parameters(exclude_embeddings=True),
                "parameters_trained": memory.trainable,
                "memory_estimate": memory.parts,
                # each token passes through one half of an encoder-decoder only
                "flops_per_token": None if is_pair(model) else flops_per_token(model, context_length),
            },
            "data": {
                "sources": [source.path for source in config.data.sources],
                "ledger": prepared.ledger.to_dict(),
                "fingerprint": prepared.fingerprint,
                "validation_bytes": prepared.validation_bytes,
            },
        }
        if getattr(prepared, "xz_bits_per_byte", None) is not None:
            self.receipt["baselines"] = {"xz -9e": {"bits_per_byte": prepared.xz_bits_per_byte}}
        if self.main:
            self.save_receipt()
        made = self.receipt["environment"]
        for line in str(memory).splitlines():
            log.info("%s", line)
        log.info(
            "%s on %s, processes: %d, CPU threads in each: %d; everything goes to %s",
            made["precision"],
            made["device"],
            made["processes"],
            made["threads"],
            self.folder,
        )

    def finish(self, trainer: Any, figures: dict[str, float], before: dict[str, float] | None = None) -> None:
        """Save the model with its tokenizer, the receipt, the card, the curves and the report.

        Args:
            trainer: The trainer; every process calls, the first one writes.
            figures: The run's final figures.
            before: The same figures before training, where they were taken.
        """
        trainer.save_model(str(self.folder))
        if not self.main:
            return
        if before:
            baselines = self.receipt.get("baselines", {}) | {"before training": before}
            self.receipt["baselines"] = baselines
        if getattr(trainer, "skipped_steps", 0):
            self.receipt["skipped_steps"] = trainer.skipped_steps
        if getattr(trainer, "halvings", 0):
            self.receipt["halved_batches"] = {"times": trainer.halvings, "rows_at_once": trainer.rows_at_once}
        self.receipt |= {
            "status": "finished",
            "duration_s": round(time.perf_counter() - self._begin, 1),
            "figures": {name: float(value) for name, value in figures.items()},
        }
        self.save_receipt()

        from gpt_finetune.hub import write_card
        from gpt_finetune.report import write_report

        report = write_report(self.folder)
        write_card(self.folder)
        log.info("done: see %s", report)


def _part() -> None:
    """Wait for the processes that were launched together, and close the group that they make.

    A thread of gloo's that lets go of the last collective takes Python's lock, which the thread that drops a DDP model
    holds while it waits for gloo's threads to end: both then wait for ever, and at the interpreter's exit the process
    aborts. The last collective is therefore kept, so that no thread has anything to let go of.
    """
    from accelerate import PartialState
    from torch import distributed

    state = PartialState()
    state.wait_for_everyone()
    if distributed.is_initialized() and distributed.get_backend() == "gloo":
        _KEPT.append(distributed.barrier(async_op=True))
        _KEPT[-1].wait()
    state.destroy_process_group()


def _never_began(folder: Path) -> bool:
    """Tell whether a folder holds a run that failed, on its data say, before there was anything to lose."""
    try:
        failed = json.loads((folder / RECEIPT).read_text(encoding="utf-8")).get("status") == "failed"
    except (OSError, ValueError, AttributeError):
        return False
    written = [path for path in folder.iterdir() if path.is_dir() or path.stat().st_size]
    return failed and {path.name for path in written} <= {RECEIPT, "config.yaml"}


def _resumed(folder: Path, step: int) -> list[int]:
    """Return the steps that a run was resumed from so far, this one the last; what came after it happens again."""
    try:
        before = json.loads((folder / RECEIPT).read_text(encoding="utf-8")).get("resumed_from", [])
    except (OSError, ValueError, AttributeError):
        before = []
    return [*(earlier for earlier in before if earlier < step), step]


def environment(trainer: Any) -> dict[str, Any]:
    """Describe software and machine, for the receipt."""
    import torch

    from gpt_finetune import __version__
    from gpt_finetune.training.throughput import compute_dtype

    args = trainer.args
    return {
        "python": platform.python_version(),
        "gpt_finetune": __version__,
        **{name: version(name) for name in ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft")},
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else args.device.type,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": args.world_size,
        "precision": str(compute_dtype(args)).removeprefix("torch."),
        "commit": _commit(),
        "code": _code(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _code() -> str:
    """Return the beginning of the SHA-256 of this package's sources, which tells code apart where no commit does."""
    package, digest = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
