"""From a model and a section of the configuration to the model that is trained."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gpt_finetune.adaptation.bases import whole_class
from gpt_finetune.adaptation.config import METHODS, AdaptConfig
from gpt_finetune.adaptation.frozen import frozen_dtype, narrow
from gpt_finetune.errors import InputError, did_you_mean
from gpt_finetune.report.heads import find_head

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# What the experts of a layer hold as stacks, which PEFT adapts as parameters: they are no layers.
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
EXAMPLES = 64  # batches that EVA looks at, at most: it goes round them until its directions stand
FEED_FORWARD = {"down_proj"}  # IA3 scales the input of these, and the output of all others


def adapt(
    model: PreTrainedModel,
    config: AdaptConfig,
    *,
    new_rows: Sequence[int] = (),
    example_batches: Iterable[Mapping[str, torch.Tensor]] | None = None,
    bf16: bool | None = None,
) -> Any:
    """Make a model train what the method trains, and nothing else.

    Take `fingerprint_of(model)` before: some methods change the weights of the base.

    Args:
        model: A model of ours, whole, or an encoder-decoder of two; its embeddings have room for the new tokens
            already.
        config: The section.
        new_rows: Ids of tokens that were just added: their vectors are trained with every method that can, at the
            output, too. Where PEFT cannot train single rows, and with top_layers, norms and head, the whole table is.
        example_batches: Batches as the trainer gives them, of which eva takes as many as it needs.
        bf16: Whether training computes in bfloat16, as its arguments have it: `frozen_dtype=auto` follows. None says
            nothing.

    Returns:
        A `PeftModel`, or for full, top_layers, norms and head the model itself.

    Raises:
        InputError: The section asks for what this model or method does not have.
    """
    config.validate()
    dtype = frozen_dtype(config, bf16)
    method = METHODS[config.method]
    _check_model(model, config, new_rows)
    if method.peft is None:
        model.requires_grad_(False)
        for parameter in _part(model, config, new_rows):
            parameter.requires_grad = True
        return model
    if config.method == "eva" and example_batches is None:
        problem = "it looks at the data first, and there is none"
        raise InputError("adapt.method", config.method, problem, "Give example_batches, or use lora")
    from peft import get_peft_model, initialize_lora_eva_weights

    from gpt_finetune.adaptation.fused import fuse
    from gpt_finetune.adaptation.saving import remember_start

    settings = _settings(model, config, new_rows)
    # before there are wrappers of new tokens, which PEFT would take for adapters
    directions = _directions(model, settings, example_batches or ()) if config.method == "eva" else None
    with torch.random.fork_rng(enabled=config.method == "pissa"):
        if config.method == "pissa":  # its fast variant draws numbers: the same when the run is resumed
            torch.manual_seed(0)
        try:
            adapted = get_peft_model(model, settings)
        except (NotImplementedError, TypeError, ValueError) as error:
            if not config.options:
                raise
            raise InputError("adapt.options", config.options, str(error), "Mend or remove them") from None
    if config.method == "pissa":
        remember_start(adapted)
    if directions is not None:
        initialize_lora_eva_weights(adapted, eva_state_dict=directions)
    fuse(adapted)
    if dtype == torch.bfloat16:
        narrow(adapted)
    return adapted


def load_base(path: str, config: AdaptConfig, attn_implementation: str | None = None) -> PreTrainedModel:
    """Load the model that adapters are put on: in float32, or with its linear layers in fewer bits.

    Embeddings, norms, the output layer and experts keep their precision.

    Args:
        path: Folder or Hub id of a checkpoint of ours or of a dialect that we read, or a packaged model's name.
        config: The section; `quantization` counts.
        attn_implementation: Attention backend; None lets transformers choose.

    Raises:
        InputError: There is no such checkpoint, or a package that quantises is missing.
    """
    from gpt_finetune.packaged import locate

    config.validate()
    quantization = QUANTIZERS[config.quantization]()
    try:
        where = locate(path)
        opened: PreTrainedModel = whole_class(where).from_pretrained(
            where, dtype="float32", attn_implementation=attn_implementation, quantization_config=quantization
        )
        return opened
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem = str(error).splitlines()[0]
        raise InputError("model.from_pretrained", path, problem, "Give a checkpoint folder or a Hub id") from None


def _int8() -> Any:
    """Return torchao's weights of 8 bits, a scale a row; products stay in float32."""
    _need("int8", "torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _nf4() -> Any:
    """Return bitsandbytes' weights of 4 bits, whose scales are quantised, too (QLoRA, arXiv:2305.14314 section 3)."""
    _need("nf4", "bitsandbytes")
    if not torch.cuda.is_available():
        remedy = "Run it there, or use int8, which works without"
        raise InputError("adapt.quantization", "nf4", "it wants a CUDA device, and there is none", remedy)
    from transformers import BitsAndBytesConfig

    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _need(quantization: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        problem = f"it takes the package {package}, which is not installed"
        raise InputError("adapt.quantization", quantization, problem, f"Run `pip install {package}`")


QUANTIZERS: dict[str, Callable[[], Any]] = {"none": lambda: None, "int8": _int8, "nf4": _nf4}

# ----------------------------------------------------------------------------------------------- parts of the model


def _part(model: PreTrainedModel, config: AdaptConfig, new_rows: Sequence[int]) -> list[nn.Parameter]:
    """Return the parameters that a method without adapters trains."""
    stacks, output = _stacks(model), model.get_output_embeddings()
    if config.method == "full":
        return list(model.parameters())
    modules: list[nn.Module] = []
    if config.method == "top_layers":
        layers = min(len(stack.layers) for stack in stacks)
        if config.top_layers > layers:
            raise InputError("adapt.top_layers", config.top_layers, f"the model has {layers}", "Lower it, or use full")
        for stack in stacks:
            modules += [*stack.layers[len(stack.layers) - config.top_layers :], stack.norm]
    elif config.method == "norms":
        modules = [module for name, module in model.named_modules() if name.endswith("norm")]
    elif output is not None:
        modules = [output]
    if new_rows:
        modules += [model.get_input_embeddings(), *([output] if output is not None else [])]
    # a new head has learned nothing yet: it is trained whatever else is
    if len(stacks) == 1:
        modules += [module for module in model.children() if module not in (*stacks, output)]
    found = [parameter for module in modules for parameter in module.parameters()]
    if not found:
        raise InputError("adapt.method", config.method, "the model has no such parameters", "Choose another method")
    return found


def _stacks(model: PreTrainedModel) -> list[Any]:
    """Return what holds the layers: the model without its head; of an encoder-decoder, both halves without theirs."""
    if model.config.is_encoder_decoder:
        return [half.base_model for half in (model.encoder, model.decoder)]
    return [model.base_model]


# ------------------------------------------------------------------------------------------------------------- PEFT


def _settings(model: PreTrainedModel, config: AdaptConfig, new_rows: Sequence[int]) -> PeftConfig:
    """Return PEFT's configuration of the method for this model."""
    import peft

    method = METHODS[config.method]
    head = find_head(type(model).__name__)
    fields: dict[str, Any] = {"task_type": head.peft if head else None, **method.fixed}
    fields |= {theirs: getattr(config, ours) for theirs, ours in method.sizes.items()}
    if method.peft in ("LoraConfig", "IA3Config"):
        layers, experts = _targets(model, config)
        fields["target_modules"] = layers
        if experts:
            fields["target_parameters"] = experts
    if method.peft == "IA3Config":
        fields["feedforward_modules"] = [name for name in layers if name.split(".")[-1] in FEED_FORWARD]
    if new_rows:
        fields |= _rows(model, new_rows)
    fields |= config.options
    try:
        if config.method == "eva":
            fields["eva_config"] = peft.EvaConfig(**fields.get("eva_config", {}))
        return getattr(peft, method.peft or "")(**fields)
    except (TypeError, ValueError) as error:
        remedy = f"Mend it; PEFT's {method.peft} says what it takes"
        raise InputError("adapt.options", config.options, str(error), remedy) from None


def _targets(model: PreTrainedModel, config: AdaptConfig) -> tuple[list[str], list[str]]:
    """Return the names of the linear layers, and of the experts' parameters, to adapt.

    Raises:
        InputError: A name matches nothing, there is nothing to adapt, or the rank is above what a layer can have.
    """
    method = METHODS[config.method]
    output = model.get_output_embeddings()
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
    prefix = "" if model.config.is_encoder_decoder else model.base_model_prefix
    inside = {name: m for name, m in linear.items() if name.startswith(prefix)}
    stacks = {name: p for name, p in model.named_parameters() if name.endswith(EXPERTS)}
    if config.target_modules is None:
        usual = sorted({name.split(".")[-1] for name in inside})
        layers = [name for name in usual if method.targets is None or name in method.targets]
        experts = [name for name in EXPERTS if any(stack.endswith(name) for stack in stacks)] if method.experts else []
        if stacks and not method.experts:
            log.info("adapt.method=%s leaves the experts as they are; lora and rslora adapt them", config.method)
    else:
        layers = [name for name in config.target_modules if _ending(linear, name)]
        experts = [name for name in config.target_modules if _ending(stacks, name) and name not in layers]
        known = {name.split(".")[-1] for name in linear} | {name for name in EXPERTS if _ending(stacks, name)}
        for name in config.target_modules:
            if name not in layers and name not in experts:
                raise InputError("adapt.target_modules", name, "no layer bears this name", did_you_mean(name, known))
        if experts and not method.experts:
            problem = f"{config.method} cannot adapt experts, which are stacked weights"
            raise InputError("adapt.target_modules", experts, problem, "Leave them out, or use lora or rslora")
    if not layers and not experts:
        remedy = "Name adapt.target_modules, or choose another method"
        raise InputError("adapt.method", config.method, "the model has none of the layers that it adapts", remedy)
    if experts and config.dropout:
        problem = "PEFT adapts experts without dropout only"
        remedy = "Set it to 0, or name layers other than the experts in adapt.target_modules"
        raise InputError("adapt.dropout", config.dropout, problem, remedy)
    if "rank" in method.sizes.values():
        adapted = [m for name in layers for m in _ending(linear, name)]
        widths = [min(m.in_features, m.out_features) for m in adapted]
        widths += [min(stack.shape[1:]) for name in experts for stack in _ending(stacks, name)]
        if config.rank > min(widths):
            problem = f"the narrowest layer to adapt is {min(widths)} wide, and no update of it has a higher rank"
            raise InputError("adapt.rank", config.rank, problem, "Lower it, or leave that layer out")
    return layers, experts


def _ending(found: Mapping[str, Any], name: str) -> list[Any]:
    """Return what bears the name, or one that ends in it after a dot, as PEFT matches."""
    return [value for key, value in found.items() if key == name or key.endswith(f".{name}")]


def _rows(model: PreTrainedModel, new_rows: Sequence[int]) -> dict[str, Any]:
    """Return what makes PEFT train the vectors of new tokens, at input and output."""
    tied = bool(model.config.tie_word_embeddings)
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    # PEFT looks single rows up by itself, without a layer's own factor or bias
    plain = type(table) is nn.Embedding and getattr(output, "bias", None) is None
    names = [name for name, module in model.named_modules() if module is table or (module is output and not tied)]
    names = [name.split(".")[-1] for name in names]
    if plain:
        return {"trainable_token_indices": {name: list(new_rows) for name in names}}
    return {"modules_to_save": names, "ensure_weight_tying": tied}


def _directions(
    model: PreTrainedModel, settings: Any, batches: Iterable[Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return the directions in which the inputs of each layer vary most, as PEFT's EVA computes them.

    Raises:
        InputError: No batch has as many tokens as directions are asked for; PEFT would wait for one forever.
    """
    from peft import get_eva_state_dict

    wanted = round(settings.r * settings.eva_config.rho)
    device = next(model.parameters()).device
    seen = [{name: value.to(device) for name, value in batch.items()} for batch in islice(batches, EXAMPLES)]
    enough = [batch for batch in seen if _tokens(batch) >= wanted]
    if not enough:
        most = max(map(_tokens, seen), default=0)
        problem = (
            f"eva wants {wanted} tokens in a batch, rho x rank, and the largest of the first {EXAMPLES} has {most}"
        )
        raise InputError("adapt.rank", settings.r, problem, "Lower it, make batches larger, or use lora")
    found = get_eva_state_dict(model, enough, settings, show_progress_bar=False)
    return {f"base_model.model.{name}": value for name, value in found.items()}


def _tokens(batch: Mapping[str, torch.Tensor]) -> int:
    """Count the tokens that EVA looks at: those with a label."""
    counted = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return int((counted & (batch["labels"] != -100) if "labels" in batch else counted).sum())


# ----------------------------------------------------------------------------------------------------------- checks


def _check_model(model: PreTrainedModel, config: AdaptConfig, new_rows: Sequence[int]) -> None:
    """Refuse what this model cannot do."""
    method = METHODS[config.method]
    if model.config.is_encoder_decoder and not method.pairs:
        able = ", ".join(name for name, method in METHODS.items() if method.pairs)
        problem = "it does not work on an encoder-decoder, whose halves read different texts"
        raise InputError("adapt.method", config.method, problem, f"Use one of {able}")
    if getattr(model, "is_quantized", False) and not method.quantized:
        problem = "the base is quantised, and this method changes its weights"
        raise InputError("adapt.method", config.method, problem, "Use lora, or adapt.quantization=none")
    if not new_rows:
        return
    if not method.learns_tokens:
        problem = f"it leaves the embeddings alone, and {len(new_rows)} tokens were added"
        remedy = "Use lora, which trains their vectors, too, or add no tokens"
        raise InputError("adapt.method", config.method, problem, remedy)
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if method.peft and bias is not None and model.config.tie_word_embeddings:
        problem = "PEFT drops the bias of an output layer that shares the embeddings' weights"
        raise InputError("adapt.method", config.method, problem, "Add no tokens, or use full or top_layers")
    rows = model.get_input_embeddings().num_embeddings
    if max(new_rows) >= rows or min(new_rows) < 0:
        remedy = "Call model.resize_token_embeddings(len(tokenizer)) before"
        raise InputError("new_rows", list(new_rows), f"the embeddings have {rows} rows", remedy)
