"""Ways to train the same model, and its sizes, as tables."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size of the work.

    Args:
        layers: Blocks.
        width: Of the residual stream.
        heads: A layer.
        tokens: Of a row.
        batch: Rows of a step.
        vocabulary: Token ids.
    """

    layers: int
    width: int
    heads: int
    tokens: int
    batch: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.layers} x {self.width}, vocabulary {self.vocabulary}, {self.batch} x {self.tokens} tokens"


SIZES = {
    "S1": Size(layers=6, width=384, heads=6, tokens=256, batch=16, vocabulary=50304),
    "S2": Size(layers=12, width=768, heads=12, tokens=512, batch=4, vocabulary=50257),  # GPT-2 124M
    "S3": Size(layers=6, width=384, heads=6, tokens=256, batch=16, vocabulary=8192),
    "tiny": Size(layers=1, width=32, heads=2, tokens=32, batch=2, vocabulary=128),
}


@dataclass(frozen=True)
class Way:
    """One way to train.

    Args:
        model: Whose architecture: gpt2 or llama (with the same first weights in every way), litgpt or nanogpt.
        ours: Whether our code computes it, under GPTTrainer; else transformers', under its Trainer.
        loop: trainer, or bare: a loop of a dozen lines.
        environment: A key of `measuring.ENVIRONMENTS`.
        matmul: As `torch.set_float32_matmul_precision` takes it; below highest, products may be less than float32.
        compiled: With torch.compile.
        narrow: With the residual stream in bfloat16 (`train.residual=bfloat16`), where products are.
    """

    model: str = "gpt2"
    ours: bool = False
    loop: str = "trainer"
    environment: str = "plain"
    matmul: str = "highest"
    compiled: bool = False
    narrow: bool = False


NARROW = "ours, narrow stream"


def _both(suffix: str, **fields: str) -> dict[str, Way]:
    """Return a way of transformers' and the same of ours."""
    return {
        f"transformers, {suffix}": Way(**fields),  # type: ignore[arg-type]
        f"ours, {suffix}": Way(ours=True, **fields),  # type: ignore[arg-type]
    }


WAYS: dict[str, Way] = {
    "transformers": Way(),
    "ours": Way(ours=True),
    **_both("large pages", environment="large pages"),
    **_both("torch's large pages", environment="torch's large pages"),
    **_both("medium products", matmul="medium"),
    **_both("large pages, medium products", environment="large pages", matmul="medium"),
    **_both("bare loop", loop="bare"),
    "transformers, kept memory": Way(environment="kept memory"),
    NARROW: Way(ours=True, narrow=True),
    "transformers, compiled": Way(compiled=True),
    "transformers Llama": Way("llama"),
    "ours, as Llama": Way("llama", ours=True),
    "litgpt": Way("litgpt", loop="bare"),
    "litgpt, large pages": Way("litgpt", loop="bare", environment="large pages"),
    "nanoGPT": Way("nanogpt", loop="bare"),
}
AS_SHIPPED = ("transformers", "ours")
SAME_ENVIRONMENT = (*AS_SHIPPED, *(f"{side}, large pages" for side in AS_SHIPPED))
# names of several ways at once
SETS: dict[str, tuple[str, ...]] = {
    "as-shipped": AS_SHIPPED,
    "environment": SAME_ENVIRONMENT,
    "bfloat16": (*AS_SHIPPED, NARROW, "transformers, kept memory", "transformers, large pages", "litgpt"),
    "peers": (*AS_SHIPPED, "transformers, compiled", "transformers, bare loop", "litgpt", "transformers Llama"),
    "all": tuple(WAYS),
}
# Of ways that compute the same: how far the last losses may lie apart.
LOSSES_AGREE = {"float32": 1e-5, "bfloat16": 1e-3}
