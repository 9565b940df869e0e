"""Does training in bfloat16 learn what training in float32 learns? The quickstart's model, the same rows, 500 steps.

    PYTHONPATH=. python benchmarks/precision.py [--steps 500] [--seeds 2]

Each way is a run of recipes/pretrain.py in a process of its own: float32 (with two seeds, for how much chance alone
moves the figures), autocast to bfloat16 with torch's fused attention, the default, which has short rows attend by plain
products, and the residual stream in bfloat16 besides. Told are the loss on held-out files at the end, and how
far the training loss, averaged over windows of fifty steps, lies from that of float32. Writes
`benchmarks/results/precision.json`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from peers.measuring import ROOT, Figures, arguments, machine, write

STEPS, SEEDS, WINDOW = 500, 2, 50
CONFIG = ROOT / "configs" / "pretrain" / "quickstart.yaml"
WAYS: dict[str, list[str]] = {
    "float32": ["train.precision=float32"],
    "bfloat16, fused attention": ["train.precision=bfloat16", "train.short_attention=fused"],
    "bfloat16": ["train.precision=bfloat16"],
    "bfloat16, stream in bfloat16": ["train.precision=bfloat16", "train.residual=bfloat16"],
}


def one(words: list[str], steps: int, seed: int, folder: Path) -> Figures:
    """Train once; return the end's loss, and the training loss at each step."""
    short = [f"train.max_steps={steps}", f"train.warmup_steps={steps // 30}", f"train.decay_steps={steps * 3 // 5}"]
    quiet = ["train.log_steps=1", f"train.eval_steps={steps}", "train.save_steps=null", "sample.prompts=[]"]
    settings = [f"output_dir={folder}", f"train.seed={seed}", *short, *quiet, *words]
    command = [sys.executable, str(ROOT / "recipes" / "pretrain.py"), "--config", str(CONFIG), *settings]
    subprocess.run([*command, "--overwrite"], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    receipt = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    return {"held_out_loss": receipt["figures"]["eval_loss"], "training": smooth(losses)}


def smooth(losses: list[float], window: int = WINDOW) -> list[float]:
    """Return the means of the windows, the first one left out where there are more: there the loss falls steeply."""
    means = [statistics.fmean(losses[i : i + window]) for i in range(0, len(losses), window)]
    return means[1:] or means


def compare(runs: dict[str, list[Figures]]) -> Figures:
    """Return each way's figures beside those of float32 with the same seed.

    Args:
        runs: Way -> what `one` said, a run a seed.
    """
    exact = runs["float32"]
    told: Figures = {}
    for name, found in runs.items():
        apart = [
            abs(mine - theirs)
            for run, other in zip(found, exact, strict=False)
            for mine, theirs in zip(run["training"], other["training"], strict=True)
        ]
        told[name] = {
            "held_out_loss": round(statistics.fmean(run["held_out_loss"] for run in found), 4),
            "held_out_losses": [round(run["held_out_loss"], 4) for run in found],
            "largest_distance_of_training_loss": round(max(apart), 4),
            "mean_distance_of_training_loss": round(statistics.fmean(apart), 4),
        }
    if len(exact) > 1:
        apart = [abs(a - b) for a, b in zip(exact[0]["training"], exact[1]["training"], strict=True)]
        told["float32, another seed"] = {
            "largest_distance_of_training_loss": round(max(apart), 4),
            "mean_distance_of_training_loss": round(statistics.fmean(apart), 4),
        }
    return told


def main() -> None:
    """Train, print and write down."""
    parser = arguments("Training in bfloat16 beside float32.", 1)
    parser.add_argument("--steps", type=int, default=STEPS, help="of each run")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of each way")
    given = parser.parse_args()
    runs: dict[str, list[Figures]] = {name: [] for name in WAYS}
    with TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for name, words in WAYS.items():
                runs[name].append(one(words, given.steps, seed, Path(folder) / "run"))
                print(f"{name}, seed {seed}: {runs[name][-1]}", file=sys.stderr)
    told = {**machine(), "steps": given.steps, "seeds": given.seeds, "windows": WINDOW, **compare(runs)}
    write("precision", told, given.results)


if __name__ == "__main__":
    main()
