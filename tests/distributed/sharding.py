"""A tiny run whose state two processes share, killed and resumed; forks its processes, as imports cost most.

    python tests/distributed/sharding.py FOLDER ENGINE INSIDE OUTSIDE

kills one of two processes at INSIDE points of their saves and at OUTSIDE random moments, goes on each time, goes on
from two processes with one and the other way round, and prints what came of it as JSON. The engine is a file in
configs/accelerate.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from support import ROOT
from surviving import STEPS, Points, Saved, _fork, load, make_trainer, same

ENGINE = sys.argv[2]
ROWS = 4  # a step
# the launcher's names for what a file calls otherwise
ZERO = {"zero3_init_flag": "zero3_init"}
LAST = f"checkpoint-{STEPS}"


def sharded(rank: int, processes: int, port: int) -> None:
    """Set this process up as `accelerate launch` with the engine's file does; Accelerate takes the CPU for a GPU."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    AcceleratorState._reset_state(reset_partial_state=True)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_TORCH_DEVICE": "cpu"}
    file = ROOT / "configs" / "accelerate" / f"{ENGINE}.yaml"
    made = yaml.safe_load(file.read_text(encoding="utf-8"))
    if made["distributed_type"] == "FSDP":
        PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)  # see ranks.py
        options = {name.upper(): str(value) for name, value in made["fsdp_config"].items()}
        names |= {"ACCELERATE_USE_FSDP": "true", **options}
    else:
        options = {name: str(value).lower() for name, value in made["deepspeed_config"].items()}
        names |= {f"ACCELERATE_DEEPSPEED_{ZERO.get(name, name).upper()}": value for name, value in options.items()}
        names |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_CONFIG_DS_FIELDS": ",".join(options)}
    os.environ |= {name: str(value) for name, value in names.items()}


def train(run: Path, processes: int = 2, *, resume: bool = False, callbacks: Any = (), **fields: Any) -> Any:
    """Train on this process's share, with weights on either side that are not shared: both are cut."""
    from transformers import PrinterCallback, set_seed

    from gpt_finetune import GPTForCausalLM, preset

    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    ends = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    set_seed(0)
    model = GPTForCausalLM(preset("tiny", **small, **ends, tie_word_embeddings=False))
    trainer = make_trainer(
        run,
        model=model,
        callbacks=callbacks,
        **{"batch_size": ROWS // processes, "accumulation": 1, "schedule": "constant", **fields},
        trainer={"use_cpu": False, "ddp_timeout": 20, "ddp_backend": "gloo"},
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def together(
    work: Callable[[int], Any], processes: int = 2, killed: int | None = None, delay: float | None = None
) -> list[int]:
    """Fork processes that train together; return their exit codes.

    Args:
        work: What each does, given its rank.
        processes: How many.
        killed: The rank that is not to live: by itself, or killed here after the delay; the launcher then ends all.
        delay: Seconds after which it is killed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def one(rank: int) -> None:
        sharded(rank, processes, port)
        work(rank)

    children = [_fork(lambda rank=rank: one(rank)) for rank in range(processes)]  # type: ignore[misc]
    codes = {}
    if killed is not None:
        if delay is not None:
            time.sleep(delay)
            os.kill(children[killed], signal.SIGKILL)
        codes[killed] = os.waitpid(children[killed], 0)[1]
        for rank in set(range(processes)) - {killed}:
            os.kill(children[rank], signal.SIGKILL)
    for rank in set(range(processes)) - set(codes):
        codes[rank] = os.waitpid(children[rank], 0)[1]
    return [os.waitstatus_to_exitcode(codes[rank]) for rank in range(processes)]


def state_of(checkpoint: Path, processes: int = 2) -> dict[str, Any]:
    """Return all that a run goes on from."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    drawn = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    found: dict[str, Any] = {"place": {key: state[key] for key in ("global_step", "epoch", "max_steps")}}
    for path in sorted(checkpoint.glob("global_step*/*")):  # DeepSpeed's, which are pickles of its own classes
        found[path.name] = list(_tensors(torch.load(path, weights_only=False)))
    own = [] if len(found) > 1 else ["pytorch_model_fsdp.bin", "optimizer.bin"]
    return found | {name: load(checkpoint / name) for name in (*own, "scheduler.pt", *drawn)}


def _tensors(nest: Any) -> Iterator[torch.Tensor]:
    if isinstance(nest, torch.Tensor):
        yield nest
    for inner in nest.values() if isinstance(nest, dict) else nest if isinstance(nest, list | tuple) else ():
        yield from _tensors(inner)


def kills(folder: Path, inside: int, outside: int) -> dict[str, Any]:
    """Kill one of two processes, look, resume and compare; return the counts."""
    from gpt_finetune.checkpoints import find_whole

    def counted(rank: int) -> None:
        points = Points(folder / "counted")
        train(folder / "counted")
        (folder / f"points-{rank}").write_text(str(points.count))

    begin = time.perf_counter()
    assert together(counted) == [0, 0]
    duration = time.perf_counter() - begin
    totals = [int((folder / f"points-{rank}").read_text()) for rank in range(2)]
    assert together(lambda rank: train(folder / "straight")) == [0, 0]
    expected, draw = state_of(folder / "straight" / LAST), random.Random(0)
    plans: list[tuple[int, int, float | None]] = []  # which process, at which point of its saves or after how long
    for place in range(inside):
        rank = int(place % 3 == 2)  # the first one writes more
        plans.append((rank, 1 + place * totals[rank] // inside, None))
    plans += [(place % 2, 0, draw.uniform(duration / 3, duration)) for place in range(outside)]
    found = dict.fromkeys(("tried", "kills", "inside_a_save", "torn_staging", "resumed", "identical", "lost"), 0)
    for index, (victim, point, delay) in enumerate(plans):
        run = folder / f"run-{index}"

        def broken(rank: int, run: Path = run, victim: int = victim, point: int = point) -> None:
            if rank == victim:
                Points(run, point)
            train(run, callbacks=[Saved(run.with_suffix(".saved"))])

        killed = together(broken, killed=victim, delay=delay)[victim] == -signal.SIGKILL
        whole = find_whole(run)[0]
        found["tried"] += 1
        found["kills"] += killed
        found["inside_a_save"] += killed and point > 0
        found["torn_staging"] += (run / ".saving").exists()
        found["lost"] += run.with_suffix(".saved").exists() and whole is None
        if together(lambda rank, run=run, whole=whole: train(run, resume=whole is not None)) == [0, 0]:  # type: ignore[misc]
            found["resumed"] += 1
            found["identical"] += same(state_of(run / LAST), expected) and not (run / ".saving").exists()
        shutil.rmtree(run, ignore_errors=True)
    return {"points_in_the_saves": totals, **found}


def losses(run: Path) -> list[float]:
    state = json.loads((run / LAST / "trainer_state.json").read_text(encoding="utf-8"))
    return [row["loss"] for row in state["log_history"] if "loss" in row]


def reshards(folder: Path) -> dict[str, Any]:
    """Begin with one number of processes and go on with another; compare with runs that have one number."""
    found: dict[str, Any] = {}
    assert together(lambda rank: train(folder / "one", 1), 1) == [0]
    for first, then in ((2, 1), (1, 2)):
        run, half = folder / f"{first}-{then}", STEPS // 2
        assert together(lambda rank: train(run, first, max_steps=half), first) == [0] * first  # noqa: B023
        before = state_of(run / f"checkpoint-{half}", first)

        def opened(rank: int, run: Path = run, then: int = then, half: int = half) -> None:
            """Take up what is there, train nothing, and save what was taken up."""
            shutil.copytree(run, run.with_suffix(f".{rank}"))
            trainer = train(run.with_suffix(f".{rank}"), then, resume=True, max_steps=half)
            trainer.save_model(str(run.with_suffix(".export")))

        assert together(opened, then) == [0] * then
        assert together(lambda rank: train(run, then, resume=True), then) == [0] * then  # noqa: B023
        from safetensors.torch import load_file

        exported = load_file(run.with_suffix(".export") / "model.safetensors")
        apart = max(abs(a / b - 1) for a, b in zip(losses(run), losses(folder / "one"), strict=True))
        found[f"{first} to {then}"] = {
            "losses_apart": apart,
            "weights_identical": same(exported, dict(before["pytorch_model_fsdp.bin"])),
            "files": sorted(path.name for path in run.with_suffix(".export").iterdir()),
        }
    return found


def refused(folder: Path) -> bool:
    """Tell whether shards are refused as what is saved: Accelerate's own choice for FSDP2."""
    from gpt_finetune.errors import InputError

    def work(rank: int) -> None:
        os.environ["FSDP_STATE_DICT_TYPE"] = "SHARDED_STATE_DICT"
        try:
            train(folder)
        except InputError as error:
            raise SystemExit(7 if error.field == "fsdp_config.fsdp_state_dict_type" else 1) from None

    codes = together(work)  # the second to come may find the first one gone
    return 7 in codes and 0 not in codes


def main(folder: Path, inside: int, outside: int) -> dict[str, Any]:
    import transformers.utils.logging

    from gpt_finetune.hub import travel

    transformers.utils.logging.disable_progress_bar()
    travel.check_class = lambda *arguments: None  # its own tests are elsewhere
    torch.set_num_threads(1)
    make_trainer(folder / "unused")  # here, so that what it imports need not be imported after each fork
    found: dict[str, Any] = {"kills": kills(folder, inside, outside)}
    if "fsdp" in ENGINE:
        found |= {"reshards": reshards(folder), "shards_refused": refused(folder / "shards")}
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[3:]))))
