"""configs/accelerate: each file says what it is for and how it is launched, and Accelerate knows all that it names."""

from __future__ import annotations

import argparse

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from support import ROOT

FILES = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
ENGINES = {
    "single": "NO",
    "cpu-2": "MULTI_GPU",
    "gpu-ddp": "MULTI_GPU",
    "fsdp2": "FSDP",
    "fsdp2-cpu-2": "FSDP",
    "deepspeed-zero2": "DEEPSPEED",
    "deepspeed-zero3": "DEEPSPEED",
    "tensor-parallel": "MULTI_GPU",
    "multi-node": "MULTI_GPU",
}


def known_options() -> argparse.Namespace:
    """Return the options of `accelerate launch`; what a section of a file names, it passes on as these."""
    return launch_command_parser().parse_args(["script.py"])


def test_each_engine_has_its_file():
    assert {file.stem: yaml.safe_load(file.read_text())["distributed_type"] for file in FILES} == ENGINES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_knows_every_field(file):
    made = ClusterConfig.from_yaml_file(str(file))  # refuses keys of the top that it does not know
    options = vars(known_options())
    sections = {**made.fsdp_config, **made.deepspeed_config}  # of these it passes over what it does not know
    assert [name for name in sections if name not in options] == []
    if made.fsdp_config:
        assert made.fsdp_config["fsdp_version"] == 2
        assert made.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"  # one folder at the end, see save_model
    assert made.mixed_precision == "no"  # train.precision says


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_comment_says_what_it_is_for(file):
    head = file.read_text(encoding="utf-8").split("compute_environment")[0].splitlines()
    assert head
    assert all(line.startswith("# ") and len(line) <= 120 for line in head)
    if file.stem != "single":
        assert any(f"--config_file configs/accelerate/{file.name}" in line for line in head)
