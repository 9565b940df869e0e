"""GPTConfig: aliases, derived defaults, round trips, and what it refuses."""

import pytest

from gpt_finetune import GPTConfig, preset
from gpt_finetune.errors import InputError
from gpt_finetune.presets import PRESETS


def test_defaults_are_gpt2_small():
    config = GPTConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.head_dim, config.intermediate_size, config.num_key_value_heads) == (64, 3072, 12)
    assert config.layer_types == ["full_attention"] * 12


def test_gpt2_short_names_are_aliases():
    config = GPTConfig(n_embd=64, n_layer=3, n_head=4, n_positions=32, resid_pdrop=0.1, n_inner=100)
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (64, 3, 16)
    assert (config.n_positions, config.residual_dropout, config.intermediate_size) == (32, 0.1, 100)


def test_round_trip_keeps_every_field(make_config, architecture, tmp_path):
    config = make_config(architecture)
    config.save_pretrained(tmp_path)
    again = GPTConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert GPTConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_gated_mlp_has_the_parameters_of_a_plain_one():
    gated = GPTConfig(gated_mlp=True).intermediate_size
    assert gated % 64 == 0
    assert abs(3 * gated - 2 * 3072) < 3 * 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layers": 3}, "n_layers=3.*did you mean num_hidden_layers"),
        ({"num_hiden_layers": 3}, "did you mean num_hidden_layers"),
        ({"xyzzy": 1}, "xyzzy=1: there is no such field"),
        ({"hidden_size": 65}, "hidden_size=65 is not divisible by num_attention_heads=12"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"num_key_value_heads": 5}, "num_attention_heads=12 is not divisible by num_key_value_heads=5"),
        ({"position_embedding_type": "rotary", "head_dim": 7}, "head_dim=7"),
        (
            {"position_embedding_type": "sinusoidal", "hidden_size": 15, "num_attention_heads": 3},
            "hidden_size=15 is odd",
        ),
        ({"rope_theta": 5e5}, "rope_parameters=.* has no effect with position_embedding_type='learned'"),
        ({"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers=12"),
        ({"layer_types": ["full_attention"] * 11 + ["linear_attention"]}, "linear_attention"),
        ({"layer_types": ["sliding_attention"] * 12}, "sliding_window=None"),
        ({"sliding_window": 8}, "sliding_window=8"),
        ({"layer_types": ["sliding_attention"] * 12, "sliding_window": 0}, "sliding_window=0"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"residual_dropout": 1.5}, "residual_dropout=1.5"),
        ({"eos_token_id": 50257}, "eos_token_id=50257 is outside the vocabulary"),
        ({"eos_token_id": [1, -2]}, "eos_token_id=-2 is outside the vocabulary"),
        ({"hidden_act": "geglu"}, "hidden_act.*geglu"),
        ({"norm_type": "batchnorm"}, "norm_type.*batchnorm"),
        ({"vocab_size": "many"}, "vocab_size.*many"),
    ],
)
def test_impossible_configurations_name_field_and_value(fields, message):
    with pytest.raises(Exception, match=f"(?s){message}"):
        GPTConfig(**fields)


def test_assignment_is_checked_too():
    with pytest.raises(Exception, match="hidden_size"):
        GPTConfig().hidden_size = "wide"


# Radford et al. 2019 publish 117M / 345M / 762M / 1542M, since corrected by the authors' own release notes to
# 124M / 355M / 774M / 1558M; the exact counts are those of the released checkpoints.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_preset_has_the_published_number_of_parameters(name, parameters, count_parameters):
    assert count_parameters(preset(name)) == parameters


# GPT-1's own authors say 117 M; the GPT-3 paper gives each of its sizes to two or three digits.
@pytest.mark.parametrize(
    ("name", "millions", "tolerance"),
    [
        ("gpt1", 117, 0.005),
        ("gpt3-small", 125, 0.005),
        ("gpt3-medium", 350, 0.02),
        ("gpt3-large", 760, 0.005),
        ("gpt3-xl", 1_300, 0.02),
        ("gpt3-2.7b", 2_700, 0.02),
        ("gpt3-6.7b", 6_700, 0.01),
        ("gpt3-13b", 13_000, 0.01),
        ("gpt3-175b", 175_000, 0.005),
    ],
)
def test_preset_has_the_size_of_its_paper(name, millions, tolerance, count_parameters):
    assert count_parameters(preset(name)) == pytest.approx(millions * 1e6, rel=tolerance)


def test_gpt3_alternates_dense_and_banded_layers():
    config = preset("gpt3-small")
    assert config.layer_types[:3] == ["full_attention", "sliding_attention", "full_attention"]
    assert config.sliding_window == 256


def test_modern_124m_keeps_its_name(count_parameters):
    assert count_parameters(preset("modern-124m")) == pytest.approx(124e6, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_builds(name, count_parameters):
    assert PRESETS[name].paper
    assert count_parameters(preset(name)) > 0


def test_override_carries_to_what_follows_from_it():
    assert preset("gpt2", hidden_size=384).intermediate_size == 1536


def test_unknown_preset_is_an_input_error():
    with pytest.raises(InputError, match=r"preset = 'gpt-2': there is no such preset.*'gpt2'"):
        preset("gpt-2")


@pytest.fixture
def count_parameters():
    import torch

    from gpt_finetune import GPTForCausalLM

    def count(config: GPTConfig) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in GPTForCausalLM(config).parameters())

    return count
