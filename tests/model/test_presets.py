"""Presets: each names its source, builds, and has the size that the source gives."""

import pytest
import torch

from gpt_finetune import GPTConfig, GPTForCausalLM, GPTModel, preset
from gpt_finetune.errors import InputError
from gpt_finetune.presets import PRESETS


def count_parameters(config: GPTConfig, model_class: type = GPTForCausalLM) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in model_class(config).parameters())


# Exact counts: GPT-2's are those of the released checkpoints (its paper's 117M / 345M / 762M / 1542M were corrected by
# its authors); GPT-NeoX's is in arXiv:2204.06745 section 2.1; nanochat prints its own; Gemma's are its checkpoints'.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt-neox-20b", 20_554_567_680),
        ("nanochat-d20", 560_988_160),
        ("gemma3-270m", 268_098_176),
        ("gemma3-1b", 999_885_952),
    ],
)
def test_preset_has_the_published_number_of_parameters(name, parameters):
    assert count_parameters(preset(name)) == parameters


# Others are published to two or three digits, in millions. GPT-J's card counts 2.5 M more than its own checkpoint has.
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
        ("gpt-j-6b", 6_053, 0.0005),
        ("gpt-oss-20b", 20_910, 0.0005),
        ("gpt-oss-120b", 116_830, 0.0005),
    ],
)
def test_preset_has_the_size_of_its_paper(name, millions, tolerance):
    assert count_parameters(preset(name)) == pytest.approx(millions * 1e6, rel=tolerance)


# arXiv:1706.03762 table 3, encoder and decoder with one vocabulary of "about 37000": base comes 2 M short of its 65 M.
@pytest.mark.parametrize(
    ("name", "millions", "tolerance"), [("transformer-base", 65, 0.031), ("transformer-big", 213, 0.006)]
)
def test_transformer_of_2017_as_a_pair(name, millions, tolerance):
    encoder, decoder = preset(name, is_causal=False), preset(name, add_cross_attention=True)
    shared = encoder.vocab_size * encoder.hidden_size
    pair = count_parameters(encoder, GPTModel) + count_parameters(decoder) - shared
    assert pair == pytest.approx(millions * 1e6, rel=tolerance)


# Of our own ladder, each is what its name says.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("modern-124m", 124), ("modern-350m", 350), ("modern-1b", 1000), ("modern-3b", 3000), ("modern-moe-6m", 6)],
)
def test_modern_sizes_keep_their_names(name, millions):
    assert count_parameters(preset(name)) == pytest.approx(millions * 1e6, rel=0.02)


def test_gpt3_alternates_dense_and_banded_layers():
    config = preset("gpt3-small")
    assert config.layer_types[:3] == ["full_attention", "sliding_attention", "full_attention"]
    assert config.sliding_window == 256


def test_gpt_oss_is_what_transformers_calls_so():
    from transformers import GptOssConfig

    theirs, ours = GptOssConfig(), preset("gpt-oss-120b")
    same = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"]
    same += ["intermediate_size", "num_local_experts", "num_experts_per_tok", "layer_types", "sliding_window"]
    same += ["swiglu_limit", "rope_parameters", "max_position_embeddings", "attention_bias", "tie_word_embeddings"]
    assert {name: getattr(ours, name) for name in same} == {name: getattr(theirs, name) for name in same}
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.layer_types[:2] == ["sliding_attention", "full_attention"]
    assert ours.attention_output_bias


def test_experts_of_the_moe_preset_are_kept_in_balance():
    config = preset("modern-moe-6m", num_hidden_layers=1)
    ids = torch.randint(0, 4096, (2, 16))
    outputs = GPTForCausalLM(config)(input_ids=ids, labels=ids)
    assert outputs.aux_loss >= config.num_experts_per_tok * 0.99  # which it is when all are used alike
    outputs.loss.backward()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_its_source_and_builds(name):
    paper = PRESETS[name].paper
    assert paper.startswith("none: ") or any(year in paper for year in map(str, range(2017, 2027)))
    assert count_parameters(preset(name)) > 0


def test_override_carries_to_what_follows_from_it():
    assert preset("gpt2", hidden_size=384).intermediate_size == 1536


def test_unknown_preset_is_an_input_error():
    with pytest.raises(InputError, match=r"preset = 'gpt-2': there is no such preset.*'gpt2'"):
        preset("gpt-2")
