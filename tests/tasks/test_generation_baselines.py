"""What answers without a neural network, and the metric of structured answers."""

from __future__ import annotations

import json

import evaluate
import numpy as np
import pytest

from gpt_finetune.errors import InputError
from gpt_finetune.metrics import labels as scores
from gpt_finetune.metrics import load, text_metrics
from gpt_finetune.metrics.resampling import TEXT, count_texts, count_triples
from gpt_finetune.metrics.triples import facts_of
from gpt_finetune.tasks.generation_baselines import BASELINES, Pair, answer_by, check_baselines, learn_dictionary

PAIRS = [Pair(f"the {a} {b}", f"le {x} {y}") for a, x in (("cat", "chat"), ("dog", "chien")) for b, y in
         (("eats", "mange"), ("sleeps", "dort"), ("runs", "court"))]  # fmt: skip
TRIPLES = [
    Pair(f"{head}: a {tail} that {does}", json.dumps({"head": head, "relation": "is_a", "tail": tail}))
    for head, tail, does in (("dog", "animal", "barks"), ("oak", "tall tree", "grows"), ("knife", "tool", "cuts"))
    for head in (head, f"big {head}")
]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("It cost $1.5m in 2004! Then more.", "It cost $1.5m in 2004!"),
        ("他说：“好。”然后走了。", "他说：“好。”"),
        ("no end\nnext", "no end"),
        ("alone", "alone"),
        ("", ""),
    ],
)
def test_lead(text, sentence):
    assert answer_by("lead", [], [text]) == [sentence]


def test_copy_and_frequent():
    assert answer_by("copy", [], ["a", "b"]) == ["a", "b"]
    train = [Pair("x", "hello"), Pair("y", "hi"), Pair("z", "hi"), Pair("z", "hello")]
    assert answer_by("frequent", train, ["q", "r"]) == ["hello", "hello"]


def test_retrieval():
    train = [Pair("what is a car", "a machine"), Pair("who are you", "a robot")]
    assert answer_by("retrieval", train, ["who is that, you?", "a car"]) == ["a robot", "a machine"]
    chinese = [Pair("你是谁", "机器人"), Pair("天气怎么样", "很好")]
    assert answer_by("retrieval", chinese, ["今天天气好吗"]) == ["很好"]
    assert answer_by("retrieval", [Pair("?!", "eh")], ["?"]) == ["eh"]


def test_a_dictionary_is_learned_from_pairs():
    best = learn_dictionary(PAIRS)
    assert {word: best[word] for word in ("cat", "dog", "eats", "sleeps", "runs")} == {
        "cat": "chat", "dog": "chien", "eats": "mange", "sleeps": "dort", "runs": "court"
    }  # fmt: skip
    assert answer_by("dictionary", PAIRS, ["The dog runs, 42 unknown!"])[0].endswith("chien court, 42 unknown!")


def test_a_dictionary_of_characters():
    train = [Pair("cat", "猫"), Pair("dog", "狗"), Pair("cat dog", "猫狗"), Pair("...", "！"), Pair("!", "")]
    assert answer_by("dictionary", train, ["dog cat"]) == ["狗猫"]
    back = [Pair(pair.answer, pair.source) for pair in train]
    assert answer_by("dictionary", back, ["狗猫"]) == ["Dog cat"]
    assert learn_dictionary([Pair("...", "!")]) == {}


def test_odds_of_a_dictionary_by_hand():
    """Brown et al.'s first round: every link of a target word is equally likely."""
    best = learn_dictionary([Pair("a b", "x y"), Pair("a", "x"), Pair("a", "x")])
    assert best == {"a": "x", "b": "y"}


def test_patterns_find_fields():
    said = answer_by("pattern", TRIPLES, ["pine: a green tree that stands", "no such thing"])
    assert json.loads(said[0]) == {"head": "pine", "relation": "is_a", "tail": "green tree"}
    assert json.loads(said[1]) == {"relation": "is_a"}
    chinese = [Pair(f"{n}，{p}人，{y}年进士。", json.dumps({"place": p, "year": y}, ensure_ascii=False))
               for n, p, y in (("苏洵", "眉山", 1057), ("王安", "临川", 1042), ("李白", "绵州", 1099))]  # fmt: skip
    (told,) = answer_by("pattern", chinese, ["曾巩，南丰人，1088年进士。"])
    assert json.loads(told) == {"place": "南丰", "year": 1088}


def test_patterns_need_fields():
    with pytest.raises(InputError, match=r"baselines = 'le chat.*no JSON object"):
        answer_by("pattern", PAIRS, ["x"])


def test_unknown_baselines_are_refused():
    check_baselines(list(BASELINES))
    with pytest.raises(InputError, match=r"compare\.baselines = 'leed'.*'lead'"):
        check_baselines(["copy", "leed"], "compare.baselines")


# ------------------------------------------------------------------------------------------------ structured answers


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ('{"head": "a", "relation": "r", "tail": "b"}', {("a", "r", "b")}),
        ('[{"head": "a", "relation": "r", "tail": "b"}, {"tail": "C ", "head": "A", "relation": "R"}]',
         {("a", "r", "b"), ("a", "r", "c")}),
        ('{"name": "苏  轼", "year": 1057, "none": null, "empty": ""}', {("name", "苏 轼"), ("year", "1057")}),
        ('{"of": ["x", "Y"]}', {("of", "x"), ("of", "y")}),
        ('{"head": {"deep": [1]}}', {("head", '{"deep": [1]}')}),
        ("{}", set()),
        ("[]", set()),
    ],
)  # fmt: skip
def test_facts(text, facts):
    assert facts_of(text) == facts


@pytest.mark.parametrize("text", ["", "a cat", '{"a": ', "3", '["a"]', "[" * 100_000, '{"a": 1} and more'])
def test_what_is_malformed(text):
    assert facts_of(text) is None


def test_triples_by_hand():
    right = ['{"a": 1, "b": 2}', '{"a": 1}', '{"head": "x", "relation": "r", "tail": "y"}']
    said = ['{"a": 1, "b": 3, "c": 4}', "oh", '{"head": "x", "relation": "r", "tail": "z"}']
    found = load("triples").compute(predictions=said, references=right)
    assert found == pytest.approx({"micro_f1": 2 / 8, "precision": 1 / 4, "recall": 1 / 4, "malformed_rate": 1 / 3})
    assert isinstance(load("triples"), evaluate.Metric)
    nothing = load("triples").compute(predictions=["-"], references=right[:1])
    assert nothing == {"micro_f1": 0, "precision": 0, "recall": 0, "malformed_rate": 1}
    with pytest.raises(InputError, match="references = 'plain': it is no JSON object"):
        load("triples").compute(predictions=["{}"], references=["plain"])


# ------------------------------------------------------------------------------------------------- how sure it is

SAID = ["the cat sat", "a dog", "", "yes it is a very long one", "猫在垫子上"] * 3
RIGHT = ["the cat sat on the mat", "a dog", "no", "yes it is not", "猫坐在垫子上"] * 3


def test_counted_figures_are_those_of_the_metrics():
    counted = count_texts(SAID, RIGHT)
    whole = {name: value for each in counted.values() for name, value in each.whole.items()}
    assert whole == pytest.approx(text_metrics(SAID, RIGHT))
    assert set(whole) == set(TEXT)


def test_resampled_figures_are_those_of_the_drawn_texts():
    draw = np.random.default_rng(7).integers(len(SAID), size=len(SAID))
    by_hand = text_metrics([SAID[i] for i in draw], [RIGHT[i] for i in draw])
    counted = count_texts(SAID, RIGHT)
    found = {name: row[0] for each in counted.values() for name, row in each.resampled(1, seed=7).items()}
    by_hand.pop("bleu")  # its tokenizer is chosen by all references
    assert {name: found[name] for name in by_hand} == pytest.approx(by_hand)


def test_pairs_of_draws_are_the_same():
    first, second = (count_texts(said, RIGHT)["chrf"].resampled(200)["chrf"] for said in (SAID, RIGHT))
    assert np.allclose(second, 100)
    assert scores.paired_p(first, second) < 0.02
    assert scores.paired_p(first, first) == 1


def test_a_figure_of_each_text():
    found = count_triples(['{"a": 1}', "x"], ['{"a": 1}', '{"b": 1}'])["triples"].each("micro_f1")
    assert found.tolist() == [1, 0]
