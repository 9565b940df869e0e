"""Muon: momentum whose every matrix is orthogonalised before it is applied (Jordan et al. 2024)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# Odd quintic polynomials a x + b x^3 + c x^5, one a step, whose composition brings singular values in [0.001, 1]
# nearest to one (Amsel et al. 2025, "The Polar Express", arXiv:2505.16932, algorithm 1). Further steps repeat the last.
COEFFICIENTS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
)
# The polynomials leave their interval soon behind one, and rounding must not bring a singular value there.
MARGIN = 1.02
SAFETY = 1.02  # at each step but the last, where products are rounded (the same algorithm has 1.01)


def is_vector(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter is a norm, a bias, a sink; the biases of experts are so, too, which stand in a stack."""
    shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's ZeRO-3 holds flat parts of it
    return len(shape) < 2 or name.endswith("bias")


def orthogonalise(matrices: torch.Tensor, steps: int, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """Replace each matrix U S V^T by about U V^T: (N, rows, columns) -> (N, rows, columns).

    Each step multiplies by a polynomial of the Gram matrix, whose norm's root bounds the largest singular value, closer
    than the matrix's own norm.

    Args:
        matrices: Of any precision, which the result has, too.
        steps: Polynomials.
        precision: Of products: float32, or bfloat16, as in `torch.optim.Muon`, which a processor without such
            instructions emulates many times slower. Directions a thousand times weaker than the strongest come to a
            length of 0.43 to 0.58 in float32, of 0.34 to 0.6 in bfloat16; strong ones to one within an eighth in both.
    """
    tall = matrices.size(1) > matrices.size(2)
    wide = matrices.mT if tall else matrices
    x = (_by_gram_matrices if precision == torch.float32 else _by_matrices)(wide, steps, precision).to(matrices.dtype)
    return x.mT if tall else x


def _by_gram_matrices(x: torch.Tensor, steps: int, precision: torch.dtype) -> torch.Tensor:
    """Gather all polynomials on the short side, where a product is cheap, and meet the matrix once, at the end.

    Half of the arithmetic where one side is four times the other. In bfloat16 a Gram matrix would lose what is weak.
    """
    x = x.to(precision)
    gram = x @ x.mT
    square = MARGIN * gram.norm(dim=(1, 2), keepdim=True).clamp_min(1e-14)
    gram = gram / square
    whole = factor = _polynomial(gram, 0)
    for step in range(1, steps):
        gram = factor @ gram @ factor
        factor = _polynomial(gram, step)
        whole = factor @ whole
    return (whole * square.rsqrt()) @ x


def _by_matrices(x: torch.Tensor, steps: int, precision: torch.dtype) -> torch.Tensor:
    """Apply each polynomial to the matrix itself, which keeps what is weak at any precision.

    Rounding brings singular values above one at any step, so each but the last looks at them SAFETY times smaller.
    """
    x = x.to(precision)
    gram = x @ x.mT
    square = MARGIN * gram.float().norm(dim=(1, 2), keepdim=True).clamp_min(1e-14)
    x, gram = x * square.rsqrt().to(precision), (gram / square).to(precision)
    for step in range(steps):
        gram = x @ x.mT if step else gram
        a, rest = _terms(gram, step, SAFETY if step + 1 < steps else 1.0)
        x = torch.baddbmm(x, rest, x, beta=a)
    return x


def _polynomial(gram: torch.Tensor, step: int) -> torch.Tensor:
    """Return a + b G + c G^2, by which a step multiplies the matrix."""
    a, factor = _terms(gram, step)
    factor.diagonal(dim1=1, dim2=2).add_(a)
    return factor


def _terms(gram: torch.Tensor, step: int, safety: float = 1.0) -> tuple[float, torch.Tensor]:
    """Return a step's a, and its b G + c G^2, of singular values that are looked at so many times smaller."""
    a, b, c = COEFFICIENTS[min(step, len(COEFFICIENTS) - 1)]
    return a / safety, torch.baddbmm(gram, gram, gram, beta=b / safety**3, alpha=c / safety**5)


class Muon(torch.optim.AdamW):
    """Muon for the matrices inside the blocks, AdamW for all else, as one optimiser.

    A step of Muon is scaled by 0.2 sqrt(max(rows, columns)), the size of a usual step of AdamW (Liu et al. 2025,
    arXiv:2502.16982 section 2.2), so one learning rate serves both.

    Args:
        matrices: Parameters to orthogonalise: of two dimensions, or of three, which stack matrices (experts).
        others: Groups for AdamW, as it takes them.
        lr: Learning rate of all groups.
        weight_decay: Decoupled decay of the matrices, times the learning rate.
        momentum: Decay of the matrices' momentum (Nesterov's).
        steps: Polynomials of the orthogonalisation, at least one.
        precision: What it computes in; see `orthogonalise`.
        **adamw: Further arguments of AdamW.

    Raises:
        ValueError: A parameter among `matrices` has neither two nor three dimensions.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: list[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        steps: int = 5,
        precision: str = "float32",
        **adamw: Any,
    ) -> None:
        matrices = list(matrices)
        if any(parameter.ndim not in (2, 3) for parameter in matrices):
            raise ValueError(f"Muon takes matrices, got shapes {sorted({tuple(p.shape) for p in matrices})}")
        settings = {"momentum": momentum, "steps": steps, "precision": precision}
        group = {"params": matrices, "weight_decay": weight_decay, "muon": settings}
        super().__init__([group, *({**other, "muon": None} for other in others)], lr=lr, **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Apply one update; the matrices' gradients are used up (None afterwards), so that AdamW passes them by."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["muon"] is not None:
                self._step_matrices(group)
        super().step()
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        same_shape: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is not None:
                same_shape[tuple(parameter.shape[-2:])].append(parameter)
        momentum, steps = group["muon"]["momentum"], group["muon"]["steps"]
        precision = getattr(torch, group["muon"].get("precision", "float32"))  # older checkpoints do not name it
        for (rows, columns), parameters in same_shape.items():
            updates = []
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.tensor(0.0)  # AdamW looks for it when it loads a checkpoint
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                state["step"] += 1
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - momentum)
                updates.append(parameter.grad.lerp_(buffer, momentum).view(-1, rows, columns))
                parameter.grad = None
            # one batch of products a shape
            directions = orthogonalise(torch.cat(updates), steps, precision).split([len(u) for u in updates])
            size = group["lr"] * 0.2 * max(rows, columns) ** 0.5
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction.view_as(parameter), alpha=-size)


class MuonFactory:
    """Builds `Muon` for a model, as transformers' Trainer asks of an optimiser that sorts parameters itself."""

    def __call__(self, model: PreTrainedModel, **arguments: Any) -> Muon:
        """Sort the parameters: block matrices to Muon; embeddings, head, norms and biases to AdamW.

        Args:
            model: The model.
            **arguments: As `Muon` takes them; `weight_decay` decays matrices of both kinds, and no vector; `adamw_lr`
                is the learning rate of what goes to AdamW, if it has one of its own.
        """
        rate = {"lr": arguments.pop("adamw_lr", None) or arguments["lr"]}
        decay = arguments.pop("weight_decay", 0.0)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        vectors = [p for name, p in trained.items() if is_vector(name, p)]
        # Rows of an embedding or head are tokens, seen unevenly: there is no common geometry to orthogonalise.
        tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
        tables |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        matrices = [p for name, p in trained.items() if not is_vector(name, p) and id(p) not in tables]
        others = [
            {**rate, "params": [p for p in trained.values() if id(p) in tables], "weight_decay": decay},
            {**rate, "params": vectors, "weight_decay": 0.0},
        ]
        return Muon(matrices, [group for group in others if group["params"]], weight_decay=decay, **arguments)
