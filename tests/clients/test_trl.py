from __future__ import annotations

import json

import pytest

pytestmark = [pytest.mark.client("trl"), pytest.mark.slow]

PAIRS = {
    "prompt": ["the quick", "def add"] * 8,
    "chosen": [" brown fox", "(a, b):"] * 8,
    "rejected": [" lazy dog", "\n return"] * 8,
}
SETTINGS = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "lr_scheduler_type": "constant",
}
NAMES = pytest.mark.parametrize("name", ["gpt2", "llama", "modern", "gpt-oss"])


def dataset(**columns):
    from datasets import Dataset

    return Dataset.from_dict(columns)


def losses(trainer):
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == SETTINGS["max_steps"]
    return found


def falls(found):
    return sum(found[-3:]) < sum(found[:3])


@NAMES
def test_sft(save, name, tmp_path):
    """SFTTrainer from a folder: the loss falls"""
    from trl import SFTConfig, SFTTrainer

    texts = [prompt + chosen for prompt, chosen in zip(PAIRS["prompt"], PAIRS["chosen"], strict=True)]
    trainer = SFTTrainer(str(save(name)), SFTConfig(tmp_path / "out", **SETTINGS), train_dataset=dataset(text=texts))
    assert falls(losses(trainer))


@NAMES
def test_sft_with_packing_and_an_adapter(save, name, tmp_path):
    """SFTTrainer with packed rows and a plain LoraConfig: the loss falls

    `packing=True, packing_strategy="wrapped"`: the default strategy is for flash attention.
    """
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    texts = [prompt + chosen for prompt, chosen in zip(PAIRS["prompt"], PAIRS["chosen"], strict=True)] * 8
    args = SFTConfig(tmp_path / "out", packing=True, packing_strategy="wrapped", max_length=16, **SETTINGS)
    trainer = SFTTrainer(str(save(name)), args, train_dataset=dataset(text=texts), peft_config=LoraConfig())
    assert falls(losses(trainer))


@NAMES
def test_dpo(save, name, tmp_path):
    """DPOTrainer from a folder: the loss falls"""
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(str(save(name)), args=DPOConfig(tmp_path / "out", **SETTINGS), train_dataset=dataset(**PAIRS))
    assert falls(losses(trainer))


@NAMES
def test_kto(save, name, tmp_path):
    """KTOTrainer from a folder: the loss falls"""
    from trl import KTOConfig, KTOTrainer

    columns = {"prompt": PAIRS["prompt"] * 2, "completion": PAIRS["chosen"] + PAIRS["rejected"]}
    data = dataset(**columns, label=[True] * 16 + [False] * 16)
    trainer = KTOTrainer(str(save(name)), args=KTOConfig(tmp_path / "out", **SETTINGS), train_dataset=data)
    assert falls(losses(trainer))


@NAMES
def test_reward(save, name, tmp_path):
    """RewardTrainer from a folder: the loss falls"""
    from trl import RewardConfig, RewardTrainer

    args = RewardConfig(tmp_path / "out", **SETTINGS)
    assert falls(losses(RewardTrainer(str(save(name)), args=args, train_dataset=dataset(**PAIRS))))


@NAMES
def test_grpo(save, name, tmp_path):
    """GRPOTrainer from a folder: the reward rises"""
    from trl import GRPOConfig, GRPOTrainer

    def likes_low_ids(completion_ids, **_):
        return [-sum(ids) / len(ids) / 100 for ids in completion_ids]

    settings = {**SETTINGS, "max_steps": 24, "per_device_train_batch_size": 8}
    args = GRPOConfig(tmp_path / "out", num_generations=4, max_completion_length=8, **settings)
    data = dataset(prompt=PAIRS["prompt"])
    trainer = GRPOTrainer(str(save(name)), reward_funcs=likes_low_ids, args=args, train_dataset=data)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-8:]) > sum(rewards[:8])


def test_code_that_travels(save, without_us):
    """SFT, DPO, KTO, Reward and GRPO from a folder, where gpt_finetune is not installed

    `trust_remote_code=True` in each trainer's config.
    """
    script = """
import json
import trl
from datasets import Dataset
folder, pairs, settings = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
texts = {"text": [prompt + chosen for prompt, chosen in zip(pairs["prompt"], pairs["chosen"])]}
labelled = {"prompt": pairs["prompt"], "completion": pairs["chosen"], "label": [True, False] * 8}
data = {"SFT": texts, "DPO": pairs, "KTO": labelled, "Reward": pairs, "GRPO": {"prompt": pairs["prompt"]}}
for name, columns in data.items():
    more = {"num_generations": 4, "max_completion_length": 4} if name == "GRPO" else {}
    args = getattr(trl, name + "Config")("out", trust_remote_code=True, **more, **settings | {"max_steps": 1})
    reward = {"reward_funcs": lambda completions, **_: [float(len(said)) for said in completions]} if more else {}
    trainer = getattr(trl, name + "Trainer")(folder, args=args, train_dataset=Dataset.from_dict(columns), **reward)
    trainer.train()
    assert type(trainer.accelerator.unwrap_model(trainer.model)).__module__.startswith("transformers_modules"), name
"""
    without_us(script, save("modern"), json.dumps(PAIRS), json.dumps(SETTINGS))
