"""What spoke for an answer: exact where the model is linear, in the right window, put to the characters shown."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from gpt_finetune.tasks.answer_attribution import attribute_answer, choose_window, parts_of
from gpt_finetune.tasks.answer_config import SpanConfig
from gpt_finetune.tasks.answer_judging import excerpt_of
from gpt_finetune.tasks.answer_reading import Asked
from gpt_finetune.tasks.spans import PairEncoder, decide, read_row

CONTEXT = "the hat of Ann, the cup of Bob, 书 of 小明"


class Linear(nn.Module):
    """Scores of each column as a linear function of the sum of embeddings."""

    device = torch.device("cpu")

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 8)
        self.starts, self.ends = nn.Linear(8, width), nn.Linear(8, width)

    def get_input_embeddings(self):
        return self.table

    def forward(self, inputs_embeds, attention_mask):
        total = inputs_embeds.sum(1)
        return SimpleNamespace(start_logits=self.starts(total), end_logits=self.ends(total))


@pytest.fixture
def encoder(make_tokenizer):
    return PairEncoder(make_tokenizer(), 512, 12, 8)


def window_of(encoder, asked):
    return encoder.windows(encoder.tokenize([asked.question], [asked.context])[0], asked.spans)


def say(window, first, last, size=3.0):
    """Return what is read of a model that is sure of one span."""
    start, end = (np.zeros(len(window.ids)) for _ in range(2))
    start[first], end[last] = size, size
    return read_row(start, end, window.bounds, (window.start, window.end), SpanConfig())


def ask(answer, context=CONTEXT):
    found = (context.index(answer),) if answer else ()
    return Asked("who has the hat?", context, (answer,) if answer else (), found)


def test_of_a_linear_model_it_is_what_each_token_adds(encoder):
    (window,) = window_of(encoder, ask("Ann"))
    torch.manual_seed(0)
    model = Linear(len(encoder.tokenizer), len(window.ids)).train()
    told, other = (window.start, window.end), (window.bounds[1], window.bounds[1])
    weights = attribute_answer(model, window, told, other)
    side = model.starts.weight[told[0]] + model.ends.weight[told[1]]
    side = side - model.starts.weight[other[0]] - model.ends.weight[other[1]]
    ids = torch.from_numpy(window.ids.astype(np.int64))
    assert weights == pytest.approx((model.table(ids) @ side).detach().numpy(), abs=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("question", ["who has the hat?", "who " * 30])
def test_parts_make_up_what_is_shown(encoder, question):
    asked = Asked(question, CONTEXT, ("小明",), (CONTEXT.index("小明"),))
    (window,) = window_of(encoder, asked)
    weights = np.zeros(len(window.ids))
    weights[window.start : window.end + 1] = -2.0
    parts = parts_of(encoder, asked, window, weights)
    assert "".join(text for text, _ in parts) == excerpt_of(asked)[0]
    assert "".join(text for text, weight in parts if weight).strip() == "小明"


def test_of_a_long_context_a_part_is_shown_around_the_answer(encoder):
    context = "the cup of Bob, " * 60 + "the hat of Ann, " + "the cup of Bob, " * 60
    asked = ask("Ann", context)
    window = next(window for window in window_of(encoder, asked) if window.has_answer)
    weights = np.zeros(len(window.ids))
    weights[window.start : window.end + 1] = 1.0
    parts = parts_of(encoder, asked, window, weights)
    assert "".join(text for text, _ in parts) == excerpt_of(asked)[0]
    assert "".join(text for text, weight in parts if weight).strip() == "Ann"
    assert excerpt_of(asked)[0].count("…") == 2


def test_what_an_answer_is_held_against(encoder):
    asked = ask("Ann")
    (window,) = window_of(encoder, asked)
    right, last = (window.start, window.end), window.bounds[1]
    wrong = window.bounds[0], window.bounds[0]
    for columns, other in ((right, (last, last)), (wrong, right), ((last, last), right)):
        found = [(window, say(window, *columns))]
        answer = decide(asked.context, found, SpanConfig())
        assert choose_window(asked.context, answer, found) == (window, columns, other)
    (window,) = window_of(encoder, ask(""))  # rightly none: against the likeliest span
    found = [(window, say(window, last, last))]
    asked = ask("")
    assert choose_window(asked.context, decide(asked.context, found, SpanConfig()), found)[1:] == (
        (last, last),
        tuple(map(int, found[0][1][1, :2])),
    )


def test_it_is_the_window_that_the_answer_came_from(encoder):
    encoder.max_length = 36
    asked = ask("小明")
    windows = window_of(encoder, asked)
    assert len(windows) > 1
    found = [(w, say(w, w.bounds[1], w.bounds[1])) for w in windows]
    found[0] = windows[0], say(windows[0], windows[0].bounds[0], windows[0].bounds[0], 9.0)
    answer = decide(asked.context, found, SpanConfig())
    window, told, other = choose_window(asked.context, answer, found)
    assert window is windows[0]
    assert told == (windows[0].bounds[0],) * 2
    assert other == (windows[0].bounds[1],) * 2  # the right answer does not stand there
