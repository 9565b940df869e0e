"""A tiny run that tests kill, stop and damage; started in a process of its own, it forks one child a kill.

    python tests/checkpoints/surviving.py FOLDER INSIDE OUTSIDE STOPPED

kills a run at INSIDE points of its saves and at OUTSIDE random moments, stops STOPPED runs by signals, damages every
file of a checkpoint, and prints what came of it as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

STEPS = 6


def rows(count: int, length: int = 12) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    made = [torch.randint(2, 512, (length,), generator=generator) for _ in range(count)]
    return [{"input_ids": ids, "labels": ids.clone()} for ids in made]


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: torch.stack([row[key] for row in batch]) for key in batch[0]}


def make_trainer(
    folder: Path, *, callbacks: Any = (), model: Any = None, data: Any = None, evaluate: Any = None, **fields: Any
) -> Any:
    """Return the trainer of a tiny model with dropout that saves every step; 2 steps an epoch short of 3 epochs."""
    from transformers import set_seed

    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.trainer import GPTTrainer

    values = {"max_steps": STEPS, "save_steps": 1, "log_steps": 1, "batch_size": 4, "accumulation": 2}
    config = TrainConfig(**{**values, "precision": "float32", "learning_rate": 1e-2, "threads": 1, **fields})
    set_seed(0)
    if model is None:
        small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
        ends = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
        model = GPTForCausalLM(preset("tiny", **small, **ends, residual_dropout=0.1))
    arguments = training_arguments(config, folder)
    arguments.disable_tqdm = True
    return GPTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows(20) if data is None else data,
        eval_dataset=evaluate,
        data_collator=collate,
        callbacks=list(callbacks),
    )


def train(folder: Path, *, resume: bool = False, **fields: Any) -> Any:
    trainer = make_trainer(folder, **fields)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def state_of(checkpoint: Path, processes: int = 1) -> dict[str, Any]:
    """Return all that a run goes on from: weights, optimizer, schedule, random states and place in the data."""
    from safetensors.torch import load_file

    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "weights": load_file(checkpoint / "model.safetensors"),
        "place": {key: state[key] for key in ("global_step", "epoch", "max_steps")},
    }
    drawn = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    for name in ("optimizer.pt", "scheduler.pt", *drawn):
        found[name] = load(checkpoint / name)
    return found


def load(path: Path) -> Any:
    """Return what torch saved, read as transformers reads it: no pickle may run anything."""
    from transformers.trainer_pt_utils import safe_globals

    with safe_globals():
        return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Tell whether two nests of values are equal to the last bit."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool((a == b).all()) if hasattr(a, "all") else bool(a == b)


def _fork(work: Callable[[], Any]) -> int:
    """Begin some work in a fork of this process; return its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            logging.disable(logging.WARNING)
            work()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)
    return child


def forked(work: Callable[[], Any], *, kill_after: float | None = None) -> int:
    """Do some work in a fork of this process; return its exit code, negative for a signal as subprocess has it."""
    child = _fork(work)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Points:
    """Counts the points of the saves of this process: before each change of a file or folder, in and after each write.

    Args:
        folder: The run's.
        at: Which point is the last thing that the process does; 0 for none.
    """

    def __init__(self, folder: Path, at: int = 0) -> None:
        import transformers.modeling_utils

        self.folder, self.at, self.count = f"{folder}/", at, 0
        sys.addaudithook(self._audit)
        torch.save = self._torn(torch.save, 1)
        transformers.modeling_utils.safe_save_file = self._torn(transformers.modeling_utils.safe_save_file, 1)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
            return
        path = str(arguments[0])
        below = event in ("os.remove", "os.rmdir") and not path.startswith("/")  # rmtree goes by open folders
        if below or (path.startswith(self.folder) and ("checkpoint-" in path or ".saving" in path)):
            self._pass()

    def _pass(self, path: Path | None = None) -> None:
        self.count += 1
        if self.count == self.at:
            if path is not None:
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def _torn(self, write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def written(*arguments: Any, **options: Any) -> Any:
            self._pass()
            done = write(*arguments, **options)
            self._pass(Path(str(arguments[place])))  # in the middle of it
            self._pass()
            return done

        return written


def kills(folder: Path, inside: int, outside: int) -> dict[str, Any]:
    """Kill, look, resume and compare, once a kill; return the counts."""
    from gpt_finetune.checkpoints import find_whole

    folder = folder.resolve()
    straight, last = folder / "straight", f"checkpoint-{STEPS}"

    def counted() -> None:
        points = Points(folder / "counted")
        train(folder / "counted")
        (folder / "points").write_text(str(points.count))

    train(straight)  # here, so that what it imports need not be imported after each fork
    begin = time.perf_counter()
    assert forked(counted) == 0
    duration, total = time.perf_counter() - begin, int((folder / "points").read_text())
    expected = state_of(straight / last)
    draw = random.Random(0)
    plans: list[tuple[int, float | None]] = [(1 + i * total // inside, None) for i in range(inside)]
    plans += [(0, draw.uniform(0.05, duration)) for _ in range(outside)]
    found = {
        "tried": len(plans),
        "kills": 0,
        "inside_a_save": 0,
        "torn_staging": 0,
        "resumed": 0,
        "identical": 0,
        "lost": 0,
    }
    for index, (point, delay) in enumerate(plans):
        run = folder / f"run-{index}"

        def broken(run: Path = run, point: int = point) -> None:
            Points(run, point)
            train(run, callbacks=[Saved(run.with_suffix(".saved"))])

        while not (killed := forked(broken, kill_after=delay) == -signal.SIGKILL) and delay is not None:
            delay *= 0.8  # it had ended before
            shutil.rmtree(run)
            run.with_suffix(".saved").unlink()
        found["kills"] += killed
        found["inside_a_save"] += killed and point > 0
        whole = find_whole(run)[0]
        found["torn_staging"] += (run / ".saving").exists()
        found["lost"] += run.with_suffix(".saved").exists() and whole is None
        if forked(lambda run=run, whole=whole: train(run, resume=whole is not None)) == 0:  # type: ignore[misc]
            found["resumed"] += 1
            found["identical"] += same(state_of(run / last), expected) and not (run / ".saving").exists()
        shutil.rmtree(run)
    return {"points_in_the_saves_of_a_run": total, "straight_s": round(duration, 2), **found}


class Saved(TrainerCallback):
    """Makes a file when the first checkpoint is whole: from then on there must be one."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marker.touch()


class Slow(TrainerCallback):
    """Gives signals the time to arrive during the steps, and says when they may.

    Args:
        marker: A file that is made when training begins.
    """

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.marker.touch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(0.05)


def signalled(run: Path, numbers: list[tuple[int, float]], work: Callable[[], Any]) -> int:
    """Fork, wait until training begins, send signals, each after a delay; return the exit code."""
    marker = run.with_suffix(".began")
    child = _fork(work)
    while not marker.exists():
        time.sleep(0.01)
    for number, delay in numbers:
        time.sleep(delay)
        os.kill(child, number)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stops(folder: Path, count: int) -> dict[str, Any]:
    """Stop a run by SIGTERM or SIGINT at random moments, go on, compare; then hang a save and send a second signal."""
    from gpt_finetune.checkpoints import find_whole

    folder = folder.resolve()
    straight, last = folder / "unstopped", f"checkpoint-{STEPS}"
    train(straight)
    expected, draw = state_of(straight / last), random.Random(1)
    found = {"signals": 0, "exit_codes_right": 0, "identical": 0, "second_signals": 0, "second_identical": 0}
    for index in range(count):
        run, number = folder / f"stop-{index}", (signal.SIGTERM, signal.SIGINT)[index % 2]
        slow = [Slow(run.with_suffix(".began"))]
        # saved by the signal alone
        work = lambda: train(run, callbacks=slow, save_steps=None)  # noqa: B023, E731
        code = signalled(run, [(number, draw.uniform(0, 0.25))], work)
        found["signals"] += 1
        found["exit_codes_right"] += code == 128 + number
        saved = find_whole(run)[0]
        resumed = saved is not None and forked(lambda: train(run, resume=True)) == 0  # noqa: B023
        found["identical"] += resumed and same(state_of(run / last), expected)
    for index in range(max(1, count // 10)):
        run = folder / f"twice-{index}"

        def hang(run: Path = run) -> None:
            write, calls = torch.save, []

            def save(*arguments: Any, **options: Any) -> None:
                calls.append(1)
                if len(calls) == 5:  # in the middle of the second checkpoint
                    run.with_suffix(".began").touch()
                    time.sleep(60)
                write(*arguments, **options)

            torch.save = save
            train(run)

        code = signalled(run, [(signal.SIGTERM, 0.1), (signal.SIGTERM, 1.3)], hang)
        whole = find_whole(run)[0]
        found["second_signals"] += code == 143 and whole is not None
        resumed = forked(lambda: train(run, resume=True)) == 0  # noqa: B023
        found["second_identical"] += resumed and same(state_of(run / last), expected)
    return found


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "one bit flipped": lambda path: flip(path, path.stat().st_size * 4 + 1),
}


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def damages(run: Path, scratch: Path) -> dict[str, Any]:
    """Damage each file of a run's last checkpoint in each way; count what is found, named, and fallen back from."""
    from gpt_finetune.checkpoints import newest_whole

    last = run / f"checkpoint-{STEPS}"
    found = {"files": 0, "cases": 0, "found_and_named": 0, "fell_back": 0}
    for path in sorted(path for path in last.rglob("*") if path.is_file()):
        found["files"] += 1
        for spoil in DAMAGE.values():
            copy = scratch / "copy"
            shutil.copytree(run, copy)
            spoil(copy / path.relative_to(run))
            found["cases"] += 1
            said: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign] # noqa: B023
            logging.getLogger("gpt_finetune").addHandler(handler)
            chosen = newest_whole(copy)
            logging.getLogger("gpt_finetune").removeHandler(handler)
            found["found_and_named"] += any("DAMAGED" in text and path.name in text for text in said)
            found["fell_back"] += chosen.name == f"checkpoint-{STEPS - 1}" and (copy / f"damaged-{last.name}").is_dir()
            shutil.rmtree(copy)
    return found


def ranks(work: Callable[[], Any], stop_after: float | None = None, marker: Path | None = None) -> list[int]:
    """Run two processes that train together, forked; send the second one SIGTERM when asked; return the exit codes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def one(rank: int) -> None:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
        os.environ["ACCELERATE_USE_CPU"] = "true"
        work()

    children = [_fork(lambda rank=rank: one(rank)) for rank in range(2)]  # type: ignore[misc]
    if stop_after is not None and marker is not None:
        while not marker.exists():
            time.sleep(0.01)
        time.sleep(stop_after)
        os.kill(children[1], signal.SIGTERM)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def together(folder: Path, count: int) -> dict[str, Any]:
    """Stop two processes that train together by a signal to one of them, go on, compare."""
    from gpt_finetune.checkpoints import find_whole

    folder = folder.resolve()
    straight, last = folder / "two", f"checkpoint-{STEPS}"
    assert ranks(lambda: train(straight, batch_size=2)) == [0, 0]
    expected = state_of(straight / last, processes=2)
    draw = random.Random(2)
    found = {"signals": 0, "both_stopped": 0, "identical": 0}
    for index in range(count):
        run = folder / f"two-{index}"
        marker = run.with_suffix(".began")
        work = lambda: train(run, callbacks=[Slow(marker)], save_steps=None, batch_size=2)  # noqa: B023, E731
        found["signals"] += 1
        found["both_stopped"] += ranks(work, draw.uniform(0, 0.25), marker) == [143, 143]
        resumed = find_whole(run)[0] is not None and ranks(lambda: train(run, resume=True, batch_size=2)) == [0, 0]  # noqa: B023
        found["identical"] += resumed and same(state_of(run / last, processes=2), expected)
    return found


def main(folder: Path, inside: int, outside: int, stopped: int) -> dict[str, Any]:
    import transformers.utils.logging

    from gpt_finetune.hub import travel

    transformers.utils.logging.disable_progress_bar()
    travel.check_class = lambda *arguments: None  # its own tests are elsewhere; it takes most of a tiny save's time
    figures = {"kills": kills(folder, inside, outside)}
    figures["damage"] = damages(folder / "straight", folder)
    figures["stops"] = stops(folder, stopped)
    return figures | {"together": together(folder, max(1, stopped // 5))}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
