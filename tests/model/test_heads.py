"""The task heads: parity with transformers' Llama and GPT-2, padding, packing, losses, accumulation."""

from __future__ import annotations

import json

import pytest
import torch
from support import ARCHITECTURES
from torch import nn
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    TrainerCallback,
)

from gpt_finetune import (
    GPTConfig,
    GPTForCausalLM,
    GPTForMultipleChoice,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.trainer import GPTTrainer

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
PAD, LABELS, CHOICES = 0, 3, 3

# task -> class, what the configuration adds
TASKS = {
    "single": (GPTForSequenceClassification, {"problem_type": "single_label_classification"}),
    "multi": (GPTForSequenceClassification, {"problem_type": "multi_label_classification"}),
    "regression": (GPTForSequenceClassification, {"problem_type": "regression", "num_labels": 1}),
    "targets": (GPTForSequenceClassification, {"problem_type": "regression"}),
    "tokens": (GPTForTokenClassification, {}),
    "answers": (GPTForQuestionAnswering, {}),
    "choices": (GPTForMultipleChoice, {}),
}


@pytest.fixture
def make_head(make_config):
    def make(task: str, architecture: str = "gpt2", **overrides):
        head, fields = TASKS[task]
        config = make_config(architecture, **{"initializer_range": 0.2, "num_labels": LABELS, **fields, **overrides})
        return head(config).eval()

    return make


def examples(task: str, count: int = 8) -> list[dict]:
    """Make rows of uneven length, whose last tokens may equal the pad id, and their labels, some of them missing."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, low: int = 0, high: int = 2) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    rows = []
    for i in range(count):
        length = 3 + (5 * i) % 8
        shape = (CHOICES, length) if task == "choices" else (length,)
        row = {"input_ids": draw(*shape, low=2, high=512), "attention_mask": torch.ones(shape, dtype=torch.long)}
        if task == "single":
            row["labels"] = torch.tensor(-100 if i == 2 else i % LABELS)
        elif task == "multi":
            row["labels"] = draw(LABELS).float()
            row["labels"][: i % 3] = -100.0
        elif task == "regression":
            row["labels"] = torch.tensor(-100.0 if i == 2 else i / 4)
        elif task == "targets":
            row["labels"] = torch.randn(LABELS, generator=generator)
            row["labels"][: i % 3] = -100.0
        elif task == "tokens":
            row["labels"] = draw(length, high=LABELS)
            row["labels"][: i % 3] = -100
        elif task == "answers":
            row["start_positions"], row["end_positions"] = torch.tensor(i % 3), torch.tensor(length - 1)
        else:
            row["labels"] = torch.tensor(-100 if i == 2 else i % CHOICES)
        rows.append(row)
    return rows


def collate(batch: list[dict], side: str = "right", pad: int = PAD) -> dict:
    """Pad to the longest row; positions of answers move with padding on the left."""
    length = max(row["input_ids"].shape[-1] for row in batch)
    padded: dict[str, list] = {name: [] for name in batch[0]}
    for row in batch:
        missing = length - row["input_ids"].shape[-1]
        where = (missing, 0) if side == "left" else (0, missing)
        for name, value in row.items():
            a_token_each = value.shape == row["input_ids"].shape and not value.is_floating_point()
            if a_token_each:
                fill = {"input_ids": pad, "attention_mask": 0, "labels": -100}[name]
                value = nn.functional.pad(value, where, value=fill)
            elif name.endswith("positions"):
                value = value + where[0]
            padded[name].append(value)
    return {name: torch.stack(values) for name, values in padded.items()}


def logits_of(output) -> torch.Tensor:
    return torch.stack((output.start_logits, output.end_logits), -1) if "start_logits" in output else output.logits


@pytest.fixture(params=TASKS)
def task(request):
    return request.param


# -------------------------------------------------------------------------------------------------------- parity

SIZE = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": PAD, "num_labels": LABELS}


def llama_pair(ours: type, theirs: type, **fields):
    shared = {**SIZE, **IDS, **fields, "num_key_value_heads": 2, "intermediate_size": 48}
    rope = {"rope_type": "default", "rope_theta": 5e4}
    reference = theirs(LlamaConfig(**shared, rope_parameters=dict(rope), initializer_range=0.2)).eval()
    config = GPTConfig(
        **shared,
        rope_parameters=dict(rope),
        max_position_embeddings=2048,
        position_embedding_type="rotary",
        norm_type="rmsnorm",
        norm_eps=1e-6,
        hidden_act="silu",
        gated_mlp=True,
        attention_bias=False,
        mlp_bias=False,
        tie_word_embeddings=False,
    )
    model = ours(config).eval()
    names = {
        name: "model." + name.split(".", 1)[1] for name in reference.state_dict() if name.startswith("transformer")
    }
    model.load_state_dict({names.get(name, name): value for name, value in reference.state_dict().items()})
    return model, reference


def gpt2_pair(**fields):
    dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    reference = GPT2ForSequenceClassification(
        GPT2Config(**SIZE, **IDS, **fields, **dropout, n_positions=64, initializer_range=0.2)
    ).eval()
    model = GPTForSequenceClassification(GPTConfig(**SIZE, **IDS, **fields, max_position_embeddings=64)).eval()
    theirs = reference.state_dict()
    state = {
        "score.weight": theirs["score.weight"],
        "model.embed_tokens.weight": theirs["transformer.wte.weight"],
        "model.embed_positions.weight": theirs["transformer.wpe.weight"],
    }
    linears = {"self_attn.o_proj": "attn.c_proj", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"}
    norms = {"input_layernorm": "ln_1", "post_attention_layernorm": "ln_2"}
    for kind in ("weight", "bias"):
        state[f"model.norm.{kind}"] = theirs[f"transformer.ln_f.{kind}"]
        for i in range(SIZE["num_hidden_layers"]):
            here, there = f"model.layers.{i}", f"transformer.h.{i}"
            state |= {f"{here}.{a}.{kind}": theirs[f"{there}.{b}.{kind}"] for a, b in norms.items()}
            state |= {f"{here}.{a}.{kind}": theirs[f"{there}.{b}.{kind}"].t() for a, b in linears.items()}
            fused = theirs[f"{there}.attn.c_attn.{kind}"].t().chunk(3)
            state |= {f"{here}.self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", fused, strict=True)}
    model.load_state_dict(state)
    return model, reference


def parity_batch(padding: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = torch.randint(2, 99, (3, 12)), torch.ones(3, 12, dtype=torch.long)
    for row, length in enumerate((0, 3, 7)):
        if padding == "left":
            mask[row, :length] = 0
        elif padding == "right":
            mask[row, 12 - length :] = 0
    return ids.masked_fill(mask == 0, PAD), mask


@pytest.mark.parametrize("padding", [None, "left", "right"])
@pytest.mark.parametrize("reference", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", torch.tensor([2, 0, 1])),
        ("multi_label_classification", torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])),
        ("regression", torch.tensor([[1.0, -2, 3], [0.5, 0, 1], [1, 7, 0]])),
        (None, torch.tensor([2, 0, 1])),
        (None, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 0]])),
    ],
)
def test_sequence_classification_is_that_of_transformers(reference, problem_type, labels, padding):
    fields = {} if problem_type is None else {"problem_type": problem_type}
    if reference == "gpt2":
        ours, theirs = gpt2_pair(**fields)
    else:
        ours, theirs = llama_pair(GPTForSequenceClassification, LlamaForSequenceClassification, **fields)
    ids, mask = parity_batch(padding)
    # GPT-2 in transformers counts padding on the left as positions unless told otherwise
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    expected = theirs(**inputs, labels=labels)
    del inputs["position_ids"]
    found = ours(**inputs, labels=labels)
    torch.testing.assert_close(found.logits, expected.logits, **CLOSE)
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
    assert ours.config.problem_type == theirs.config.problem_type


def test_one_label_is_regression_as_in_transformers():
    ours, theirs = llama_pair(GPTForSequenceClassification, LlamaForSequenceClassification, num_labels=1)
    ids, mask = parity_batch("right")
    labels = torch.tensor([1.5, -2.0, 3.0])
    found, expected = (model(ids, attention_mask=mask, labels=labels) for model in (ours, theirs))
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
    assert ours.config.problem_type == theirs.config.problem_type == "regression"


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_token_classification_is_that_of_transformers(padding):
    ours, theirs = llama_pair(GPTForTokenClassification, LlamaForTokenClassification)
    ids, mask = parity_batch(padding)
    labels = torch.randint(0, LABELS, ids.shape).masked_fill(mask == 0, -100)
    found, expected = (model(ids, attention_mask=mask, labels=labels) for model in (ours, theirs))
    torch.testing.assert_close(found.logits[mask.bool()], expected.logits[mask.bool()], **CLOSE)
    torch.testing.assert_close(found.loss, expected.loss, **CLOSE)


@pytest.mark.parametrize("padding", [None, "left", "right"])
def test_question_answering_is_that_of_transformers(padding):
    ours, theirs = llama_pair(GPTForQuestionAnswering, LlamaForQuestionAnswering)
    ids, mask = parity_batch(padding)
    answer = {"start_positions": torch.tensor([4, 3, 4]), "end_positions": torch.tensor([9, 8, 4])}
    if padding == "left":
        answer = {name: value.clamp(min=7) for name, value in answer.items()}
    found = ours(ids, attention_mask=mask, **answer)
    expected = theirs(ids, attention_mask=mask, **answer)
    real = mask.bool()
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(found[name][real], expected[name][real], **CLOSE)
    if padding is None:
        torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
        by_items = ours(ids, num_items_in_batch=5, **answer).loss
        torch.testing.assert_close(by_items, theirs(ids, num_items_in_batch=5, **answer).loss, **CLOSE)
    else:  # theirs spends probability on padding: each row by itself is what is meant
        alone = []
        for row in range(3):
            offset = int((~real[row]).sum()) if padding == "left" else 0
            own = {name: value[row : row + 1] - offset for name, value in answer.items()}
            alone.append(theirs(ids[row : row + 1, real[row]], **own).loss)
        torch.testing.assert_close(found.loss, torch.stack(alone).mean(), **CLOSE)


def test_gradients_are_those_of_transformers():
    ours, theirs = llama_pair(GPTForTokenClassification, LlamaForTokenClassification)
    ids, _ = parity_batch(None)
    for model in (ours, theirs):
        model(ids, labels=ids % LABELS).loss.backward()
    torch.testing.assert_close(ours.score.weight.grad, theirs.score.weight.grad, **CLOSE)
    a, b = (model.get_input_embeddings().weight.grad for model in (ours, theirs))
    torch.testing.assert_close(a, b, **CLOSE)


# --------------------------------------------------------------------------------------------- padding and packing


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_neighbours_changes_nothing(make_head, architecture, task, side):
    model, rows = make_head(task, architecture), examples(task, 5)
    batch = collate(rows, side)
    together = model(**batch)
    losses = []
    for i, row in enumerate(rows):
        alone = model(**collate([row]))
        real = batch["attention_mask"][i].bool()
        found = logits_of(together)[i]
        if task in ("tokens", "answers"):
            found = found[real]
        torch.testing.assert_close(found, logits_of(alone)[0], **CLOSE)
        losses.append(alone.loss)
    if task == "answers":
        torch.testing.assert_close(together.loss, torch.stack(losses).mean(), **CLOSE)
        assert together.start_logits[batch["attention_mask"] == 0].max() < -1e30


@pytest.mark.parametrize("eos_is_pad", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_real_token_is_pooled(make_head, architecture, side, eos_is_pad):
    pad = 1 if eos_is_pad else PAD
    model = make_head("single", architecture, pad_token_id=pad)
    texts = [[5, 1, 7, 8, 1], [9, 10, 1], [4, 1]]  # each ends with end-of-text, which may be the pad id too
    rows = [{"input_ids": torch.tensor(t), "attention_mask": torch.ones(len(t), dtype=torch.long)} for t in texts]
    batch = collate(rows, side, pad)
    found = model(**batch).logits
    for i, text in enumerate(texts):
        hidden = model.model(torch.tensor([text])).last_hidden_state[0, -1]
        torch.testing.assert_close(found[i], model.score(hidden), **CLOSE)


def test_without_a_mask_trailing_pads_are_padding(make_head):
    model = make_head("single")
    texts = [[5, PAD, 7, 8, 9], [9, 10, 11, PAD, PAD], [4, PAD, 6, PAD, PAD]]  # a pad id in the middle is none
    found = model(torch.tensor(texts)).logits
    for i, length in enumerate((5, 3, 3)):
        torch.testing.assert_close(found[i : i + 1], model(torch.tensor([texts[i][:length]])).logits, **CLOSE)


def test_without_mask_and_pad_id_the_last_token_is_pooled(make_head):
    model = make_head("single", pad_token_id=None)
    x = torch.tensor([[5, 6, 0], [7, 8, 9]])
    expected = model.score(model.model(x).last_hidden_state[:, -1])
    torch.testing.assert_close(model(x).logits, expected, **CLOSE)
    embeds = model.get_input_embeddings()(x)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, expected, **CLOSE)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    short = model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(short[:1], model(x[:1, :2]).logits, **CLOSE)


def pack(documents: list[list[torch.Tensor]], side: str | None, pad: int = 1) -> dict:
    """Pack each list of documents into a row; `side` says where, if anywhere, rows are padded."""
    length = max(sum(map(len, row)) for row in documents) + (0 if side is None else 2)
    batch: dict[str, list] = {"input_ids": [], "attention_mask": [], "position_ids": []}
    for row in documents:
        pieces, missing = list(row), length - sum(map(len, row))
        fill = [torch.full((1,), -1)] * missing
        if side == "left":
            pieces = fill + pieces
        elif side == "between":
            pieces = [pieces[0], *fill[:1], *pieces[1:], *fill[1:]]
        elif side == "inside":  # the first document
            pieces = [pieces[0][:1], *fill[:1], pieces[0][1:], *pieces[1:], *fill[1:]]
        else:
            pieces = pieces + fill
        ids = torch.cat(pieces)
        positions, real = torch.zeros_like(ids), ids >= 0
        positions[real] = torch.cat([torch.arange(len(document)) for document in row])
        for name, value in zip(batch, (ids.masked_fill(~real, pad), real.long(), positions), strict=True):
            batch[name].append(value)
    stacked = {name: torch.stack(values) for name, values in batch.items()}
    if side is None:
        del stacked["attention_mask"]
    return stacked


def documents_of(*rows: tuple[int, ...]) -> list[list[torch.Tensor]]:
    """Make rows of documents of these lengths, each ending with end-of-text, id 1, which is also the pad id."""
    return [[torch.cat([torch.randint(2, 512, (length - 1,)), torch.tensor([1])]) for length in row] for row in rows]


PACKED = {None: ((5, 7), (3, 4, 5), (12,)), "left": ((5, 1, 3), (4,), (2, 6)), "right": ((5, 1, 3), (4,), (2, 6))}
PACKED["between"] = PACKED["right"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", PACKED)
@pytest.mark.parametrize("task", ["single", "multi", "targets"])
def test_packed_documents_are_classified_as_by_themselves(make_head, architecture, task, side, attention):
    model = make_head(task, architecture, pad_token_id=1, attn_implementation=attention)
    rows = documents_of(*PACKED[side])
    alone = [document for row in rows for document in row]
    labels = torch.stack([row["labels"] for row in examples(task, len(alone))])
    padded = {"input_ids": nn.utils.rnn.pad_sequence(alone, batch_first=True, padding_value=1)}
    lengths = torch.tensor([len(document) for document in alone])
    padded["attention_mask"] = (torch.arange(padded["input_ids"].shape[1]) < lengths[:, None]).long()
    found, gradients = [], []
    for batch in (pack(rows, side), padded):
        model.zero_grad()
        found.append(model(**batch, labels=labels))
        found[-1].loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    assert found[0].logits.shape == (len(alone), LABELS)
    torch.testing.assert_close(found[0].logits, found[1].logits, **CLOSE)
    torch.testing.assert_close(found[0].loss, found[1].loss, **CLOSE)
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, **CLOSE)
    halved = model(**pack(rows, side), labels=labels, num_items_in_batch=2 * int(labels.ne(-100).sum())).loss
    torch.testing.assert_close(halved, found[1].loss / 2, **CLOSE)


def test_a_single_row_of_positions_serves_all_rows(make_head):
    model = make_head("single")
    x, positions = torch.randint(2, 512, (2, 12)), torch.cat([torch.arange(5), torch.arange(7)])[None]
    expected = model(x, position_ids=positions.expand(2, -1)).logits
    assert len(expected) == 4
    torch.testing.assert_close(model(x, position_ids=positions).logits, expected)
    torch.testing.assert_close(expected[1::2], model(x[:, 5:]).logits, **CLOSE)


@pytest.mark.parametrize("mask", [True, False])
def test_positions_that_do_not_restart_pack_nothing(make_head, mask):
    model = make_head("single", "llama")
    x = torch.tensor([[5, PAD, 7, 8, 9], [9, 10, 11, PAD, PAD], [PAD] * 5])
    more = {"attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0], [0] * 5])} if mask else {}
    for positions in (torch.arange(5), torch.arange(3, 8), 2 * torch.arange(5)):
        given = {"position_ids": positions.expand(3, 5), **more}
        hidden = model.model(x, **given).last_hidden_state
        expected = model.score(hidden[torch.arange(3), torch.tensor([4, 2, 0] if mask else [4, 4, 4])])
        torch.testing.assert_close(model(x, **given).logits, expected, **CLOSE)


@pytest.mark.parametrize("position", ["0", "1", "on"])
@pytest.mark.parametrize("side", ["left", "right", "between", "inside"])
def test_padding_begins_no_document_whatever_its_position(make_head, side, position):
    model, rows = make_head("single", pad_token_id=1), documents_of((4, 3), (2, 1))
    expected = torch.cat(
        [model(document[None], attention_mask=torch.ones(1, len(document))).logits for row in rows for document in row]
    )
    batch = pack(rows, side)
    padding = batch["attention_mask"] == 0
    filler = torch.arange(padding.shape[1]).expand_as(padding) if position == "on" else torch.tensor(int(position))
    batch["position_ids"] = torch.where(padding, filler, batch["position_ids"])
    torch.testing.assert_close(model(**batch).logits, expected, **CLOSE)


def test_padding_amid_a_row_is_passed_over(make_head, task):
    if task == "answers":
        return  # positions are columns
    model, rows = make_head(task), examples(task, 2)
    for name in ("input_ids", "attention_mask", *(["labels"] if task == "tokens" else [])):
        fill = torch.full_like(rows[1][name][..., :1], -100 if name == "labels" else 0)
        rows.append({**rows[1]}) if name == "input_ids" else None
        rows[2][name] = torch.cat([rows[1][name][..., :2], fill, rows[1][name][..., 2:]], -1)
    plain, gaps = model(**collate(rows[1:2])), model(**collate(rows[2:]))
    torch.testing.assert_close(gaps.loss, plain.loss, **CLOSE)


def test_packed_embeddings_are_classified_as_ids(make_head):
    model = make_head("single")
    batch = pack(documents_of((4, 3), (2, 5)), None)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    found = model(inputs_embeds=embeds, position_ids=batch["position_ids"]).logits
    torch.testing.assert_close(found, model(**batch).logits, **CLOSE)


def test_packed_rows_give_each_token_what_its_document_gives(make_head, architecture):
    model = make_head("tokens", architecture)
    x = torch.randint(2, 512, (1, 12))
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = model(x, position_ids=positions).logits
    torch.testing.assert_close(packed[:, :5], model(x[:, :5]).logits, **CLOSE)
    torch.testing.assert_close(packed[:, 5:], model(x[:, 5:]).logits, **CLOSE)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("task", ["answers", "choices"])
def test_heads_of_one_document_refuse_packed_rows(make_head, task, masked):
    model, batch = make_head(task), collate(examples(task, 2))
    expected = logits_of(model(**batch))
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    torch.testing.assert_close(logits_of(model(**batch)), expected)
    batch["position_ids"][..., :3] = torch.tensor([0, 1, 0])
    if not masked:
        del batch["attention_mask"]
    with pytest.raises(ValueError, match=r"position_ids restarts.* documents into .* takes one a row.*attention_mask"):
        model(**batch)


@pytest.mark.parametrize("task", ["single", "tokens", "answers"])
def test_a_cached_beginning_gives_what_the_whole_gives(make_head, architecture, task):
    model = make_head(task, architecture)
    x = torch.randint(2, 512, (2, 10))
    mask = torch.ones_like(x)
    mask[1, :3] = 0
    cache = model.model(
        x[:, :6], attention_mask=mask[:, :6], position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, :6], use_cache=True
    ).past_key_values
    whole = logits_of(model(x, attention_mask=mask))
    rest = logits_of(model(x[:, 6:], attention_mask=mask, past_key_values=cache, use_cache=True))
    torch.testing.assert_close(rest, whole if task == "single" else whole[:, 6:], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_choice_is_scored_as_a_row_and_an_empty_one_never_taken(make_head, architecture, side):
    model = make_head("choices", architecture)
    batch = collate(examples("choices", 4), side)
    found = model(**batch)
    assert found.logits.shape == (4, CHOICES)
    for choice in range(CHOICES):
        for i, (row, real) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
            hidden = model.model(row[choice, real[choice]][None]).last_hidden_state[0, -1]
            torch.testing.assert_close(found.logits[i, choice], model.score(hidden)[0], **CLOSE)
    batch["attention_mask"][1, 2], batch["input_ids"][1, 2] = 0, PAD
    batch["labels"] = torch.tensor([0, 1, 2, 0])
    fewer = model(**batch)
    fewer.loss.backward()
    assert fewer.logits.softmax(-1)[1, 2] == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    two = model(batch["input_ids"][1:2, :2], attention_mask=batch["attention_mask"][1:2, :2], labels=torch.tensor([1]))
    torch.testing.assert_close(fewer.logits[1, :2], two.logits[0], **CLOSE)


# -------------------------------------------------------------------------------------------------------- losses


def test_losses_are_sums_over_items_divided_by_their_number(make_head, task):
    model, rows = make_head(task), examples(task)
    batch = collate(rows)
    items = len(rows) if task == "answers" else int(batch["labels"].ne(-100).sum())
    mean = model(**batch).loss
    assert mean.isfinite()
    for count in (7, torch.tensor(7), torch.tensor(7.0)):
        torch.testing.assert_close(model(**batch, num_items_in_batch=count).loss, mean * items / 7, **CLOSE)
    halves = [model(**collate(half), num_items_in_batch=items).loss for half in (rows[:3], rows[3:])]
    torch.testing.assert_close(sum(halves), mean, **CLOSE)


def test_missing_labels_weigh_nothing(make_head, task):
    if task == "answers":
        row = {"input_ids": torch.tensor([5, 6]), "attention_mask": torch.ones(2, dtype=torch.long)}
        missing = {**row, "start_positions": torch.tensor(-100), "end_positions": torch.tensor(-100)}
    else:
        missing = examples(task, 1)[0]
        missing["labels"] = torch.full_like(missing["labels"], -100)
    model, rows = make_head(task), examples(task, 2)
    torch.testing.assert_close(model(**collate([*rows, missing])).loss, model(**collate(rows)).loss, **CLOSE)
    alone = model(**collate([missing]), num_items_in_batch=4).loss
    assert alone == 0
    alone.backward()  # and has a gradient, of zeros


def test_labels_of_other_number_types(make_head):
    for task, dtype in (("single", torch.int32), ("tokens", torch.int32), ("choices", torch.int32)):
        model, batch = make_head(task), collate(examples(task))
        other = model(**{**batch, "labels": batch["labels"].to(dtype)}).loss
        torch.testing.assert_close(other, model(**batch).loss, **CLOSE)
    model, batch = make_head("multi", problem_type=None), collate(examples("multi"))
    batch["labels"] = batch["labels"] == 1
    found = model(**batch).loss
    assert model.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(found, model(**{**batch, "labels": batch["labels"].float()}).loss, **CLOSE)
    model = make_head("regression")
    assert model(**{**collate(examples("regression", 2)), "labels": torch.tensor([[3], [4]])}).loss.isfinite()


class Catch(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_accumulated_batches_have_loss_and_gradient_of_the_big_batch(make_head, task, tmp_path):
    caught, losses = [], []
    for batch_size, accumulation in ((8, 1), (2, 4), (1, 8)):
        torch.manual_seed(0)
        catch = Catch()
        config = TrainConfig(
            max_steps=1,
            log_steps=1,
            precision="float32",
            batch_size=batch_size,
            accumulation=accumulation,
            max_grad_norm=0,
        )
        trainer = GPTTrainer(
            model=make_head(task, "modern"),
            args=training_arguments(config, tmp_path / str(batch_size)),
            train_dataset=examples(task),
            data_collator=collate,
            callbacks=[catch],
        )
        assert trainer.model_accepts_loss_kwargs
        trainer.train()
        caught.append(catch.gradients)
        losses += [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
    for other in caught[1:]:
        assert other.keys() == caught[0].keys()
        for name, gradient in caught[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4)


def test_evaluation_is_item_weighted_whatever_the_batch_size(make_head, task, tmp_path):
    found = []
    for batch_size in (1, 2, 7):
        torch.manual_seed(0)
        config = TrainConfig(eval_batch_size=batch_size, precision="float32")
        trainer = GPTTrainer(
            model=make_head(task, "modern"),
            args=training_arguments(config, tmp_path),
            eval_dataset=examples(task, 7),
            data_collator=collate,
        )
        found.append(trainer.evaluate()["eval_loss"])
    expected = trainer.model(**collate(examples(task, 7))).loss.item()
    assert found == pytest.approx([expected] * 3, rel=1e-4)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("single", {"labels": torch.tensor([0, 3])}, "labels has 3, but num_labels is 3: it runs from 0 to 2"),
        ("single", {"labels": torch.tensor([-1, 0])}, "labels has -1, but num_labels is 3"),
        ("single", {"labels": torch.tensor([0.0, 1.0])}, r"labels is torch.float32 of shape \(2,\).*wants integers"),
        ("single", {"labels": torch.zeros(2, 3, dtype=torch.long)}, r"shape \(2, 3\).*of shape \(2,\)"),
        ("multi", {"labels": torch.tensor([0, 2])}, r"shape \(2,\).*num_labels=3 wants numbers of shape \(2, 3\)"),
        ("multi", {"labels": torch.full((2, 3), 2.0)}, "labels has 2.0, but the number of classes is 2"),
        ("regression", {"labels": torch.zeros(2, 3)}, r"num_labels=1 wants numbers of shape \(2, 1\)"),
        ("tokens", {"labels": torch.full((2, 8), 3)}, "labels has 3, but num_labels is 3"),
        ("answers", {"end_positions": torch.tensor([8, 0])}, "end_positions has 8, but the number of tokens is 8"),
        ("choices", {"labels": torch.tensor([3, 0])}, "labels has 3, but the number of choices is 3"),
        (
            "tokens",
            {"labels": torch.zeros(2, 7, dtype=torch.long)},
            r"shape \(2, 7\).* wants integers of shape \(2, 8\)",
        ),
        ("choices", {"labels": torch.zeros(3, dtype=torch.long)}, r"shape \(3,\).* wants integers of shape \(2,\)"),
        ("answers", {"start_positions": torch.zeros(2)}, "start_positions .*torch.float32.* wants integers"),
        ("single", {"position_ids": torch.arange(8) % 2}, r"shape \(2,\), .*for 8 documents .* of shape \(8,\)"),
        ("multi", {"position_ids": torch.arange(8) % 2}, r"shape \(2, 3\), .*for 8 documents .* of shape \(8, 3\)"),
        ("choices", {"input_ids": torch.ones(2, 8, dtype=torch.long)}, r"shape \(2, 8\).*\(B, C, T\)"),
    ],
)
def test_bad_labels_are_refused_by_name(make_head, task, change, message):
    batch = {**collate(examples(task, 2)), **change}
    if "position_ids" in change:
        batch = {**batch, "attention_mask": None, "position_ids": change["position_ids"].expand(2, 8)}
    with pytest.raises(ValueError, match=message):
        make_head(task)(**batch)


# ------------------------------------------------------------------------------------------------ like transformers


@pytest.mark.parametrize(
    ("task", "auto"),
    [
        ("single", AutoModelForSequenceClassification),
        ("tokens", AutoModelForTokenClassification),
        ("answers", AutoModelForQuestionAnswering),
        ("choices", AutoModelForMultipleChoice),
    ],
)
def test_a_pretrained_model_gets_a_head_and_is_saved_with_it(make_model, architecture, task, auto, tmp_path):
    pretrained = make_model(architecture)
    pretrained.save_pretrained(tmp_path / "pretrained")
    head = auto.from_pretrained(tmp_path / "pretrained", num_labels=LABELS).eval()
    assert type(head) is TASKS[task][0]
    for name, value in pretrained.model.state_dict().items():
        assert torch.equal(head.model.state_dict()[name], value)
    head.save_pretrained(tmp_path / "tuned")
    again = auto.from_pretrained(tmp_path / "tuned").eval()
    for name, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    batch = collate(examples(task, 3))
    torch.testing.assert_close(logits_of(again(**batch)), logits_of(head(**batch)), **CLOSE)
    auto_map = json.loads((tmp_path / "tuned" / "config.json").read_text())["auto_map"]
    assert auto_map[auto.__name__] == f"heads_gpt.{type(head).__name__}"
    back = GPTForCausalLM.from_pretrained(tmp_path / "tuned")  # the other way: the base model survives
    for name, value in pretrained.model.state_dict().items():
        assert torch.equal(back.model.state_dict()[name], value)


def test_outputs_pass_through(make_head, architecture, task):
    model = make_head(task, architecture)
    model.set_attn_implementation("eager")
    batch = collate(examples(task, 2))
    out = model(**batch, output_hidden_states=True, output_attentions=True)
    rows = 2 * CHOICES if task == "choices" else 2
    assert len(out.hidden_states) == 3
    assert out.hidden_states[-1].shape == (rows, 8, 32)
    assert len(out.attentions) == 2
    assert out.attentions[0].shape == (rows, 4, 8, 8)
    as_tuple = model(**batch, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], out.loss)
    model.config.return_dict = False
    torch.testing.assert_close(model(**batch)[0], out.loss)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(make_head, task, reentrant):
    model, batch = make_head(task, "modern").train(), collate(examples(task))
    model(**batch).loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(**batch).loss.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], **CLOSE)


def test_every_parameter_learns(make_head, architecture, task):
    model = make_head(task, architecture)
    model(**collate(examples(task))).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert all(name.endswith("k_proj.bias") for name in without)


@pytest.fixture
def whole():
    """Return a compiler of whole graphs; what it leaves in dynamo's caches does not count against other tests."""
    torch._dynamo.reset()
    yield lambda model: torch.compile(model, fullgraph=True, backend="eager")
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        *((task, "modern") for task in TASKS),
        *(
            ("single", name) if name == "gpt-oss" else pytest.param("single", name, marks=pytest.mark.long)
            for name in ARCHITECTURES
        ),
    ],
)
def test_compiled_whole_it_gives_the_same(make_head, task, architecture, whole):
    model, batch = make_head(task, architecture), collate(examples(task))
    compiled = whole(model)
    for more in ({}, {"num_items_in_batch": torch.tensor(5)}):
        found, expected = compiled(**batch, **more), model(**batch, **more)
        torch.testing.assert_close(found.loss, expected.loss, **CLOSE)
        torch.testing.assert_close(logits_of(found), logits_of(expected), **CLOSE)


def test_compiled_whole_it_finds_the_problem_out(make_head, whole):
    model, batch = make_head("multi", problem_type=None), collate(examples("multi"))
    found = whole(model)(**batch).loss
    assert model.config.problem_type == "multi_label_classification"
    torch.testing.assert_close(found, model(**batch).loss, **CLOSE)
