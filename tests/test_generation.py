"""Answers: the same alone and in a batch, stopped or cut as they say, in the order asked."""

from __future__ import annotations

import pytest
import torch

from gpt_finetune.errors import InputError
from gpt_finetune.generation import GREEDY, answer, end_tokens, fits, generate

PROMPTS = ["def add(a, b):\n", "床", "", "举头望明月，低头思", "return a", "疑是地上霜。举头望明"]


@pytest.fixture
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture
def model(make_model, tokenizer):
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return make_model("modern", vocab_size=len(tokenizer), **ids)


def by_hand(model, tokenizer, prompt: str, length: int) -> list[int]:
    """Take the likeliest token again and again, without cache, batch or padding."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [tokenizer.eos_token_id]
    written: list[int] = []
    with torch.no_grad():
        for _ in range(length):
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_answers_are_those_of_each_prompt_alone(model, tokenizer, batch_size):
    asked: list[int] = []
    original = model.generate

    def watched(**inputs):
        asked.append(len(inputs["input_ids"]))
        return original(**inputs)

    model.generate = watched
    found = answer(model, tokenizer, PROMPTS, 6, batch_size, stop_ids=[], **GREEDY)
    assert max(asked) == min(batch_size, len(PROMPTS))
    for prompt, given in zip(PROMPTS, found, strict=True):
        assert given.text == tokenizer.decode(by_hand(model, tokenizer, prompt, 6), skip_special_tokens=True)
        assert (given.tokens, given.stopped) == (6, False)


def test_an_end_token_stops_and_is_not_counted(model, tokenizer):
    prompt, written = next((p, w) for p in PROMPTS if len(set(w := by_hand(model, tokenizer, p, 6)[1:])) > 2)
    written = by_hand(model, tokenizer, prompt, 6)
    stop = next(token for token in written if written.index(token) >= 2)
    first = written.index(stop)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]  # a list, as chat models have
    assert end_tokens(model, tokenizer) == [tokenizer.eos_token_id, stop]
    found, cut = (answer(model, tokenizer, [prompt], length, **GREEDY) for length in (6, first))
    assert (found[0].tokens, found[0].stopped) == (first, True)
    assert found[0].text == tokenizer.decode(written[:first], skip_special_tokens=True)
    assert (cut[0].text, cut[0].tokens, cut[0].stopped) == (found[0].text, first, False)
    # an end token that is also the padding token is no other case
    tokenizer.pad_token_id = stop
    longer = answer(model, tokenizer, [prompt, "疑是地上霜"], 6, **GREEDY)
    assert longer[0] == found[0]


def test_special_tokens_in_a_prompt_are_one_token_each(model, tokenizer):
    asked = []
    original = model.generate
    model.generate = lambda **inputs: asked.append(inputs["input_ids"]) or original(**inputs)
    answer(model, tokenizer, [f"a{tokenizer.eos_token}b"], 1, **GREEDY)
    assert asked[0].tolist() == [[*tokenizer("a")["input_ids"], tokenizer.eos_token_id, *tokenizer("b")["input_ids"]]]


def test_near_the_last_position_an_answer_gets_what_is_left(model, tokenizer):
    limit = model.config.max_position_embeddings
    ids = tokenizer("床前明月光，" * 40)["input_ids"]
    long, short = tokenizer.decode(ids[: limit - 3]), "床"
    lengths = [len(tokenizer(text)["input_ids"]) for text in (long, short)]
    assert lengths[0] > limit - 6
    found = answer(model, tokenizer, [short, long], 8, stop_ids=[], **GREEDY)
    assert [given.tokens for given in found] == [8, limit - lengths[0]]
    assert found[0] == answer(model, tokenizer, [short], 8, stop_ids=[], **GREEDY)[0]

    whole = tokenizer.decode(ids[: limit + 4])
    assert fits(model, tokenizer, [short, long, whole]) == [True, True, False]
    with pytest.raises(InputError, match=f"prompt = .* leave no room in the model's {limit} positions"):
        answer(model, tokenizer, [short, whole], 8)
    with pytest.raises(InputError, match="pass the model's 64 positions"):
        generate(model, tokenizer, [long], 8)


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_models_of_peft_answer(model, tokenizer, method):
    import peft

    limit = model.config.max_position_embeddings
    kinds = {
        "lora": (peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), limit),
        "prompt_tuning": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20), limit - 20),
    }
    config, room = kinds[method]
    plain = answer(model, tokenizer, PROMPTS, 4, stop_ids=[], **GREEDY)
    adapted = peft.get_peft_model(model, config).eval()
    found = answer(adapted, tokenizer, PROMPTS, 4, stop_ids=[], **GREEDY)
    assert [given.tokens for given in found] == [4] * len(PROMPTS)
    assert found == [answer(adapted, tokenizer, [prompt], 4, stop_ids=[], **GREEDY)[0] for prompt in PROMPTS]
    assert (found == plain) == (method == "lora")  # LoRA starts as nothing; 20 virtual tokens do not
    text = tokenizer.decode(tokenizer("床前明月光，" * 40)["input_ids"][: room + 4])
    assert fits(adapted, tokenizer, [text[:10], text]) == [True, False]


def test_no_prompts_no_answers(model, tokenizer):
    assert answer(model, tokenizer, [], 4) == []
