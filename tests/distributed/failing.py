"""A training in which one rank alone meets a bad row, is killed, or hangs; the others wait for its gradients.

accelerate launch --config_file configs/accelerate/cpu-2.yaml tests/distributed/failing.py output_dir=FOLDER how=hang
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gpt_finetune.config import run


@dataclass
class FailingConfig:
    """What the training takes.

    Args:
        output_dir: Its folder.
        how: What befalls process 1: bad, killed or hang.
        timeout: Seconds that the processes wait for each other.
    """

    output_dir: str = ""
    how: str = "bad"
    timeout: int = 60


class Rows(torch.utils.data.Dataset):
    def __init__(self, how: str) -> None:
        self.how = how

    def __len__(self) -> int:
        return 16

    def __getitem__(self, place: int) -> dict[str, torch.Tensor]:
        from gpt_finetune.errors import InputError

        if place == 10 and self.how == "killed":  # of process 1
            os.kill(os.getpid(), signal.SIGKILL)
        if place == 10 and self.how == "hang":
            time.sleep(600)
        if place == 10:
            raise InputError("rows.jsonl, row 10", 7, "there is no such label", "Mend it")
        return {"input_ids": torch.arange(4), "labels": torch.arange(4)}


def main(config: FailingConfig) -> None:
    from gpt_finetune import GPTForCausalLM, preset
    from gpt_finetune.training.arguments import TrainConfig, training_arguments
    from gpt_finetune.training.run import Run
    from gpt_finetune.training.trainer import GPTTrainer

    fields = {"disable_tqdm": True, "train_sampling_strategy": "sequential", "ddp_timeout": config.timeout}
    train = TrainConfig(batch_size=2, max_steps=4, trainer=fields)
    with Run(config.output_dir, "failing", config) as launched:
        arguments = training_arguments(train, Path(config.output_dir), evaluate=False)
        model = GPTForCausalLM(preset("tiny", vocab_size=8, bos_token_id=1, eos_token_id=1, pad_token_id=0))
        GPTTrainer(model=model, args=arguments, train_dataset=Rows(config.how), callbacks=launched.callbacks()).train()


if __name__ == "__main__":
    run(main, FailingConfig)
