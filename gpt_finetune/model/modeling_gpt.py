"""The GPT itself: the base model, the language-modelling head, and how their weights begin.

Shapes: B batch, T tokens, S tokens of an encoder, D hidden size, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from transformers.modeling_utils import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, is_tracing
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_gpt import GPTAttention, GPTCrossAttention, GPTRotations, GPTSinkAttention
from .backends_gpt import masks_of_layers
from .blocks_gpt import BLOCKS, GPTBlock
from .configuration_gpt import GPTConfig
from .dropout_gpt import GPTDropout
from .layers_gpt import (
    EMBEDDINGS,
    POSITIONS,
    GPTExperts,
    GPTRouter,
    SinusoidalPositions,
    ZeroCenteredRMSNorm,
    make_norm,
)
from .loss_gpt import chunked_loss

try:
    from transformers.modeling_utils import slice_logits_to_keep
except ImportError:  # transformers 5.19, which vLLM asks for

    def slice_logits_to_keep(hidden_states: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        """Keep the last so many positions, 0 meaning all, or these: (B, T, D) -> (B, kept, D)."""
        return hidden_states[:, slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep]


@dataclass
class GPTModelOutput(BaseModelOutputWithPastAndCrossAttentions):
    """What `GPTModel` returns; `router_logits` holds one (B * T, experts) a layer, if asked for."""

    router_logits: tuple[torch.Tensor, ...] | None = None


@dataclass
class GPTCausalLMOutput(CausalLMOutputWithCrossAttentions):
    """What `GPTForCausalLM` returns; `aux_loss` is the load-balancing loss, already in `loss` with its weight."""

    aux_loss: torch.Tensor | None = None
    router_logits: tuple[torch.Tensor, ...] | None = None


class GPTPreTrainedModel(PreTrainedModel):
    """What the base model and every head share: capabilities and initial weights."""

    config: GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GPTBlock,
        "attentions": OutputRecorder(GPTAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(GPTCrossAttention, index=1),
        "router_logits": OutputRecorder(GPTRouter, index=0),
    }

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Say that experts can be computed in several ways; transformers would look in this class's own file only."""
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give `module` its initial weights.

        | what                                   | how                                                     |
        |----------------------------------------|---------------------------------------------------------|
        | linear and embedding weights           | N(0, initializer_range)                                 |
        | projections into the residual stream   | the same / sqrt(2 x layers), if `scale_residual_init`   |
        | biases                                 | 0                                                       |
        | norms                                  | weight 1 (0 where it is kept less 1), bias 0            |
        | experts, routers, attention sinks      | N(0, initializer_range), biases 0                       |
        | rotary and sinusoidal frequencies      | recomputed, never stored                                |
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SinusoidalPositions | ZeroCenteredRMSNorm):
            module.reset_parameters()
        elif isinstance(module, GPTExperts | GPTRouter | GPTSinkAttention):
            for name, parameter in module.named_parameters(recurse=False):
                init.zeros_(parameter) if name.endswith("bias") else init.normal_(parameter, mean=0.0, std=std)
        if self.config.scale_residual_init:
            # Each layer adds twice to the stream; this keeps its variance at the end near that of one layer.
            std = std / math.sqrt(2 * self.config.num_hidden_layers)
            if isinstance(module, GPTExperts):
                init.normal_(module.down_proj, mean=0.0, std=std)
            elif getattr(module, "feeds_residual", False):
                init.normal_(module.weight, mean=0.0, std=std)


def number_documents(position_ids: torch.Tensor, attention_mask: Any) -> torch.Tensor | None:
    """Return the number of each token's packed document in its row, (B, T), or None if no row packs several.

    A document begins where a token's position is not above that of the token before it, padding passed over
    (transformers' `find_packed_sequence_indices` looks at padding too, so that some amid a document would cut it).
    """
    real = torch.ones_like(position_ids, dtype=torch.bool)
    if torch.is_tensor(attention_mask) and attention_mask.ndim == 2:
        real = attention_mask.to(position_ids.device) != 0
    seen = (torch.arange(1, real.shape[-1] + 1, device=real.device) * real).cummax(-1).values  # 0: no token yet
    known = nn.functional.pad(position_ids, (1, 0), value=-1).gather(-1, seen)  # padding repeats the token before it
    starts = real & (known.diff(dim=-1, prepend=torch.full_like(known[:, :1], -1)) <= 0)
    return starts.cumsum(-1) if is_tracing(starts) or starts.any() else None


class GPTModel(GPTPreTrainedModel):
    """Embeddings, positions, blocks and the final norm."""

    # What autocast is to keep the residual stream in; None leaves it as the embeddings are.
    residual_dtype: torch.dtype | None = None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.embed_tokens = EMBEDDINGS[config.scale_embeddings](config.vocab_size, config.hidden_size)
        self.embed_positions = POSITIONS[config.position_embedding_type](config)
        self.embed_norm = make_norm(config, config.hidden_size) if config.embedding_norm else nn.Identity()
        self.rotary_emb = GPTRotations(config)
        self.dropout = GPTDropout(config.embedding_dropout)
        block = BLOCKS[config.block_type, config.add_cross_attention]
        self._no_split_modules = [block.__name__]  # accelerate refuses a name that this model has no layer of
        self.layers = nn.ModuleList(block(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        # a post-norm stream ends normalised already
        self.norm = nn.Identity() if config.block_type == "post_norm" else make_norm(config, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPTModelOutput:
        """Compute the last hidden state of each token.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for tokens and 0 for padding, (B, past + T); or masks as `generate` builds them.
            position_ids: Position of each token, (B or 1, T); positions that restart mark packed documents, which do
                not see each other. None counts from the cached length.
            past_key_values: Cache of earlier keys and values.
            inputs_embeds: Embeddings (B, T, D) instead of ids.
            encoder_hidden_states: What cross-attention looks at, (B, S, width).
            encoder_attention_mask: 1 for its tokens and 0 for padding, (B, S).
            use_cache: Return a cache; a model that looks both ways never does.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_router_logits`, and arguments of attention
                backends.

        Raises:
            ValueError: Neither or both of ids and embeddings are given, an id is outside the vocabulary, a position is
                beyond a learned table, or an encoder's states and `add_cross_attention` do not go together.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        crosses = self.config.add_cross_attention
        if (encoder_hidden_states is not None) != crosses:
            problem = "are missing" if crosses else "are given"
            raise ValueError(f"encoder_hidden_states {problem}, but the model has add_cross_attention={crosses}")
        if inputs_embeds is None:
            self._check_token_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, D)

        masks = self._masks(inputs_embeds, attention_mask, position_ids, past_key_values)  # one a layer type
        if crosses:
            kwargs["encoder_hidden_states"] = encoder_hidden_states
            kwargs["encoder_attention_mask"] = create_bidirectional_mask(
                self.config, inputs_embeds, encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
            )
        if use_cache and past_key_values is None and self.config.is_causal:
            past_key_values = DynamicCache(config=self.config)  # its sliding layers keep no more than their window
        if crosses and past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
            past_key_values = EncoderDecoderCache(past_key_values, DynamicCache())
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past).unsqueeze(0)

        hidden_states = self.dropout(self.embed_norm(self.embed_positions(inputs_embeds, position_ids)))
        if self.residual_dtype is not None and torch.is_autocast_enabled(hidden_states.device.type):
            hidden_states = hidden_states.to(self.residual_dtype)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)  # by layer type
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings[layer_type],
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return GPTModelOutput(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> dict[str, Any]:
        """Return the mask of each layer type; packed documents are kept apart, unless a cache is being continued."""
        if isinstance(attention_mask, dict):
            return attention_mask  # `generate` has built them
        packed = None
        if position_ids is not None and past_key_values is None:  # the caller's own: made-up ones never restart
            packed = number_documents(position_ids.expand(len(inputs_embeds), -1), attention_mask)
        return masks_of_layers(self.config, inputs_embeds, attention_mask, past_key_values, packed)

    def _check_token_ids(self, input_ids: torch.Tensor) -> None:
        """Refuse ids outside the vocabulary by name; on a GPU this would cost a synchronisation, so only on CPU."""
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or input_ids.numel() == 0:
            return
        low, high = (int(bound) for bound in input_ids.aminmax())
        size = self.config.vocab_size  # `embed_tokens` may stand in an adapter's wrapper
        if low < 0 or high >= size:
            raise ValueError(
                f"input_ids has the token id {low if low < 0 else high}, but vocab_size is {size}: the tokenizer is "
                "not this model's; load the one saved with it, or call model.resize_token_embeddings(len(tokenizer))"
            )


class SoftCap(nn.Module):
    """c tanh(x / c), which keeps logits within c (Gemma Team 2024, arXiv:2408.00118 section 2)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply elementwise."""
        return self.cap * torch.tanh(logits / self.cap)


class GPTWithLMHead(GPTPreTrainedModel):
    """The GPT with logits over the vocabulary: what the causal and the masked language model share."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        # not part of lm_head, which `resize_token_embeddings` replaces by a plain layer
        self.soft_cap = SoftCap(config.final_logit_softcapping) if config.final_logit_softcapping else nn.Identity()
        self.post_init()

    def logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Score each token of the vocabulary: (B, T, D) -> (B, T, V)."""
        return self.soft_cap(self.lm_head(hidden_states))


class GPTForCausalLM(GPTWithLMHead, GenerationMixin):
    """The GPT with a language-modelling head: logits over the next token."""

    def __init__(self, config: GPTConfig) -> None:
        if not config.is_causal:
            raise ValueError("is_causal=False lets tokens see what they are to predict: use GPTForMaskedLM or GPTModel")
        super().__init__(config)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_hidden_states: torch.FloatTensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPTCausalLMOutput:
        """Compute logits over the next token and, given labels, the mean loss of the tokens that have one.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: See `GPTModel.forward`.
            position_ids: See `GPTModel.forward`.
            past_key_values: See `GPTModel.forward`.
            inputs_embeds: See `GPTModel.forward`.
            encoder_hidden_states: See `GPTModel.forward`.
            encoder_attention_mask: See `GPTModel.forward`.
            labels: Targets aligned with `input_ids`, (B, T): the shift happens inside; -100 is ignored.
            use_cache: See `GPTModel.forward`.
            output_router_logits: Add the load-balancing loss of the experts; None takes the config's word.
            logits_to_keep: Compute logits of the last so many positions only, or of these positions; 0 means all.
            skip_logits: Return no logits, and compute the loss piece by piece, which takes a fraction of the memory and
                honours `label_smoothing` and `z_loss`, see `chunked_loss`. None does so in training, given labels.
            **kwargs: `num_items_in_batch` divides the summed loss instead of this batch's own count; the rest as
                `GPTModel.forward`.

        Example:
            >>> from transformers import AutoModelForCausalLM, AutoTokenizer
            >>> model = AutoModelForCausalLM.from_pretrained("runs/quickstart", trust_remote_code=True)
            >>> tokenizer = AutoTokenizer.from_pretrained("runs/quickstart", trust_remote_code=True)
            >>> ids = model.generate(**tokenizer("def main(", return_tensors="pt"), max_new_tokens=32)
            >>> print(tokenizer.decode(ids[0]))
        """
        balances = self.config.output_router_logits if output_router_logits is None else output_router_logits
        outputs: GPTModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            output_router_logits=balances,
            **kwargs,
        )
        kept = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)
        if skip_logits is None:
            skip_logits = self.training and labels is not None and not hasattr(self, "_loss_function")
        logits = None if skip_logits else self.logits(kept)  # (B, T, V)
        kwargs |= {"labels": labels, "vocab_size": self.config.vocab_size}
        loss = None
        if labels is not None and skip_logits:
            loss = chunked_loss(self.lm_head, kept, cap=self.config.final_logit_softcapping, **kwargs)
        elif labels is not None:
            loss = self.loss_function(logits=logits, **kwargs)
        aux_loss = None
        if balances and outputs.router_logits:  # a model without experts has none
            aux_loss = self._balancing_loss(outputs.router_logits, attention_mask)
            if loss is not None:
                share = self._share_of_batch(labels, kwargs.get("num_items_in_batch"))
                loss = loss + self.config.router_aux_loss_coef * share * aux_loss.to(loss.device)
        return GPTCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            aux_loss=aux_loss,
            router_logits=outputs.router_logits,
        )

    def _balancing_loss(self, router_logits: tuple[torch.Tensor, ...], attention_mask: Any) -> torch.Tensor:
        """Return how unevenly experts are used (Fedus et al. 2021, arXiv:2101.03961 section 2.2), padding left out."""
        says_padding = torch.is_tensor(attention_mask) and attention_mask.ndim == 2
        experts, taken = self.config.num_local_experts, self.config.num_experts_per_tok
        return load_balancing_loss_func(router_logits, experts, taken, attention_mask if says_padding else None)

    @staticmethod
    def _share_of_batch(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor | float:
        """Return how much of an accumulated batch this pass is, so that what each pass adds makes up a mean."""
        if num_items_in_batch is None:
            return 1.0
        return (labels[..., 1:] != -100).sum() / num_items_in_batch


GPTModel.register_for_auto_class("AutoModel")
GPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["GPTForCausalLM", "GPTModel", "GPTPreTrainedModel"]
