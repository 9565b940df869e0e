"""The configuration of a GPT: every architectural choice as one typed, checked field."""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.generation import GenerationConfig

# Written into every config.json, so that plain `save_pretrained` is enough for any Auto class to find the code.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt.GPTConfig",
    "AutoModel": "modeling_gpt.GPTModel",
    "AutoModelForCausalLM": "modeling_gpt.GPTForCausalLM",
    "AutoModelForMaskedLM": "heads_gpt.GPTForMaskedLM",
    "AutoModelForMultipleChoice": "heads_gpt.GPTForMultipleChoice",
    "AutoModelForQuestionAnswering": "heads_gpt.GPTForQuestionAnswering",
    "AutoModelForSequenceClassification": "heads_gpt.GPTForSequenceClassification",
    "AutoModelForTokenClassification": "heads_gpt.GPTForTokenClassification",
}

if TYPE_CHECKING:
    # Never runs. transformers copies a file together with those that its text imports, and a config is saved with every
    # model: so all the files that AUTO_MAP names travel, whichever class was saved.
    from .heads_gpt import GPTTaskModel  # noqa: F401

# Keys that transformers and its companions pass to or store in a config and that are not architecture.
# fmt: off
_LIBRARY_KEYS = frozenset({
    "_attn_implementation_internal", "_commit_hash", "_experts_implementation_internal", "_name_or_path",
    "attn_implementation", "experts_implementation", "is_decoder", "model_type", "name_or_path", "num_labels",
    "output_attentions", "partial_rotary_factor", "per_layer_config", "pretraining_tp", "quantization_config",
    "rope_scaling", "rope_theta", "task_specific_params", "tie_encoder_decoder", "tie_last_hidden_states",
    "tokenizer_class", "torch_dtype", "transformers_weights",
})
# fmt: on


# Fields that count or measure something, with the least that they may be (those that may be None, if they are not).
_LEAST = {
    "vocab_size": 1,
    "hidden_size": 1,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 1,
    "intermediate_size": 1,
    "max_position_embeddings": 1,
    "position_offset": 0,
    "sliding_window": 2,  # with 1, transformers' sliding cache would keep everything
    "num_local_experts": 1,
    "num_experts_per_tok": 1,
    "router_aux_loss_coef": 0,
    "cross_attention_hidden_size": 1,
    "norm_eps": 0,
    "initializer_range": 0,
}


@strict
class GPTConfig(PreTrainedConfig):
    """Configuration of [`GPTModel`] and its heads; the defaults are GPT-2 small (Radford et al. 2019).

    The fields bear transformers' long names; GPT-2's short ones (`n_embd`, `n_layer`, `n_head`, `n_positions`,
    `n_inner`, `resid_pdrop`, …) are accepted as aliases. A field that does not exist is an error, never ignored.

    Args:
        vocab_size: Number of token ids, special tokens included.
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Query heads a layer.
        num_key_value_heads: Key and value heads a layer: as many as query heads (None), fewer for grouped-query
            attention (arXiv:2305.13245), 1 for multi-query (arXiv:1911.02150).
        head_dim: Width of one head; None means `hidden_size / num_attention_heads`.
        intermediate_size: Inner width of the MLP, or of each expert; None means 4 x `hidden_size`, or 8/3 of it,
            rounded up to a multiple of 64, when the MLP is gated.
        max_position_embeddings: Longest sequence, in tokens.
        position_embedding_type: `learned` table (GPT-1, GPT-2, GPT-3), fixed `sinusoidal` waves (arXiv:1706.03762
            section 3.5), `rotary` (arXiv:2104.09864) or `none`.
        position_offset: Rows of a learned table before that of position 0 (OPT has 2).
        rope_parameters: `{"rope_type", "rope_theta", …}` as everywhere in transformers, YaRN (arXiv:2309.00071) and
            `partial_rotary_factor` (the share of a head that turns) included; or one such dict a layer type.
        scale_embeddings: Multiply token embeddings by sqrt(`hidden_size`) (arXiv:1706.03762 section 3.4).
        embedding_norm: Normalise the embeddings before the first block.
        norm_type: `layernorm`, `rmsnorm` (arXiv:1910.07467) or `zero_centered_rmsnorm`, whose weights are kept less 1.
        norm_affine: Norms have weights (and biases, if of the kind that has them).
        norm_eps: Constant added to the variance.
        block_type: Where norms stand and how sub-layers meet: `pre_norm` (GPT-2), `post_norm` (GPT-1, the 2017
            Transformer), `sandwich_norm` (before and behind each: Gemma), or attention and MLP beside each other, on a
            norm each (`parallel`: GPT-NeoX, arXiv:2204.06745) or on one for both (`parallel_shared_norm`: GPT-J).
        hidden_act: `gelu_new` (the tanh form), `gelu`, `quick_gelu` (x sigmoid(1.702 x)), `relu`, `relu2` (squared,
            arXiv:2109.08668) or `silu`.
        gated_mlp: Multiply the activation by a second projection (arXiv:2002.05202).
        swiglu_limit: Clamp the gate and that projection to this, and add 1 to the latter (gpt-oss); None does neither.
        mlp_bias: Biases on the MLP projections, and on the router of experts.
        num_local_experts: MLPs a layer, of which each token takes a few (arXiv:1701.06538); None means one, for all.
        num_experts_per_tok: How many it takes.
        router_aux_loss_coef: Weight of the load-balancing loss (arXiv:2101.03961), added to the language-modelling
            loss when `output_router_logits` is set; None means 0.001, or 0 without experts.
        output_router_logits: Return the router's logits and that loss.
        attention_bias: Biases on the projections to queries, keys and values.
        attention_output_bias: Bias on the attention's output projection; None means as `attention_bias`.
        attention_scale: Factor of the attention scores; None means 1 / sqrt(`head_dim`).
        attention_sinks: A learned logit a head, without a value, in each softmax (gpt-oss; arXiv:2309.17453).
        qk_norm: Normalise queries and keys per head before they are rotated (arXiv:2010.04245).
        is_causal: Tokens see only what came before; False makes an encoder (masked LM, `EncoderDecoderModel`).
        layer_types: One entry a layer, `full_attention` or `sliding_attention`; None means all full.
        sliding_window: Tokens that a sliding layer sees, the current one included; without `is_causal`, to each side.
        add_cross_attention: Attend to an encoder's states too (arXiv:1706.03762 section 3.2.3).
        cross_attention_hidden_size: Their width; None means `hidden_size`.
        embedding_dropout: Dropout after the embeddings.
        attention_dropout: Dropout on attention weights.
        residual_dropout: Dropout on what each sub-layer adds to the residual stream.
        initializer_range: Standard deviation of the initial weights.
        scale_residual_init: Divide it by sqrt(2 x layers) for projections into the residual stream
            (GPT-2, section 2.3).
        tie_word_embeddings: Share the output head with the token embedding.
        lm_head_bias: Bias on the output head (GPT-J).
        final_logit_softcapping: Squash logits to c tanh(logits / c) (arXiv:2408.00118 section 2); None leaves them.
        use_cache: Return keys and values for decoding.
        bos_token_id: Begin-of-text id.
        eos_token_id: End-of-text id, or several.
        pad_token_id: Padding id, of its own.

    Raises:
        ValueError: A field is unknown, has a wrong type, or contradicts another one.
    """

    model_type = "gpt_finetune"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "norm_eps",
        "rms_norm_eps": "norm_eps",
        "num_experts": "num_local_experts",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "residual_dropout",
    }
    base_model_tp_plan: ClassVar[dict[str, str]] = {
        **dict.fromkeys((f"layers.*.self_attn.{name}_proj" for name in "qkv"), "colwise"),
        # one norm for all heads, of which each rank has but some: their gradients are added up
        **dict.fromkeys((f"layers.*.self_attn.{name}_norm" for name in "qk"), "replicated_with_grad_allreduce"),
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.self_attn.sinks": "rowwise",  # one a query head: each rank keeps those of its own
        "layers.*.self_attn": "local_params",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_ep_plan: ClassVar[dict[str, str]] = {
        "layers.*.mlp.experts.gate_up_proj": "grouped_gemm",
        "layers.*.mlp.experts.gate_up_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts.down_proj": "grouped_gemm",
        "layers.*.mlp.experts.down_proj_bias": "grouped_gemm",
        "layers.*.mlp.experts": "ep_dispatch_experts",
    }
    base_model_pp_plan: ClassVar[dict[str, tuple[list[str], list[str]]]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50257
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    position_embedding_type: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    position_offset: int = 0
    rope_parameters: dict | None = None
    scale_embeddings: bool = False
    embedding_norm: bool = False
    norm_type: Literal["layernorm", "rmsnorm", "zero_centered_rmsnorm"] = "layernorm"
    norm_affine: bool = True
    norm_eps: float | int = 1e-5
    block_type: Literal["pre_norm", "post_norm", "sandwich_norm", "parallel", "parallel_shared_norm"] = "pre_norm"
    hidden_act: Literal["gelu_new", "gelu", "quick_gelu", "relu", "relu2", "silu"] = "gelu_new"
    gated_mlp: bool = False
    swiglu_limit: float | int | None = None
    mlp_bias: bool = True
    num_local_experts: int | None = None
    num_experts_per_tok: int | None = None
    router_aux_loss_coef: float | int | None = None
    output_router_logits: bool = False
    attention_bias: bool = True
    attention_output_bias: bool | None = None
    attention_scale: float | int | None = None
    attention_sinks: bool = False
    qk_norm: bool = False
    is_causal: bool = True
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    add_cross_attention: bool = False
    cross_attention_hidden_size: int | None = None
    embedding_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    initializer_range: float | int = 0.02
    scale_residual_init: bool = True
    tie_word_embeddings: bool = True
    lm_head_bias: bool = False
    final_logit_softcapping: float | int | None = None
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    auto_map: dict[str, str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Resolve aliases and defaults that depend on other fields; refuse unknown fields."""
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        self._refuse_unknown(kwargs)
        rope_was_given = bool(self.rope_parameters or kwargs.keys() & {"rope_scaling", "rope_theta"})

        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            _require(
                self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0,
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads={self.num_attention_heads}: "
                "choose a multiple, or set head_dim",
            )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            self.intermediate_size = 64 * -(-self.hidden_size // 24) if self.gated_mlp else 4 * self.hidden_size
        if self.attention_output_bias is None:
            self.attention_output_bias = self.attention_bias
        if self.router_aux_loss_coef is None:  # TRL turns the router's logits on wherever this is not 0
            self.router_aux_loss_coef = 0.0 if self.num_local_experts is None else 0.001
        if self.layer_types is None:
            self.layer_types = ["full_attention"] * self.num_hidden_layers
        self.auto_map = self.auto_map or dict(AUTO_MAP)

        super().__post_init__(**kwargs)
        if self.position_embedding_type != "rotary":
            _require(
                not rope_was_given,
                f"rope_parameters={self.rope_parameters} has no effect with position_embedding_type="
                f"{self.position_embedding_type!r}: leave it out, or use 'rotary'",
            )
            self.rope_parameters = None

    @property
    def rotations(self) -> dict[str, dict[str, Any]]:
        """Rotary parameters by layer type, under `all` where every layer turns alike, and none without rotation."""
        rope = self.rope_parameters or {}
        return {kind: rope[kind] for kind in self.layer_types if kind in rope} or ({"all": rope} if rope else {})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save, unless `refuse_unknown_fields` has something to refuse."""
        self.refuse_unknown_fields()
        super().save_pretrained(*args, **kwargs)

    def refuse_unknown_fields(self) -> None:
        """Raise a ValueError if an attribute was set that is no field: `config.json` would not load with it."""
        self._refuse_unknown(self.to_diff_dict())

    def _refuse_unknown(self, values: dict[str, Any]) -> None:
        generation_keys = GenerationConfig._get_default_generation_params().keys()
        known = [*self.__dataclass_fields__, *self.attribute_map]
        for name in sorted(values.keys() - _LIBRARY_KEYS - generation_keys - set(known)):
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {self.attribute_map.get(close[0], close[0])}?" if close else "see GPTConfig's fields"
            raise ValueError(f"{name}={values[name]!r}: there is no such field; {hint}")

    def validate_architecture(self) -> None:
        """Check fields against each other (called by `@strict` on construction and on saving)."""
        for holds, message in self._rules():
            _require(holds, message)

    def _rules(self) -> Iterator[tuple[bool, str]]:
        """Yield what must hold, with what to say where it does not; each rule may lean on those before."""
        for name, least in _LEAST.items():
            value = getattr(self, name)
            yield value is None or value >= least, f"{name}={value}: it must be at least {least}"
        for name in ("attention_scale", "final_logit_softcapping", "swiglu_limit"):
            value = getattr(self, name)
            yield value is None or value > 0, f"{name}={value}: it must be above 0, or None"
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            yield 0 <= getattr(self, name) < 1, f"{name}={getattr(self, name)}: it must be in [0, 1)"
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            ids = getattr(self, name)
            for token_id in ids if isinstance(ids, list) else [ids]:
                yield (
                    token_id is None or 0 <= token_id < self.vocab_size,
                    f"{name}={token_id} is outside the vocabulary of vocab_size={self.vocab_size}",
                )
        yield from self._position_rules()
        yield from self._attention_rules()
        yield from self._mlp_rules()

    def _position_rules(self) -> Iterator[tuple[bool, str]]:
        kind = self.position_embedding_type
        named = {"full_attention", "sliding_attention"} & (self.rope_parameters or {}).keys()
        missing = sorted(set(self.layer_types) - named)
        yield (
            not (named and missing),
            f"rope_parameters={self.rope_parameters} says nothing of {', '.join(missing)} layers: name them, too",
        )
        for rotation in self.rotations.values():
            share = rotation.get("partial_rotary_factor", 1.0)
            turned = int(self.head_dim * share)
            yield (
                0 < share <= 1 and turned >= 2 and turned % 2 == 0,
                f"head_dim={self.head_dim} with partial_rotary_factor={share} turns {turned} coordinates of a head: "
                "rotary positions turn pairs, so it must be even, at least 2, and not more than the head has",
            )
        yield (
            kind != "sinusoidal" or self.hidden_size % 2 == 0,
            f"hidden_size={self.hidden_size} is odd: sinusoidal positions pair sine with cosine, so it must be even",
        )
        yield (
            kind == "learned" or self.position_offset == 0,
            f"position_offset={self.position_offset} with position_embedding_type={kind!r}: only a learned table has "
            "rows to leave out; use 0",
        )

    def _attention_rules(self) -> Iterator[tuple[bool, str]]:
        yield (
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads={self.num_attention_heads} is not divisible by "
            f"num_key_value_heads={self.num_key_value_heads}: each key head serves a whole group of query heads",
        )
        yield (
            len(self.layer_types) == self.num_hidden_layers,
            f"layer_types has {len(self.layer_types)} entries for num_hidden_layers={self.num_hidden_layers}",
        )
        unknown = set(self.layer_types) - {"full_attention", "sliding_attention"}
        yield not unknown, f"layer_types has {sorted(unknown)}: use 'full_attention' or 'sliding_attention'"
        slides = "sliding_attention" in self.layer_types
        yield (
            slides == (self.sliding_window is not None),
            f"sliding_window={self.sliding_window} with layer_types={self.layer_types}: "
            "'sliding_attention' layers and a window need each other",
        )
        cross = "add_cross_attention=True with "
        yield (
            not self.add_cross_attention or self.block_type in ("pre_norm", "post_norm"),
            f"{cross}block_type={self.block_type!r}: it has no place there; use 'pre_norm' or 'post_norm'",
        )
        yield (
            not (self.add_cross_attention and slides),
            f"{cross}'sliding_attention' layers: an encoder's states have no window; use 'full_attention'",
        )
        yield (
            self.add_cross_attention or self.cross_attention_hidden_size is None,
            f"cross_attention_hidden_size={self.cross_attention_hidden_size} needs add_cross_attention=True",
        )

    def _mlp_rules(self) -> Iterator[tuple[bool, str]]:
        experts, taken = self.num_local_experts, self.num_experts_per_tok
        yield (
            (experts is None) == (taken is None),
            f"num_local_experts={experts} with num_experts_per_tok={taken}: they need each other",
        )
        yield (
            experts is None or taken <= experts,
            f"num_experts_per_tok={taken} of {experts} experts: too many",
        )
        yield (
            experts is None or self.gated_mlp,
            f"num_local_experts={experts} with gated_mlp=False: experts are gated; set gated_mlp=True",
        )
        yield (
            experts is not None or not self.output_router_logits,
            "output_router_logits=True without num_local_experts: there is no router",
        )
        yield (
            self.swiglu_limit is None or self.gated_mlp,
            f"swiglu_limit={self.swiglu_limit} with gated_mlp=False: there is no gate to clamp; set gated_mlp=True",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


GPTConfig.register_for_auto_class()

__all__ = ["GPTConfig"]
