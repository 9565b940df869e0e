"""GPTConfig: aliases, derived defaults, round trips, and what it refuses."""

import ast
import inspect
import re
import textwrap
import typing
from types import GeneratorType

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from gpt_finetune import GPTConfig
from gpt_finetune.model.configuration_gpt import _LEAST

HINTS = {
    name: hint for name, hint in GPTConfig.__annotations__.items() if typing.get_origin(hint) is not typing.ClassVar
}
ROTARY = {"position_embedding_type": "rotary"}
SLIDING = {"layer_types": ["full_attention", "sliding_attention"] * 6, "sliding_window": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "gated_mlp": True}


def turned(share):
    return {**ROTARY, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": share}}


# What breaks each rule of GPTConfig, and what it has to say.
BROKEN = [
    *(({"head_dim": 64, name: n - 1}, f"{name}={n - 1}: it must be at least {n}") for name, n in _LEAST.items()),
    *(({name: -1.0}, f"{name}=-1.0: it must be above 0") for name in ("attention_scale", "final_logit_softcapping")),
    ({"swiglu_limit": 0.0, "gated_mlp": True}, "swiglu_limit=0.0: it must be above 0"),
    *(({f"{kind}_dropout": 1.5}, f"{kind}_dropout=1.5") for kind in ("embedding", "attention", "residual")),
    ({"residual_dropout": -0.1}, "residual_dropout=-0.1"),
    *(({f"{kind}_token_id": 50257}, f"{kind}_token_id=50257 is outside the vocabulary") for kind in ("bos", "pad")),
    ({"eos_token_id": [1, -2]}, "eos_token_id=-2 is outside the vocabulary"),
    ({**ROTARY, "head_dim": 7}, "head_dim=7"),
    (turned(0.02), "head_dim=64 with partial_rotary_factor=0.02 turns 1 coordinates"),
    (turned(1.5), "partial_rotary_factor=1.5"),
    (
        {**ROTARY, **SLIDING, "rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "says nothing of sliding_attention layers",
    ),
    (
        {**ROTARY, "rope_parameters": {"sliding_attention": {"rope_type": "default"}}},
        "nothing of full_attention layers",
    ),
    ({"position_embedding_type": "sinusoidal", "hidden_size": 15, "num_attention_heads": 3}, "hidden_size=15 is odd"),
    ({**ROTARY, "position_offset": 2}, "position_offset=2 with position_embedding_type='rotary'"),
    ({"num_key_value_heads": 5}, "num_attention_heads=12 is not divisible by num_key_value_heads=5"),
    ({"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers=12"),
    ({"layer_types": ["full_attention"] * 11 + ["linear_attention"]}, "linear_attention"),
    ({"layer_types": ["sliding_attention"] * 12}, "sliding_window=None"),
    ({"sliding_window": 8}, "sliding_window=8"),
    ({"add_cross_attention": True, "block_type": "parallel"}, "add_cross_attention=True with block_type='parallel'"),
    ({"add_cross_attention": True, "block_type": "parallel_shared_norm"}, "block_type='parallel_shared_norm'"),
    ({"add_cross_attention": True, **SLIDING}, "add_cross_attention=True with 'sliding_attention' layers"),
    ({"cross_attention_hidden_size": 64}, "cross_attention_hidden_size=64 needs add_cross_attention=True"),
    ({"num_local_experts": 4, "gated_mlp": True}, "num_local_experts=4 with num_experts_per_tok=None"),
    ({"num_experts_per_tok": 2}, "num_local_experts=None with num_experts_per_tok=2"),
    ({**EXPERTS, "num_experts_per_tok": 5}, "num_experts_per_tok=5 of 4 experts"),
    ({**EXPERTS, "gated_mlp": False}, "num_local_experts=4 with gated_mlp=False"),
    ({"output_router_logits": True}, "output_router_logits=True without num_local_experts"),
    ({"swiglu_limit": 7.0}, "swiglu_limit=7.0 with gated_mlp=False"),
]


@pytest.fixture
def broken_rules(monkeypatch):
    """Return the lines of those rules that fail while the test runs."""
    original, seen = GPTConfig._rules, set()

    def watched(config):
        rules = original(config)
        for holds, message in rules:
            if not holds:
                innermost = rules
                while isinstance(innermost.gi_yieldfrom, GeneratorType):
                    innermost = innermost.gi_yieldfrom
                seen.add(innermost.gi_frame.f_lineno)
            yield holds, message

    monkeypatch.setattr(GPTConfig, "_rules", watched)
    return seen


def lines_of_rules():
    """Return the lines that each `yield` of a rule covers."""
    found = []
    for name in ("_rules", "_position_rules", "_attention_rules", "_mlp_rules"):
        source, first = inspect.getsourcelines(getattr(GPTConfig, name))
        for node in ast.walk(ast.parse(textwrap.dedent("".join(source)))):
            if isinstance(node, ast.Yield):
                found.append(range(first + node.lineno - 1, first + node.end_lineno))
    return found


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


RULES = lines_of_rules()


@pytest.mark.parametrize(("fields", "message"), BROKEN)
def test_impossible_configurations_name_field_and_value(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=re.escape(message)):
        GPTConfig(**fields)


def test_every_rule_has_an_example_that_breaks_it(broken_rules):
    for fields, _ in BROKEN:
        with pytest.raises(StrictDataclassClassValidationError):
            GPTConfig(**fields)
    never = [f"line {rule.start}" for rule in RULES if not broken_rules & set(rule)]
    assert not never
    assert len(RULES) >= 19


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 65}, "hidden_size=65 is not divisible by num_attention_heads=12"),
        ({"num_attention_heads": 0}, "num_attention_heads=0"),
        ({"rope_theta": 5e5}, "rope_parameters=.* has no effect with position_embedding_type='learned'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "has no effect with position_embedding_type="),
    ],
)
def test_what_cannot_be_derived(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("n_layers", "num_hidden_layers"),
        ("num_hiden_layers", "num_hidden_layers"),
        ("n_heads", "num_attention_heads"),
        ("num_kv_heads", "num_key_value_heads"),
        ("num_experts_per_token", "num_experts_per_tok"),
        ("attention_sink", "attention_sinks"),
        ("final_logit_softcap", "final_logit_softcapping"),
        ("rms_norm_epsilon", "norm_eps"),
    ],
)
def test_a_misspelt_field_is_told_its_name(name, meant):
    with pytest.raises(ValueError, match=rf"{name}=3: there is no such field; did you mean {meant}\?"):
        GPTConfig(**{name: 3})


def test_a_field_like_no_other():
    with pytest.raises(ValueError, match="xyzzy=1: there is no such field; see GPTConfig's fields"):
        GPTConfig(xyzzy=1)


@pytest.mark.parametrize("name", HINTS)
def test_every_field_refuses_a_wrong_type(name):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        GPTConfig(**{name: object()})


@pytest.mark.parametrize("name", [name for name in HINTS if int in (HINTS[name], *typing.get_args(HINTS[name]))])
def test_a_truth_value_is_no_number(name):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        GPTConfig(**{name: True})


@pytest.mark.parametrize("name", [name for name in HINTS if typing.get_origin(HINTS[name]) is typing.Literal])
def test_a_choice_is_among_the_known(name):
    with pytest.raises(StrictDataclassFieldValidationError, match=rf"(?s){name}.*batchnorm"):
        GPTConfig(**{name: "batchnorm"})


@pytest.mark.parametrize(
    "name",
    [
        "embedding_dropout",
        "attention_dropout",
        "residual_dropout",
        "router_aux_loss_coef",
        "norm_eps",
        "initializer_range",
    ],
)
def test_a_whole_number_will_do_for_a_fraction(name):
    assert getattr(GPTConfig(**{name: 0}), name) == 0


@pytest.mark.parametrize("name", ["attention_scale", "final_logit_softcapping", "swiglu_limit"])
def test_a_whole_number_will_do_for_a_factor(name):
    assert getattr(GPTConfig(**{name: 7, "gated_mlp": True}), name) == 7


def test_assignment_is_checked_too():
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        GPTConfig().hidden_size = "wide"


def test_what_was_assigned_is_checked_against_the_rest_on_saving(tmp_path):
    config = GPTConfig()
    config.num_key_value_heads = 5
    with pytest.raises(StrictDataclassClassValidationError, match="num_key_value_heads=5"):
        config.save_pretrained(tmp_path)
