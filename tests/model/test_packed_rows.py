"""Documents that share a row never see each other: whatever the backend, the mask beside them and the mode."""

from __future__ import annotations

import pytest
import torch
from support import ARCHITECTURES

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
LENGTHS = (5, 1, 9, 6)  # the third is longer than two windows of the sliding architectures
TOTAL = sum(LENGTHS)


def ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(2, 512, (rows, TOTAL))


def parts() -> list[slice]:
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, LENGTHS, strict=True)]


def arguments(mask: str) -> dict[str, torch.Tensor]:
    """Return what marks the documents: positions that restart, alone or beside a mask, or a mask over pairs."""
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    block = (document[:, None] == document) & torch.ones(TOTAL, TOTAL).tril().bool()
    masks = {"none": {}, "ones": {"attention_mask": torch.ones(2, TOTAL, dtype=torch.long)}}
    return {"position_ids": positions, **masks.get(mask, {"attention_mask": block.expand(2, 1, -1, -1)})}


def pairs(architecture: str) -> list[str]:
    """Name the masks to try: one over pairs is taken as it stands, so it would have to say the window, too."""
    return ["none", "ones"] if "sliding_window" in ARCHITECTURES[architecture] else ["none", "ones", "block"]


@torch.no_grad()
def assert_packed_is_as_alone(model, masks: list[str], backend: str) -> None:
    x = ids()
    alone = torch.cat([model(x[:, part]).logits for part in parts()], dim=1)
    model.set_attn_implementation(backend)
    for mask in masks:
        torch.testing.assert_close(model(x, **arguments(mask)).logits, alone, **CLOSE, msg=mask)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_packed_is_as_alone(make_model, architecture, backend):
    assert_packed_is_as_alone(make_model(architecture, attn_implementation=backend), pairs(architecture), backend)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", pytest.param("gpt-oss", marks=pytest.mark.long)])
def test_packed_is_as_alone_on_flex(make_model, architecture):
    # each document alone by another backend: flex_attention would be compiled anew for each length
    assert_packed_is_as_alone(make_model(architecture), ["none", "ones"], "flex_attention")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_on_packed_rows_is_training_on_each(make_model, architecture, backend, checkpointing):
    model, x = make_model(architecture, attn_implementation=backend).train(), ids()
    if checkpointing:
        model.gradient_checkpointing_enable()

    def gradients(*passes):
        model.zero_grad()
        for tokens, labels, options in passes:
            model(
                tokens, labels=labels, num_items_in_batch=torch.tensor(items), use_cache=False, **options
            ).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    labels = x.clone()
    labels[:, [part.start for part in parts()]] = -100  # nothing predicts a document's first token
    items = int((labels != -100).sum())
    expected = gradients(*((x[:, part], labels[:, part], {}) for part in parts() if part.stop - part.start > 1))
    for mask in pairs(architecture):
        found = gradients((x, labels, arguments(mask)))
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, **CLOSE, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_another_document_changes_nothing(make_model, architecture, backend):
    model, x = make_model(architecture, attn_implementation=backend), ids()
    y = x.clone()
    y[:, parts()[2]] = torch.randint(2, 512, (2, LENGTHS[2]))
    for mask in pairs(architecture):
        a, b = (model(tokens, **arguments(mask)).logits for tokens in (x, y))
        for number, part in enumerate(parts()):
            moved = (a[:, part] - b[:, part]).abs().max()
            assert moved > 1e-3 if number == 2 else moved == 0, (mask, number)
