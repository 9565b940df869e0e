"""Training speed and memory of a GPT-2 of ours under GPTTrainer, against peers on the same work.

    PYTHONPATH=. python benchmarks/training.py                                   # transformers with its Trainer, S1
    PYTHONPATH=. python benchmarks/training.py --size S2 --ways peers environment --rounds 5
    PYTHONPATH=. python benchmarks/training.py --ways nanoGPT transformers ours --nanogpt ../nanoGPT

Ways and sizes are tables in `benchmarks/peers/ways.py`. The ways take turns, each measurement in a fresh process: the
median over some steps after a warm-up, and the process's peak of resident memory; ours is started by `accelerate
launch`. Ways of one architecture begin with the same weights and see the same rows, so that their losses after the
last step must agree (1e-5 in float32, 1e-3 in bfloat16). Ceilings, which are the matrix products at the model's shapes
and a copy of memory, have a turn of their own. Writes `benchmarks/results/training.json` for S1 in float32, else
`training-<size>-<precision>.json`. The first way to be named is the one that the others are compared with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from peers.measuring import ENVIRONMENTS, ROOT, Figures, arguments, ceilings, fresh, in_turns, machine, medians, write
from peers.ways import LOSSES_AGREE, SETS, SIZES, WAYS, Size

from gpt_finetune.allocation import keep_memory, start_anew

STEPS, ROUNDS = 4, 3
CEILINGS = "ceilings"
LAUNCH = ["-m", "accelerate.commands.launch", "--quiet", f"--config_file={ROOT}/configs/accelerate/single.yaml"]
LITGPT = ROOT / ".venv-litgpt" / "bin" / "python"


def one(way: str, given: Any) -> Figures:
    """Measure one way in this process."""
    size = SIZES[given.size]
    if way == CEILINGS:
        return ceilings(size.batch * size.tokens, size.width, size.vocabulary, given.precision)
    chosen = WAYS[way]
    if chosen.ours and chosen.loop == "trainer":
        start_anew()  # as every recipe does before it imports torch
        keep_memory()
    import torch
    from peers import steps

    torch.set_float32_matmul_precision(chosen.matmul)
    weights = given.weights / ("llama" if chosen.model == "llama" else "gpt2")
    if chosen.loop == "bare":
        return steps.bare(chosen, size, weights, given.steps, given.precision, given.nanogpt)
    return steps.under_trainer(chosen, size, weights, given.steps, given.precision)


def command(way: str, given: Any, weights: str) -> list[str]:
    """Return the words that measure one way in a process of its own."""
    chosen = WAYS.get(way)
    if chosen is not None and chosen.model == "litgpt":
        asked = {**vars(SIZES[given.size]), "steps": given.steps, "precision": given.precision}
        return [str(given.litgpt), str(ROOT / "benchmarks" / "peers" / "litgpt_step.py"), json.dumps(asked)]
    launched = LAUNCH if chosen is not None and chosen.ours and chosen.loop == "trainer" else []
    words = ["--one", way, "--weights", weights, "--size", given.size, "--precision", given.precision]
    words += ["--steps", str(given.steps)] + (["--nanogpt", str(given.nanogpt)] if given.nanogpt else [])
    return [sys.executable, *launched, __file__, *words]


def training_flops(size: Size) -> int:
    """Return the floating-point operations of a token's training step, as our own costs count them."""
    from gpt_finetune import preset
    from gpt_finetune.costs import estimate

    shape = {"n_layer": size.layers, "n_embd": size.width, "n_head": size.heads, "n_positions": size.tokens}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return estimate(preset("gpt2", vocab_size=size.vocabulary, **ids, **shape), size.tokens).training_flops


def disagreement(found: dict[str, Figures]) -> dict[str, float]:
    """Return how far the last losses lie apart, by architecture; ways that round more are left out."""
    groups: dict[str, list[float]] = {}
    for name, figures in found.items():
        exact = WAYS[name].matmul == "highest" and not WAYS[name].narrow
        if exact and WAYS[name].model in ("gpt2", "llama"):
            groups.setdefault(WAYS[name].model, []).append(figures["last_loss"])
    return {model: max(losses) - min(losses) for model, losses in groups.items() if len(losses) > 1}


def report(given: Any, measured: dict[str, list[Figures]]) -> Figures:
    """Return the result file's content.

    Raises:
        SystemExit: Losses that must agree do not.
    """
    size, ways = SIZES[given.size], [name for name in measured if name != CEILINGS]
    found = {name: medians(measured[name], digits=7) for name in ways}
    apart = disagreement(found)
    if apart and max(apart.values()) > LOSSES_AGREE[given.precision]:
        raise SystemExit(f"the losses differ, so the work does: {apart}, {found}")
    against, limit = found[ways[0]], medians(measured[CEILINGS])
    flops = training_flops(size)
    told: Figures = {}
    for name, figures in found.items():
        told[name] = {key: round(value, 4) for key, value in figures.items()}
        rates = [row["tokens_per_second"] for row in measured[name]]
        told[name]["lowest_and_highest"] = [round(min(rates), 1), round(max(rates), 1)]
        told[name]["times_faster"] = round(figures["tokens_per_second"] / against["tokens_per_second"], 3)
        told[name]["share_of_memory"] = round(figures["peak_mb"] / against["peak_mb"], 3)
        if WAYS[name].model == "gpt2":
            told[name]["share_of_ceiling"] = round(figures["tokens_per_second"] * flops / limit["gflops"] / 1e9, 3)
    ours = told.get("ours", {})
    return {
        "size": given.size,
        "shape": str(size),
        "precision": given.precision,
        **machine(),
        "ceiling_gflops": round(limit["gflops"], 1),
        "copy_gb_per_second": round(limit["copy_gb_per_second"], 1),
        "rounds": given.rounds,
        "steps": given.steps,
        "against": ways[0],
        "losses_apart": {model: float(f"{value:.1e}") for model, value in apart.items()},
        **told,
        **{key: ours[key] for key in ("times_faster", "share_of_memory") if key in ours},
    }


def main() -> None:
    """Measure in turns, print and write down."""
    parser = arguments("Training speed and memory against peers.", ROUNDS)
    parser.add_argument("--size", choices=SIZES, default="S1", help="of model and batch")
    parser.add_argument("--precision", choices=LOSSES_AGREE, default="float32", help="of products; weights are float32")
    parser.add_argument(
        "--ways", nargs="+", choices=[*SETS, *WAYS], default=["as-shipped"], metavar="WAY", help=f"{[*SETS, *WAYS]}"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="steps measured after one that warms up; 3 or more")
    parser.add_argument("--litgpt", type=Path, default=LITGPT, help="Python of an environment that has litgpt")
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--one", metavar="WAY", help="measure one way in this process, and print it")
    parser.add_argument("--weights", type=Path, help="with --one: where the first weights lie")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given)))
        return
    names = list(dict.fromkeys(name for word in given.ways for name in SETS.get(word, (word,))))
    missing = [name for name in names if WAYS[name].model == "litgpt" and not given.litgpt.is_file()]
    if missing:
        print(f"left out: {missing}: no {given.litgpt}; `make .venv-litgpt/ready` makes it", file=sys.stderr)
    from peers.nanogpt import is_checkout  # with torch, which each way imports when its memory is laid out

    if "nanoGPT" in names and not is_checkout(given.nanogpt):
        parser.error(f"--nanogpt = {given.nanogpt}: there is no model.py in it. Give a checkout of nanoGPT")
    names = [name for name in names if name not in missing]
    with TemporaryDirectory() as weights:
        from peers.steps import save_first_weights

        for kind in {WAYS[name].model for name in names} & {"gpt2", "llama"} | {"gpt2"}:
            save_first_weights(SIZES[given.size], kind, Path(weights) / kind)
        measured = in_turns(
            {
                CEILINGS: lambda: fresh(command(CEILINGS, given, weights)),
                **{name: _turn(name, given, weights) for name in names},
            },
            given.rounds,
        )
    told = report(given, measured)
    standard = given.size == "S1" and given.precision == "float32"
    write("training" if standard else f"training-{given.size}-{given.precision}", told, given.results)


def _turn(name: str, given: Any, weights: str) -> Any:
    return lambda: fresh(command(name, given, weights), ENVIRONMENTS[WAYS[name].environment])


if __name__ == "__main__":
    main()
