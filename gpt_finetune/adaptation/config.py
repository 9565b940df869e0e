"""What the user can say about adaptation: which method, how large, on what base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gpt_finetune.errors import InputError, did_you_mean


@dataclass(frozen=True)
class Method:
    """One way to train less than all of a model.

    Args:
        summary: What is trained.
        peft: Name of PEFT's configuration class; None where the model's own parameters are trained.
        sizes: Field of that class -> the field of `AdaptConfig` that sets it.
        fixed: Fields of that class that make the method what it is.
        targets: Names of the layers that it adapts unless told; None means all linear ones.
        experts: It adapts the stacked weights of experts, too.
        merges: Its result can be written into the weights of the base.
        learns_tokens: New tokens can be trained along with it.
        quantized: It works on a quantised base.
        pairs: It works on an encoder-decoder.
        rounds: The base's frozen weights may be kept in bfloat16: it neither saves, moves nor measures them, and its
            own stay in float32.
    """

    summary: str
    peft: str | None = None
    sizes: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] | None = None
    experts: bool = False
    merges: bool = False
    learns_tokens: bool = True
    quantized: bool = True
    pairs: bool = True
    rounds: bool = False


_LORA: Any = {
    "peft": "LoraConfig",
    "sizes": {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout"},
    "merges": True,
}
_PROMPT: Any = {"sizes": {"num_virtual_tokens": "virtual_tokens"}, "learns_tokens": False, "pairs": False}

METHODS: dict[str, Method] = {
    "full": Method("every weight", quantized=False),
    "lora": Method("low-rank additions to linear layers (arXiv:2106.09685)", **_LORA, experts=True, rounds=True),
    "rslora": Method(
        "LoRA scaled by alpha / sqrt(rank) (arXiv:2312.03732)",
        **_LORA,
        fixed={"use_rslora": True},
        experts=True,
        rounds=True,
    ),
    "dora": Method("LoRA with a magnitude for each output (arXiv:2402.09353)", **_LORA, fixed={"use_dora": True}),
    "pissa": Method(
        "LoRA that starts from the largest singular vectors of the weights (arXiv:2404.02948)",
        **_LORA,
        fixed={"init_lora_weights": "pissa"},
        quantized=False,
    ),
    "eva": Method(
        "LoRA that starts from the singular vectors of the data's activations (arXiv:2410.07170)",
        **_LORA,
        fixed={"init_lora_weights": "eva"},
        pairs=False,  # PEFT tells its tokens by one mask, and the halves read different ones
        rounds=True,
    ),
    "ia3": Method(
        "a factor for each key, value and inner MLP activation (arXiv:2205.05638)",
        peft="IA3Config",
        targets=("k_proj", "v_proj", "down_proj"),
        merges=True,
        learns_tokens=False,
        rounds=True,
    ),
    "prompt_tuning": Method(
        "vectors in front of the input (arXiv:2104.08691)", "PromptTuningConfig", **_PROMPT, rounds=True
    ),
    "prefix_tuning": Method(
        "keys and values in front of each layer's (arXiv:2101.00190)", "PrefixTuningConfig", **_PROMPT
    ),
    "top_layers": Method("the last layers and the final norm", quantized=False),
    "norms": Method("the norms", quantized=False),
    "head": Method("the output layer; with tied embeddings, that is the token embeddings, too", quantized=False),
}


@dataclass
class AdaptConfig:
    """How much of the model to train.

    Args:
        method: full, lora, rslora, dora, pissa, eva, ia3, prompt_tuning, prefix_tuning, top_layers, norms or head.
        rank: Rank of the additions of LoRA and its kin.
        alpha: Their scale: LoRA adds alpha / rank times the product of its two matrices.
        dropout: Probability of dropping an input of theirs.
        target_modules: Layers to adapt, by the end of their names, e.g. `[q_proj, v_proj]`; null means all linear
            layers but the output, for ia3 its paper's.
        top_layers: How many of the last layers the method top_layers trains.
        virtual_tokens: Length of what prompt_tuning and prefix_tuning put in front.
        quantization: Keep the base in fewer bits while adapters train on it: int8 (torchao), nf4 (bitsandbytes), or
            none. QLoRA is method=lora with quantization=nf4.
        frozen_dtype: What the weights that an adapter leaves alone are kept in. auto takes bfloat16 where training
            computes in it, else float32; dora, pissa and prefix_tuning keep float32 always. Products round them
            anyway; rounded besides are vectors of token embeddings. Merging, and adapters in use, read the base anew.
        options: Any further field of PEFT's configuration of the method, e.g. `adapt.options.bias=lora_only`; with
            pissa, `adapt.options.init_lora_weights=pissa_niter_4` is near and many times faster.
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: list[str] | None = None
    top_layers: int = 2
    virtual_tokens: int = 16
    quantization: Literal["none", "int8", "nf4"] = "none"
    frozen_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    options: dict[str, Any] = field(default_factory=dict)

    def validate(self, prefix: str = "adapt") -> None:
        """Check every field; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this section; it opens the error message.

        Raises:
            InputError: A field cannot be used.
        """
        if self.method not in METHODS:
            raise InputError(
                f"{prefix}.method", self.method, "there is no such method", did_you_mean(self.method, METHODS)
            )
        for name in ("rank", "top_layers", "virtual_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{prefix}.{name}", getattr(self, name), "it must be at least 1", "Raise it")
        if self.alpha <= 0:
            raise InputError(f"{prefix}.alpha", self.alpha, "it must be above 0", "Use twice the rank, as is usual")
        if not 0 <= self.dropout < 1:
            raise InputError(f"{prefix}.dropout", self.dropout, "it is a probability below 1", "Use 0 for none")
        if self.target_modules is not None and not self.target_modules:
            problem = "there is nothing to adapt"
            raise InputError(f"{prefix}.target_modules", self.target_modules, problem, "Name layers, or leave it out")
        if self.quantization not in ("none", "int8", "nf4"):
            remedy = did_you_mean(self.quantization, ("none", "int8", "nf4"))
            raise InputError(f"{prefix}.quantization", self.quantization, "there is no such format", remedy)
        if self.quantization != "none" and not METHODS[self.method].quantized:
            able = ", ".join(name for name, method in METHODS.items() if method.quantized)
            problem = f"{self.method} changes the weights of the base, which quantised ones cannot follow"
            raise InputError(f"{prefix}.quantization", self.quantization, problem, f"Use none, or one of {able}")
        if self.frozen_dtype not in ("auto", "float32", "bfloat16"):
            remedy = did_you_mean(self.frozen_dtype, ("auto", "float32", "bfloat16"))
            raise InputError(f"{prefix}.frozen_dtype", self.frozen_dtype, "weights are not kept in it", remedy)
        self._check_options(prefix)

    def _check_options(self, prefix: str) -> None:
        """Refuse options that PEFT's configuration does not have, or that have a field of their own here."""
        if not self.options:
            return
        method = METHODS[self.method]
        if method.peft is None:
            problem = f"{self.method} does not use PEFT"
            raise InputError(f"{prefix}.options", self.options, problem, "Leave them out, or choose another method")
        import peft

        known = set(getattr(peft, method.peft).__dataclass_fields__)
        own = {**method.sizes, "target_modules": "target_modules"}
        for name, value in self.options.items():
            if name not in known:
                problem = f"PEFT's {method.peft} has no such field"
                raise InputError(f"{prefix}.options.{name}", value, problem, did_you_mean(name, known))
            if name in own:
                problem = "it has a field of its own"
                raise InputError(f"{prefix}.options.{name}", value, problem, f"Set {prefix}.{own[name]}")
            if name in method.fixed and not str(value).startswith(str(method.fixed[name])):
                problem = f"{self.method} is {name}={method.fixed[name]}"
                raise InputError(f"{prefix}.options.{name}", value, problem, f"Leave it out, or change {prefix}.method")
