"""What in a text spoke for a label: exact where the model is linear, and the parts make up the whole text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from gpt_finetune import GPTForSequenceClassification
from gpt_finetune.tasks.attribution import attribute, attribute_tag, join
from gpt_finetune.tasks.tag_features import WordEncoder


def test_parts_make_up_the_text_and_the_strongest_weighs_one():
    parts = join("so bad", [(0, 2), (2, 6), (6, 6)], np.array([0.5, -2.0, 9.0]) / [1, 1, 9])
    assert parts == [("so", 0.25), (" bad", -1.0)]


def test_tokens_of_one_character_are_one_part():
    assert join("你好", [(0, 1), (0, 1), (1, 2)], np.array([0.25, 0.25, -1.0])) == [("你", 0.5), ("好", -1.0)]


def test_what_the_model_did_not_see_weighs_nothing():
    assert join("a b c", [(0, 1), (2, 3)], np.array([1.0, 0.0])) == [("a", 1.0), (" ", 0.0), ("b", 0.0), (" c", 0.0)]
    assert join("a", [(0, 0)], np.array([3.0])) == [("a", 0.0)]
    assert join("a", [(0, 1)], np.array([0.0])) == [("a", 0.0)]


class Bag(nn.Module):
    """A linear model of the sum of embeddings."""

    device = torch.device("cpu")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(size, 8), nn.Linear(8, 3)

    def get_input_embeddings(self):
        return self.table

    def forward(self, inputs_embeds, attention_mask):
        return type("Output", (), {"logits": self.head(inputs_embeds.sum(1))})


def test_of_a_linear_model_it_is_what_each_token_adds(make_tokenizer):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = Bag(len(tokenizer)).train()
    text = "def add(a, b): 床前明月光"
    parts = attribute(model, tokenizer, text, 2, 0, 512)
    assert "".join(part for part, _ in parts) == text
    ids = tokenizer(text)["input_ids"]
    added = model.table(torch.tensor(ids)) @ (model.head.weight[2] - model.head.weight[0])
    scale = sum(weight for _, weight in parts) / added.sum().item()
    assert scale == pytest.approx(1 / added.abs().max().item(), rel=0.05)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_classifier_of_ours_is_asked_once_and_left_as_it_was(make_config, make_tokenizer):
    tokenizer = make_tokenizer()
    model = GPTForSequenceClassification(make_config(vocab_size=len(tokenizer), num_labels=2)).eval()
    text = "return a + b\n" * 40
    parts = attribute(model, tokenizer, text, 0, 1, 16)
    assert "".join(part for part, _ in parts) == text
    assert parts[-1][1] == 0.0  # behind the sixteenth token
    assert max(abs(weight) for _, weight in parts) == 1.0
    assert not model.training


class WordBag(Bag):
    """A linear model that says of each token the same: what all embeddings add up to."""

    def forward(self, inputs_embeds, attention_mask):
        logits = self.head(inputs_embeds.sum(1, keepdim=True)).expand(-1, inputs_embeds.shape[1], -1)
        return type("Output", (), {"logits": logits})


@pytest.mark.parametrize("subword", ["last", "first"])
@pytest.mark.parametrize("room", [512, 12])
def test_of_a_word_it_is_what_each_word_of_its_window_adds(make_tokenizer, subword, room):
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = WordBag(len(tokenizer)).train()
    words = ["def", "add(a,", "b)", "elephants", "return", "床前明月光", "understanding", "a", "+", "b"]
    encoder = WordEncoder(tokenizer, " ", room, 4, subword)
    tokens = encoder.encode([words])[0]
    (window,) = [each for each in encoder.windows(tokens)[0] if 3 in each.words]
    weights = attribute_tag(model, encoder, words, 3, 2, 0)
    side = model.head.weight[2] - model.head.weight[0]
    added = [(model.table(torch.tensor(word[-encoder.room :])) @ side).sum().item() for word in tokens]
    seen = np.array([weight != 0 for weight in weights])
    assert seen[window.words].all()
    assert seen.all() == (room == 512)
    inside = np.where(seen, added, 0.0)
    assert weights == pytest.approx(inside / np.abs(inside).max(), abs=1e-5)
    assert sum(len(token) for token, in_window in zip(tokens, seen, strict=True) if in_window) == len(window.ids)
    assert model.training
