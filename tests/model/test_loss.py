"""The loss that never holds whole logits is transformers' loss: values, gradients, options, memory."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode

from gpt_finetune import GPTForCausalLM
from gpt_finetune.model import loss_gpt
from gpt_finetune.model.loss_gpt import Terms, chunked_loss, is_plain

ROWS, LENGTH, VOCAB = 3, 21, 131
EXACT = {"rtol": 1e-5, "atol": 1e-7}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """At most sixteen tokens a piece, five of them in the cache at once: several of both, the last ones shorter."""
    monkeypatch.setattr(loss_gpt, "rows_at_once", lambda *_: 16)
    monkeypatch.setattr(loss_gpt, "LOGITS_IN_CACHE", 5 * VOCAB)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCAB, (ROWS, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, :5] = labels[1, 9] = -100
    return {"input_ids": ids, "labels": labels}


def make(make_config, **changes) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(make_config(vocab_size=VOCAB, **changes)).train()


def learn(model, **inputs):
    """Return the loss and the gradients that it leaves."""
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found, wanted, **tolerance):
    torch.testing.assert_close(found[0], wanted[0], **tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda text, name=name: f"{name}: {text}", **tolerance)


HEADS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    "bias": {"tie_word_embeddings": False, "lm_head_bias": True},
    "soft-cap": {"final_logit_softcapping": 3.0},
}


@pytest.mark.parametrize("items", [None, 50, torch.tensor(50)], ids=["own count", "int", "tensor"])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_whole_logits(make_config, batch, head, items):
    model = make(make_config, **HEADS[head])
    inputs = batch | {"num_items_in_batch": items}
    assert_same(learn(model, **inputs), learn(model, **inputs, skip_logits=False), **EXACT)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("terms", [{"label_smoothing": 0.1}, {"z_loss": 1e-2}, {"label_smoothing": 0.2, "z_loss": 0.1}])
def test_smoothing_and_z_loss_are_what_they_are_defined_as(make_config, batch, head, terms):
    model = make(make_config, **HEADS[head])
    found = learn(model, **batch, **terms)
    model.zero_grad()
    logits = model(batch["input_ids"]).logits[:, :-1].reshape(-1, VOCAB)
    targets = batch["labels"][:, 1:].reshape(-1)
    smoothing, weight = terms.get("label_smoothing", 0.0), terms.get("z_loss", 0.0)
    loss = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    loss = loss + weight * logits.logsumexp(-1)[targets != -100].square().mean()
    loss.backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same(found, (loss.detach(), wanted), rtol=1e-5, atol=1e-6)


def test_the_trainers_label_smoother_agrees(make_config, batch):
    """Shifted to the right, as transformers' own must be told to."""
    from transformers.trainer_pt_utils import LabelSmoother

    model = make(make_config)
    whole = model(batch["input_ids"])
    wanted = LabelSmoother(epsilon=0.1)({"logits": whole.logits}, batch["labels"], shift_labels=True)
    torch.testing.assert_close(model(**batch, label_smoothing=0.1).loss, wanted, **EXACT)


@pytest.mark.parametrize("kind", ["lora", "lora and tokens", "hook"])
def test_a_wrapped_head_goes_through_its_own_forward_pass(make_config, batch, kind):
    """Tied heads share new tokens' rows with the embedding: neither side's gradient may be lost."""
    model = make(make_config)
    if kind == "hook":
        model.lm_head.register_forward_hook(lambda module, given, made: made * 2)
    else:
        tokens = {"trainable_token_indices": [1, 5]} if kind == "lora and tokens" else {}
        targets = ["q_proj"] if tokens else ["q_proj", "lm_head"]
        model = get_peft_model(model, LoraConfig(target_modules=targets, init_lora_weights=False, **tokens)).train()
    inner = model if kind == "hook" else model.get_base_model()
    assert not is_plain(inner.lm_head)
    found, wanted = learn(model, **batch), learn(model, **batch, skip_logits=False)
    assert_same(found, wanted, **EXACT)
    assert any("lora" in name or "token" in name or kind == "hook" for name in found[1])


def test_a_frozen_head_costs_no_gradient_of_its_own(make_config, batch):
    model = make(make_config, tie_word_embeddings=False)
    model.lm_head.requires_grad_(False)
    found = learn(model, **batch)
    assert_same(found, learn(model, **batch, skip_logits=False), **EXACT)
    assert "lm_head.weight" not in found[1]


def test_only_the_head_learns(make_config, batch):
    model = make(make_config, tie_word_embeddings=False)
    model.model.requires_grad_(False)
    found = learn(model, **batch)
    assert list(found[1]) == ["lm_head.weight"]
    assert_same(found, learn(model, **batch, skip_logits=False), **EXACT)


def test_gradient_checkpointing_changes_nothing(make_config, batch):
    model = make(make_config)
    wanted = learn(model, **batch)
    model.gradient_checkpointing_enable()
    assert_same(learn(model, **batch), wanted, **EXACT)


def test_compiled_it_is_the_same_loss(make_config, batch):
    """`aot_eager` traces all that inductor does, and takes a second instead of a minute."""
    model = make(make_config, final_logit_softcapping=3.0, num_hidden_layers=1)
    wanted = learn(model, **batch)
    compiled = copy.deepcopy(model)
    compiled.forward = torch.compile(compiled.forward, backend="aot_eager")
    assert_same(learn(compiled, **batch), wanted, **EXACT)


@pytest.mark.parametrize("tiles", [True, False, None], ids=["large in tiles", "large in vectors", "small"])
def test_in_bfloat16_the_gradients_are_better_than_those_of_whole_logits(make_config, batch, monkeypatch, tiles):
    """On average: which of the two rounds luckier in one batch is chance. What is large takes other products."""
    if tiles is not None:
        monkeypatch.setattr(loss_gpt, "has_tiles", lambda: tiles)
        monkeypatch.setattr(loss_gpt, "ENOUGH", 1)
        monkeypatch.setattr(loss_gpt, "ALONE", 3)
    model, errors = make(make_config), torch.zeros(2)

    def error(given, exact, **options):
        with torch.autocast("cpu", torch.bfloat16):
            found = learn(model, **given, **options)[1]
        return sum((found[name] - exact[name]).norm() for name in exact) / sum(g.norm() for g in exact.values())

    for _ in range(8):
        ids = torch.randint(VOCAB, (ROWS, LENGTH))
        given = {"input_ids": ids, "labels": torch.where(batch["labels"] == -100, -100, ids)}
        exact = learn(model, **given)[1]
        errors += torch.stack((error(given, exact), error(given, exact, skip_logits=False)))
    assert 0 < errors[0] < 0.8 * errors[1]  # the targets' part is float32


@pytest.mark.parametrize("width", [8, 1024])
@pytest.mark.parametrize("tokens", [1, 5, 9, 11, 12])
def test_products_over_a_vocabulary_by_a_few_tokens_are_the_same(monkeypatch, tokens, width):
    """In tiles: those of few tokens, those between the limits, and those beyond, whatever rounding does."""
    calls = []
    for name, value in (("has_tiles", lambda: True), ("ALONE", 4), ("TOGETHER", 11)):
        monkeypatch.setattr(loss_gpt, name, value)
    monkeypatch.setattr(loss_gpt, "even_pieces", lambda *given: calls.append(given) or -(-given[0] // 3))
    derivatives, matrix = torch.randn(tokens, 64).bfloat16(), torch.randn(64, width).bfloat16()
    found = loss_gpt.product_over_vocabulary(derivatives, matrix)
    assert calls == ([(tokens, 4)] if tokens <= 11 and width == 8 else [])
    assert found.shape == (tokens, width)
    torch.testing.assert_close(found.float(), derivatives.float() @ matrix.float(), atol=0.02, rtol=2**-7)


@pytest.fixture
def unwritten_is_nan():
    """Memory that torch hands out without writing to it holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "bfloat16"])
def test_gradients_are_written_before_they_are_added_to(make_config, batch, unwritten_is_nan, narrow):
    model = make(make_config)
    with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        loss, gradients = learn(model, **batch)
        unlabelled = {**batch, "labels": torch.full_like(batch["labels"], -100), "num_items_in_batch": 3}
        none = learn(model, **unlabelled)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert not none[0]
    assert not any(gradient.any() for gradient in none[1].values())


def test_a_model_in_bfloat16_learns_in_its_own_type(make_config, batch):
    model = make(make_config).bfloat16()
    loss, gradients = learn(model, **batch)
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients.values()} == {torch.bfloat16}
    torch.testing.assert_close(loss, learn(model, **batch, skip_logits=False)[0], rtol=1e-2, atol=1e-2)


class Widest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if torch.is_tensor(tensor):
                self.size = max(self.size, tensor.numel())
        return made


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "adapted"])
def test_whole_logits_are_never_held(make_config, batch, adapted):
    torch.manual_seed(0)
    vocab_size = 8 * VOCAB  # more than the widest activation
    model = GPTForCausalLM(make_config(vocab_size=vocab_size)).train()
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=["lm_head"])).train()
    table, learned = vocab_size * model.config.hidden_size, int((batch["labels"][:, 1:] != -100).sum())
    assert learned * vocab_size > table
    with Widest() as made:
        learn(model, **batch)
    assert made.size == table
    with Widest() as made:
        learn(model, **batch, skip_logits=False)
    assert made.size >= learned * vocab_size


def test_logits_are_there_whenever_they_are_asked_for(make_config, batch):
    model = make(make_config)
    assert model(**batch).logits is None
    assert model(**batch, skip_logits=False).logits.shape == (ROWS, LENGTH, VOCAB)
    assert model(batch["input_ids"]).logits.shape == (ROWS, LENGTH, VOCAB)
    model.eval()
    outputs = model(**batch)
    assert outputs.logits.shape == (ROWS, LENGTH, VOCAB)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch, skip_logits=True).loss, outputs.loss, **EXACT)


def test_a_loss_function_of_the_users_own_gets_its_logits(make_config, batch):
    model = make(make_config)
    model.loss_function = lambda logits, labels, **_: logits.sum()
    outputs = model(**batch)
    torch.testing.assert_close(outputs.loss, outputs.logits.sum())


def test_shifted_labels_are_taken_as_they_are(make_config, batch):
    model = make(make_config)
    shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    found = model(**batch, shift_labels=shifted).loss
    torch.testing.assert_close(found, model(**batch).loss)


def test_the_loss_of_no_token_is_not_a_number(make_config, batch):
    """As transformers': zero would pass for a model that knows everything."""
    model = make(make_config)
    batch["labels"][:] = -100
    assert model(**batch).loss.isnan()
    assert model(**batch, skip_logits=False).loss.isnan()


def test_a_second_backward_pass_is_refused_not_wrong(make_config, batch):
    loss = make(make_config)(**batch).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_very_unlikely_tokens_have_a_finite_loss_and_gradient(dtype):
    head = torch.nn.Linear(2, 3, bias=False)
    head.weight.data = torch.tensor([[400.0, 0.0], [0.0, 0.0], [-400.0, 0.0]])
    hidden = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]], requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = chunked_loss(head, hidden, torch.tensor([[0, 2]]), vocab_size=3)
    loss.backward()
    assert loss.item() == 800
    torch.testing.assert_close(hidden.grad[0, 0], torch.tensor([800.0, 0.0]))


@pytest.mark.parametrize("logit", [-30.0, -3.0, 0.0, 0.5, 2.0, 5.0, 8.0, 11.0])
def test_the_surer_a_token_the_finer_are_loss_and_gradient_in_bfloat16(logit):
    """A probability of 0.9999 is 1 in bfloat16; what is left of loss and gradient must not be."""
    head = torch.nn.Linear(4, 4, bias=False)
    head.weight.data = torch.eye(4)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden = torch.tensor([[[logit, 0.0, -0.25, 1.0]]], requires_grad=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = chunked_loss(head, hidden, torch.tensor([[-100, 0]]), 4, shift_labels=torch.tensor([[0]]))
        loss.backward()
        found.append((loss.detach(), hidden.grad, head.weight.grad))
        head.weight.grad = None
    for exact, narrow in zip(*found, strict=True):
        torch.testing.assert_close(narrow, exact, rtol=2**-6, atol=1e-9)


def test_logits_that_are_no_numbers_give_no_number_in_bfloat16():
    head = torch.nn.Linear(4, 4, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = torch.tensor([[[1.0, float("nan"), 0.0, 0.0]] * 2], requires_grad=True)
        assert chunked_loss(head, hidden, torch.tensor([[0, 1]]), 4).isnan()


def test_the_default_terms_are_the_plain_loss():
    assert Terms() == (None, 0.0, 0.0)
