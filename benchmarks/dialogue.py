"""What fine-tuning on dialogues brings, by language: the base, LoRA and full fine-tuning on the same held-out examples.

    accelerate launch recipes/finetune.py --config configs/finetune/smollm2-lora-dialogue.yaml
    accelerate launch recipes/finetune.py --config configs/finetune/smollm2-full-dialogue.yaml
    PYTHONPATH=. python benchmarks/dialogue.py

Measures each with recipes/evaluate_.py in a fresh process: token-weighted loss of the answers, chrF and the like of
greedy answers to all held-out prompts, and the share of answers that the model ends itself. Nothing held out was
trained on, nor anything that opens with the same words. Writes `benchmarks/results/dialogue.json`.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
RUNS = {name: ROOT / "runs" / f"smollm2-{name}-dialogue" for name in ("lora", "full")}
BASE = "smollm2-135m-instruct"
TOLD = ("eval_loss", "bits_per_byte", "chrf", "token_f1", "stop_rate", "answer_tokens", "eval_tokens")


def measured(model: str, folder: Path) -> dict[str, dict[str, float]]:
    """Return a model's figures by language."""
    output = folder / "figures.json"
    command = [sys.executable, str(ROOT / "recipes" / "evaluate_.py"), f"model={model}", f"run={RUNS['lora']}"]
    subprocess.run([*command, "answer.batch_size=64", f"output={output}"], check=True)
    figures: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return {
        Path(source).stem: {name: round(found[name], 4) for name in TOLD if name in found}
        for source, found in figures.items()
    }


def cost(run: Path) -> dict[str, Any]:
    """Return what a run took."""
    receipt = json.loads((run / "run.json").read_text(encoding="utf-8"))
    model, figures = receipt["model"], receipt["figures"]
    return {
        "trained_parameters": model["parameters_trained"],
        "share_trained": round(model["parameters_trained"] / model["parameters"], 4),
        "minutes": round(receipt["duration_s"] / 60, 1),
        "tokens_per_second": round(figures["tokens_per_second"]),
        "held_out_loss": round(figures["eval_loss"], 4),
        "held_out_loss_before": round(receipt["baselines"]["before training"]["eval_loss"], 4),
    }


def main() -> None:
    """Measure, print and write down."""
    with TemporaryDirectory() as folder:
        models = {"base": BASE} | {name: str(run) for name, run in RUNS.items()}
        by_language = {name: measured(model, Path(folder)) for name, model in models.items()}
    costs = {name: cost(run) for name, run in RUNS.items()}
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32",
        "figures": by_language,
        "runs": costs,
        "loss_of_lora_above_full": round(costs["lora"]["held_out_loss"] / costs["full"]["held_out_loss"] - 1, 4),
    }
    file = Path(__file__).parent / "results" / "dialogue.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
