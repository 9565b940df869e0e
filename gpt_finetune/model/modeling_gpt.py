"""The GPT itself: blocks, the base model, the language-modelling head, and how their weights begin.

Shapes: B batch, T tokens, D hidden size, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_gpt import GPTConfig
from .layers_gpt import MLPS, NORMS, POSITIONS, GPTAttention, SinusoidalPositions


class GPTBlock(GradientCheckpointingLayer):
    """Attention and MLP around one residual stream; subclasses say where the norms stand."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = GPTAttention(config, layer_idx)
        self.mlp = MLPS[config.gated_mlp](config)


class PreNormBlock(GPTBlock):
    """x + f(norm(x)), twice (GPT-2, section 2.3)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.input_layernorm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), **kwargs)[0]
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class PostNormBlock(GPTBlock):
    """norm(x + f(x)), twice (GPT-1, and the 2017 Transformer)."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.post_attention_layernorm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)
        self.post_feedforward_layernorm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Apply the block: (B, T, D) -> (B, T, D)."""
        hidden_states = self.post_attention_layernorm(hidden_states + self.self_attn(hidden_states, **kwargs)[0])
        return self.post_feedforward_layernorm(hidden_states + self.mlp(hidden_states))


# norm_position -> the block, and the norm after the last one (a post-norm stream ends normalised already)
BLOCKS: dict[str, type[GPTBlock]] = {"pre": PreNormBlock, "post": PostNormBlock}


class GPTPreTrainedModel(PreTrainedModel):
    """What the base model and every head share: capabilities and initial weights."""

    config: GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock", "PostNormBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": GPTBlock, "attentions": GPTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Give `module` its initial weights.

        | what                                   | how                                                     |
        |----------------------------------------|---------------------------------------------------------|
        | linear and embedding weights           | N(0, initializer_range)                                 |
        | projections into the residual stream   | the same / sqrt(2 x layers), if `scale_residual_init`   |
        | biases                                 | 0                                                       |
        | norms                                  | weight 1, bias 0                                        |
        | rotary and sinusoidal frequencies      | recomputed, never stored                                |
        """
        super()._init_weights(module)
        if isinstance(module, SinusoidalPositions):
            module.reset_buffers()
        if self.config.scale_residual_init and getattr(module, "feeds_residual", False):
            # Each layer adds twice to the stream; this keeps its variance at the end near that of one layer.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)


class GPTModel(GPTPreTrainedModel):
    """Embeddings, positions, blocks and the final norm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        add_positions, rotary = POSITIONS[config.position_embedding_type]
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = add_positions(config)
        self.rotary_emb = rotary(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            BLOCKS[config.norm_position](config, layer_idx) for layer_idx in range(config.num_hidden_layers)
        )
        final_norm = NORMS[config.norm_type] if config.norm_position == "pre" else nn.Identity
        self.norm = final_norm(config.hidden_size, eps=config.norm_eps)
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
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Compute the last hidden state of each token.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: 1 for tokens and 0 for padding, (B, past + T); or masks as `generate` builds them.
            position_ids: Position of each token, (B or 1, T); positions that restart mark packed documents, which do
                not see each other. None counts from the cached length.
            past_key_values: Cache of earlier keys and values.
            inputs_embeds: Embeddings (B, T, D) instead of ids.
            use_cache: Return a cache.
            **kwargs: `output_hidden_states`, `output_attentions`, and arguments of attention backends.

        Raises:
            ValueError: Neither or both of ids and embeddings are given, an id is outside the vocabulary, or a
                position is beyond a learned table.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            self._check_token_ids(input_ids)
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, D)

        # One mask a layer type; `generate` may have built them before. Only the caller's own position ids count here:
        # if they restart, the row holds packed documents, which are kept apart (unless a cache is being continued).
        masks = attention_mask
        if not isinstance(masks, dict):
            masks = create_masks_for_generate(
                self.config, inputs_embeds, attention_mask, past_key_values, position_ids=position_ids
            )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past).unsqueeze(0)
        self._check_positions(position_ids)

        hidden_states = self.dropout(self.embed_positions(inputs_embeds, position_ids))
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for layer, layer_type in zip(self.layers, self.config.layer_types, strict=True):
            hidden_states = layer(
                hidden_states,
                attention_mask=masks[layer_type],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _check_token_ids(self, input_ids: torch.Tensor) -> None:
        """Refuse ids outside the vocabulary by name; on a GPU this would cost a synchronisation, so only on CPU."""
        if input_ids.device.type != "cpu" or torch.compiler.is_compiling() or input_ids.numel() == 0:
            return
        low, high = (int(bound) for bound in input_ids.aminmax())
        if low < 0 or high >= self.embed_tokens.num_embeddings:
            raise ValueError(
                f"input_ids has the token id {low if low < 0 else high}, but vocab_size is "
                f"{self.embed_tokens.num_embeddings}: the tokenizer is not this model's; load the one saved with it, "
                "or call model.resize_token_embeddings(len(tokenizer))"
            )

    def _check_positions(self, position_ids: torch.Tensor) -> None:
        """Refuse positions beyond a learned table by name, on CPU."""
        if not isinstance(self.embed_positions, nn.Embedding):
            return
        if position_ids.device.type != "cpu" or torch.compiler.is_compiling() or position_ids.numel() == 0:
            return
        last, limit = int(position_ids.max()), self.embed_positions.num_embeddings
        if last >= limit:
            raise ValueError(
                f"position_ids reaches {last}, but max_position_embeddings is {limit} and learned positions end "
                "there: shorten the input to that many tokens"
            )


class GPTForCausalLM(GPTPreTrainedModel, GenerationMixin):
    """The GPT with a language-modelling head: logits over the next token."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Compute logits over the next token and, given labels, the mean loss of the tokens that have one.

        Args:
            input_ids: Token ids, (B, T).
            attention_mask: See `GPTModel.forward`.
            position_ids: See `GPTModel.forward`.
            past_key_values: See `GPTModel.forward`.
            inputs_embeds: See `GPTModel.forward`.
            labels: Targets aligned with `input_ids`, (B, T): the shift happens inside; -100 is ignored.
            use_cache: See `GPTModel.forward`.
            logits_to_keep: Compute logits of the last so many positions only, or of these positions; 0 means all.
            **kwargs: `num_items_in_batch` divides the summed loss instead of this batch's own count; the rest as
                `GPTModel.forward`.

        Example:
            >>> from transformers import AutoModelForCausalLM, AutoTokenizer
            >>> model = AutoModelForCausalLM.from_pretrained("runs/quickstart", trust_remote_code=True)
            >>> tokenizer = AutoTokenizer.from_pretrained("runs/quickstart", trust_remote_code=True)
            >>> ids = model.generate(**tokenizer("def main(", return_tensors="pt"), max_new_tokens=32)
            >>> print(tokenizer.decode(ids[0]))
        """
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (B, T, V)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


GPTModel.register_for_auto_class("AutoModel")
GPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["GPTForCausalLM", "GPTModel", "GPTPreTrainedModel"]
