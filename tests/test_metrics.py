"""Text metrics: equal to the libraries where those are right, to hand counts elsewhere, and never from the network."""

from __future__ import annotations

import socket
import string

import evaluate
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from gpt_finetune.errors import InputError
from gpt_finetune.metrics import METRICS, load, text_metrics
from gpt_finetune.metrics.text import TEXT_METRICS
from gpt_finetune.metrics.words import is_unspaced, split_answer, split_words

ENGLISH = (
    ["The cat sat on the mat.", "It's a dog", "", "forty-two (42)", "the quick brown fox jumps over it"],
    ["The cat is on the mat.", "It is the dog!", "nothing", "forty-two (42)", "the quick brown fox jumped over him"],
)
CHINESE = (
    ["床前明月光，疑是地上霜。", "举头望月", "用 Python 写的"],
    ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "它是用 Python 3 写的。"],
)
KEYS = {"exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "token_f1"}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_bleu_and_chrf_are_sacrebleus():
    for (predictions, references), tokenize in ((ENGLISH, "13a"), (CHINESE, "zh")):
        found = text_metrics(predictions, references)
        expected = sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenize).score
        assert found["bleu"] == expected > 5
        assert found["chrf"] == sacrebleu.corpus_chrf(predictions, [references]).score > 5
    wrong = sacrebleu.corpus_bleu(CHINESE[0], [CHINESE[1]], tokenize="13a").score
    assert wrong < 0.5 * text_metrics(*CHINESE)["bleu"]  # a Chinese sentence is no single word
    assert load("bleu").compute(predictions=["abcd"], references=["abcd"], tokenize="char")["bleu"] == pytest.approx(
        100
    )


def test_rouge_is_rouge_scores_in_english():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    found = text_metrics(*ENGLISH)
    for name in ("rouge1", "rouge2", "rougeL"):
        each = [scorer.score(reference, text)[name].fmeasure for text, reference in zip(*ENGLISH, strict=True)]
        assert found[name] == pytest.approx(sum(each) / len(each))
        assert 0 < found[name] < 1


def test_rouge_by_hand_in_chinese():
    found = text_metrics(["床前明月"], ["明月光前"])
    # 前 明 月 are shared: 3 of 4 each way; 明月 of three pairs; longest common subsequence 明月
    assert (found["rouge1"], found["rouge2"], found["rougeL"]) == pytest.approx((3 / 4, 1 / 3, 1 / 2))
    plain = RougeScorer(["rouge1"]).score("明月光前", "床前明月")["rouge1"].fmeasure
    assert plain == 0  # why the tokenizer is ours


def test_token_f1_by_hand():
    # shared: cat, on, mat, of cat sat on mat | cat is on mat
    assert text_metrics(["The cat sat on the mat."], ["the cat is on a mat"])["token_f1"] == pytest.approx(3 / 4)
    # 是, 月 and Python are shared, of three words and of five
    found = text_metrics(["是月 python"], ["《月》，是 Python 写的"])
    assert found["token_f1"] == pytest.approx(2 * 3 / (3 + 5))
    assert found["exact_match"] == 0


def test_exact_match_forgives_outer_white_space_only():
    found = text_metrics([" yes\n", "Yes", "床前 ", "no"], ["yes", "yes", "床前", "no"])
    assert found["exact_match"] == 3 / 4


def test_perfect_and_empty_answers():
    for texts in [text for text in ENGLISH[1] if " " in text], CHINESE[1]:  # ROUGE-2 needs two words
        best = text_metrics(texts, texts)
        assert best.keys() == KEYS
        assert best == pytest.approx({key: 100.0 if key in ("bleu", "chrf") else 1.0 for key in KEYS})
    assert text_metrics([""], ["something"]) == dict.fromkeys(KEYS, 0.0)
    assert text_metrics(["something"], [""]) == dict.fromkeys(KEYS, 0.0)
    both = text_metrics(["", "a b c d e f"], ["", "a b c d e f"])
    assert (both["exact_match"], both["token_f1"]) == (1, 1)


def test_words():
    for text in (string.printable, *ENGLISH[0], *ENGLISH[1], "snake_case x2"):
        assert split_words(text) == DefaultTokenizer().tokenize(text)
    assert split_words("Café 用GPT-2写，ひらがな！한국어 텍스트 𠀀") == [
        *("café", "用", "gpt", "2", "写", "ひ", "ら", "が", "な", "한국어", "텍스트", "𠀀")
    ]
    assert split_answer("An apple, the “orange”; don't — 《月》光") == ["apple", "orange", "dont", "月", "光"]
    assert is_unspaced(["用 Python 写的程序"]) is False  # 5 of 11 letters
    assert is_unspaced(["床前明月光 ok", ""])
    assert not is_unspaced(["42!"])
    assert not is_unspaced(["한국어 텍스트"])


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_each_is_a_metric_of_evaluate(name, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    metric = load(name)
    assert isinstance(metric, evaluate.Metric)
    assert metric.description
    metric.add(prediction="床前", reference="床前")
    metric.add_batch(predictions=["a", "b"], references=["a", "c"])
    bit_by_bit = metric.compute()
    assert bit_by_bit == load(name).compute(predictions=["床前", "a", "b"], references=["床前", "a", "c"])
    assert not list(tmp_path.rglob("*"))  # nothing is left behind
    combined = evaluate.combine([load(name), load("exact_match")])
    assert combined.compute(predictions=["a"], references=["a"])


def test_every_text_metric_is_in_the_table():
    assert METRICS.items() >= TEXT_METRICS.items()


def test_bad_input():
    with pytest.raises(InputError, match=r"predictions = '2 texts': there are 1 references"):
        text_metrics(["a", "b"], ["a"])
    with pytest.raises(InputError, match="there is nothing to compare"):
        text_metrics([], [])
    with pytest.raises(InputError, match=r"metric = 'rogue': there is no such metric. Did you mean 'rouge'\?"):
        load("rogue")
