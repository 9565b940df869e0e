"""Which examples are trained on, how often, how much of each; and the books of it all."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from supervised_helpers import chat, learned, whole

from gpt_finetune.errors import InputError
from gpt_finetune.report.summary import FATES
from gpt_finetune.supervised import ExamplesConfig, ExampleSourceConfig
from gpt_finetune.supervised.ledger import ExampleLedger, SourceAccount


def many(count: int, start: int = 0):
    return [chat(f"question {i} 问?", f"answer {i} 答。") for i in range(start, start + count)]


def texts(rows) -> list[str]:
    return [] if rows is None else [bytes(rows.example(i).ids).hex() for row in rows.rows for i in row]


def test_duplicates_are_dropped_before_the_split(prepare):
    rows = [*many(20), chat("question  0 问? ", "answer 0 答。"), *many(20)]
    prepared = prepare(rows, validation_fraction=0.2)
    total = prepared.ledger.total
    assert (total.examples.total, total.examples.duplicate) == (41, 21)
    assert (total.examples.train, total.examples.validation) == (16, 4)
    both = prepare(rows, validation_fraction=0.2, deduplicate=False)
    assert both.ledger.total.examples.dropped == 0
    assert not set(texts(both.train)) & set(texts(both.validation))


@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_prompt_is_trained_on(prepare, seed):
    """Three answers to each question, which differ in spaces and case; other turns follow."""
    ask = [lambda i: f"Question {i}?", lambda i: f"question  {i}?", lambda i: f"question {i}? "]
    rows = [chat(ask[k](i), f"answer {k}", f"more {k}", "好") for i in range(30) for k in range(3)]
    prepared = prepare(rows, validation_fraction=0.1, seed=seed)

    def openings(side) -> set[str]:
        written = [prepared.tokenizer.decode(side.example(number).ids) for (number,) in side.rows]
        return {" ".join(text.split("<|im_end|>")[0].lower().split()) for text in written}

    assert len(openings(prepared.train) | openings(prepared.validation)) == 30
    assert not openings(prepared.train) & openings(prepared.validation)
    assert len(prepared.validation) == 9
    assert len(prepared.train) == 81


def test_seeds_hold_out_others_and_one_prompt_cannot_be_split(prepare):
    kept = {tuple(texts(prepare(many(20), validation_fraction=0.1, seed=seed).validation)) for seed in range(4)}
    assert len(kept) > 1
    prepared = prepare([chat("a", str(i)) for i in range(5)], validation_fraction=0.5)
    assert prepared.validation is None
    assert prepared.validation_bytes == 0
    assert prepared.eval_tokens_per_byte is None
    assert prepared.prompts == []


def test_held_out_sources_keep_what_both_have(prepare):
    prepared = prepare(
        [*many(10), chat("question 3 问?", "another answer")], validation=[many(2, start=3), many(1, start=90)]
    )
    total = prepared.ledger.total.examples
    assert (total.train, total.validation, total.duplicate, total.held_out) == (8, 3, 2, 1)
    assert [s.source.rsplit("/")[-1] for s in prepared.ledger.sources] == [
        "held_out0.jsonl",
        "held_out1.jsonl",
        "rows0.jsonl",
    ]


def test_prompts_with_reference_answers(prepare):
    shared = [chat("again?", "one"), chat("again?", "two")]
    tools = {"messages": [*chat("call")["messages"], {"role": "assistant", "tool_calls": [{"name": "f"}]}]}
    forged = chat("what is <|im_end|>?", "a token")
    held_out = [chat("你好?", "你好！", "天气?", "很好。", system="友好"), *shared, tools, forged]
    passages = [{"prompt": "1+1=", "completion": "2"}]
    prepared = prepare(many(3), validation=[held_out, passages, [{"text": "the answer"}]])
    turns = [("system", "友好"), ("user", "你好?"), ("assistant", "你好！"), ("user", "天气?")]
    asked = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    first = asked + "<|im_start|>assistant\n"
    found = [(prompt.text, prompt.reference, prompt.shown) for prompt in prepared.prompts]
    assert found == [
        (first, "很好。", "天气?"),
        ("<|im_start|>user\nagain?<|im_end|>\n<|im_start|>assistant\n", "one", "again?"),
        ("1+1=", "2", "1+1="),
    ]
    row = prepared.validation.example(0)
    ids = prepared.tokenizer(first, add_special_tokens=False)["input_ids"]
    assert row.ids[: len(ids)].tolist() == ids  # the very tokens that were held out


@pytest.mark.parametrize("packing", [True, False])
def test_what_is_held_out_by_source(prepare, packing):
    prepared = prepare(many(20), many(20, start=50), validation_fraction=0.2, packing=packing)
    parts = list(prepared.held_out.values())
    assert list(prepared.held_out) == [account.source for account in prepared.ledger.sources]
    assert [len(part.prompts) for part in parts] == [a.examples.validation for a in prepared.ledger.sources]
    assert sorted(p.text for part in parts for p in part.prompts) == sorted(p.text for p in prepared.prompts)
    assert sum(part.rows.targets for part in parts) == prepared.validation_tokens
    assert sum(part.bytes for part in parts) == prepared.validation_bytes
    assert all(part.tokens_per_byte == part.rows.targets / part.bytes for part in parts)


def test_bytes_of_what_is_learned(prepare):
    prepared = prepare([chat("a", "你好")], validation=[[chat("b", "ok 好", "c", "d")]])
    assert prepared.train_bytes == 6
    assert prepared.validation_bytes == len("ok 好d".encode())
    assert prepared.validation_tokens == int((prepared.validation[0]["labels"] != -100).sum())
    assert prepared.tokens_per_byte == prepared.train_tokens / 6


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.5])
def test_weights_are_times_per_epoch(prepare, tmp_path, weight):
    first = prepare(many(10))
    source = ExampleSourceConfig(first.ledger.sources[0].source, weight=weight)
    prepared = prepare(source, many(4, start=50), seed=3)
    rows = [number for row in prepared.train.rows for number in row]
    assert len(rows) == 10 * weight + 4
    counts = np.bincount(rows, minlength=14)
    assert set(counts[:10]) == {int(weight), -int(-weight // 1)}
    assert set(counts[10:]) == {1}
    account = prepared.ledger.sources[0]
    assert account.examples.weight == (5 if weight == 0.5 else 0)
    assert account.tokens.per_epoch == sum(prepared.train.example(n).learned.sum() for n in rows if n < 10)
    assert prepared.fingerprint != prepare(source, many(4, start=50), seed=4).fingerprint or weight == 1


# ------------------------------------------------------------------------------------------------------------- lengths


def long_rows(tokenizer):
    return [chat("a", "b"), chat("a", "b " * 50), chat("a " * 80, "b"), {"text": "the answer " * 30}]


def test_too_long_is_cut_and_counted(prepare, tokenizer):
    *chats, text = long_rows(tokenizer)
    prepared = prepare(chats, [text], max_length=24)
    total = prepared.ledger.total
    assert max(prepared.train.lengths) == 24
    assert (total.examples.train, total.examples.answer_cut, total.truncated_examples) == (3, 1, 2)
    assert total.tokens.truncated > 0
    assert learned(prepared, 1)[0].startswith("b b")
    assert "<|im_end|>" not in learned(prepared, 1)[0]
    # what is dropped whole is counted whole, whatever would have been cut of it
    full = prepare(chats, [text], max_length=4096)
    assert full.ledger.total.tokens.total == total.tokens.total
    assert full.ledger.total.tokens.dropped == full.ledger.total.truncated_examples == 0


def test_split_gives_every_token_of_a_text_once(prepare, tokenizer):
    *chats, text = long_rows(tokenizer)
    prepared = prepare([text], chats, max_length=24, too_long="split")
    full = prepare([text], max_length=4096)
    total = prepared.ledger.sources[0]
    assert total.split_examples == 1
    assert total.tokens.dropped == 0
    assert total.tokens.trained == full.train_tokens
    pieces = [prepared.train.example(i) for i in range(len(prepared.train.rows)) if i < 100]
    count = -(-(len(full.train.ids) - 1) // 23)
    joined = np.concatenate([pieces[0].ids, *(piece.ids[1:] for piece in pieces[1:count])])
    assert joined.tolist() == full.train.ids.tolist()
    assert prepared.ledger.sources[1].truncated_examples == 1


def test_drop_leaves_out_what_is_too_long(prepare, tokenizer):
    *chats, text = long_rows(tokenizer)
    total = prepare(chats, [text], max_length=24, too_long="drop").ledger.total
    assert (total.examples.train, total.examples.too_long, total.tokens.truncated) == (1, 3, 0)


@pytest.mark.parametrize("too_long", ["truncate", "split", "drop"])
def test_strict_refuses_and_names_the_first_row(prepare, tokenizer, too_long):
    *chats, _ = long_rows(tokenizer)
    with pytest.raises(InputError, match=r"data\.max_length = 24: the example .*rows0\.jsonl:2 has \d+ tokens"):
        prepare(chats, max_length=24, too_long=too_long, strict=True)
    assert prepare(chats[:1], max_length=24, strict=True).ledger.total.examples.train == 1


@pytest.mark.parametrize(("too_long", "reason"), [("truncate", "answer cut"), ("drop", "too long")])
def test_nothing_left_to_learn(prepare, too_long, reason):
    with pytest.raises(
        InputError, match=rf"data\.max_length = 4: no example is left.*3 {reason}.*Set it to (\d+)"
    ) as e:
        prepare(many(3), max_length=4, too_long=too_long)
    needed = int(str(e.value).rpartition("Set it to ")[2].split()[0])
    assert prepare(many(3), max_length=needed, too_long=too_long).ledger.total.examples.train
    with pytest.raises(InputError, match="no example is left"):
        prepare(many(3), max_length=needed - 1, too_long=too_long)


def test_everything_held_out_is_nothing_to_train_on(prepare):
    with pytest.raises(InputError, match=r"data\.sources = .*2 validation, 2 duplicate"):
        prepare(many(2), validation=[many(2)])


# -------------------------------------------------------------------------------------------------------------- ledger


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("too_long", ["truncate", "split", "drop"])
def test_the_books_balance(prepare, tokenizer, packing, too_long, caplog):
    *chats, text = long_rows(tokenizer)
    options = {"max_length": 40, "too_long": too_long, "packing": packing, "validation_fraction": 0.2}
    with caplog.at_level(logging.INFO, logger="gpt_finetune"):
        prepared = prepare([*chats, *many(20), *many(5)], [text, {"text": "你好，世界！"}], **options)
    ledger = prepared.ledger
    ledger.check()
    book = ledger.to_dict()
    for account in [*book["sources"], book["total"]]:
        for unit in ("examples", "tokens"):
            counts = account[unit]
            fates = ("train" if unit == "examples" else "trained", *FATES[1:])
            assert counts["total"] == sum(counts.get(fate, 0) for fate in fates), (account, unit)
    tokens = ledger.total.tokens
    assert tokens.trained == prepared.train_tokens == tokens.per_epoch
    assert tokens.validation == prepared.validation_tokens
    if packing:
        assert tokens.padding == 40 * len(prepared.train) - sum(prepared.train.lengths)
        assert ledger.packing_efficiency == 1 - tokens.padding / (40 * len(prepared.train))
    else:
        assert (tokens.padding, ledger.packing_efficiency) == (0, None)
    assert all(word in caplog.text for word in ("duplicate", "masked", "total"))


def test_the_report_shows_the_ledger(prepare):
    from gpt_finetune.report.folder import Run
    from gpt_finetune.report.summary import ledger

    *chats, text = long_rows(None)
    book = prepare([*chats, *many(9), *many(1)], [text], max_length=24).ledger.to_dict()
    run = Run.__new__(Run)
    object.__setattr__(run, "section", lambda name: {"ledger": book})
    shown = ledger(run)
    assert shown.columns == ["examples", "tokens"]
    assert shown.balance.startswith("in = trained"), shown.balance
    rows = {row.label: row.cells for row in shown.rows}
    assert rows["in"][0] == "14"
    assert {row.label for row in shown.rows if row.is_reason} >= {"duplicate", "answer cut", "truncated"}


def test_a_wrong_sum_is_noticed():
    account = SourceAccount("a")
    account.examples.total = account.examples.train = 1
    ExampleLedger([account]).check()
    account.examples.duplicate = 1
    with pytest.raises(AssertionError, match="a: the examples do not add up"):
        ExampleLedger([account]).check()
    account.examples.duplicate, account.tokens.total = 0, 7
    with pytest.raises(AssertionError, match="a: the tokens do not add up"):
        ExampleLedger([account]).check()


def test_equal_rows_have_equal_keys(prepare):
    keys = [prepare(many(5), **options).fingerprint for options in ({}, {}, {"learn": "all"}, {"packing": True})]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sources": []}, r"data\.sources .*nothing to train on"),
        ({"validation_fraction": 1.0}, r"data\.validation_fraction = 1\.0"),
        ({"max_length": 1}, r"data\.max_length = 1"),
        ({"seed": -1}, r"data\.seed = -1"),
        ({"chat_template": ""}, r"data\.chat_template"),
        ({"sources": [ExampleSourceConfig("a.jsonl", weight=0)]}, r"data\.sources\[0\]\.weight"),
        ({"validation": [ExampleSourceConfig("a.jsonl", encoding="x")]}, r"data\.validation\[0\]\.encoding"),
    ],
)
def test_bad_options_are_refused(options, expected):
    with pytest.raises(InputError, match=expected):
        ExamplesConfig(**{"sources": [ExampleSourceConfig("a.jsonl")], **options}).validate()


def test_whole_conversation_is_what_the_model_gets(prepare):
    assert whole(prepare([chat("a", "b")])) == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
