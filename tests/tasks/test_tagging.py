"""Words with tags: read from lists and slots, labelled at a token each, in windows and packed rows as alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from gpt_finetune.data.packing import IGNORED
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import CLASSES, ENTITIES, RowSourceConfig
from gpt_finetune.tasks.heads import padded_tokenizer
from gpt_finetune.tasks.tag_config import TagDataConfig
from gpt_finetune.tasks.tag_features import WordEncoder, find_owners, part
from gpt_finetune.tasks.tag_judging import judge, run_baselines
from gpt_finetune.tasks.tag_patterns import find_by_pattern, fits
from gpt_finetune.tasks.tagging import TagTrainer, prepare_tagging

FEW = [
    {"words": ["add", "Anna", "Lee", f"x{i}"], "tags": ["O", "B-PER", "I-PER", "B-ID" if i % 2 else "O"]}
    for i in range(40)
]


@pytest.fixture
def prepare_tags(make_tokenizer):
    """Return a maker of prepared rows, from files and fields of the data section."""

    def make(*files, validation=(), bidirectional=False, **fields):
        sources, held_out = ([RowSourceConfig(str(file)) for file in some] for some in (files, validation))
        config = TagDataConfig(sources, held_out, **{"max_length": 64, "overlap": 8, **fields})
        tokenizer = padded_tokenizer(make_tokenizer(), config.max_length)
        return prepare_tagging(config, tokenizer, bidirectional=bidirectional)

    return make


def labelled(row, found):
    """Return the pieces of a row that bear labels, with these."""
    tokenizer, names = found.tokenizer, found.labels.names
    pieces = [tokenizer.decode([token]) for token in row["input_ids"].tolist()]
    return [(piece, names[tag]) for piece, tag in zip(pieces, row["labels"].tolist(), strict=True) if tag != IGNORED]


def test_the_last_token_of_a_word_bears_its_tag_or_the_first(prepare_tags, save_rows):
    file = save_rows("a.jsonl", *FEW)
    last = prepare_tags(file, packing=False)
    first = prepare_tags(file, packing=False, label_subword="first")
    ends, begins = labelled(last.train[0], last), labelled(first.train[0], first)
    assert [tag for _, tag in ends] == [tag for _, tag in begins] == list(last.texts["train"][0].target.tags)
    assert [piece[-1] for piece, _ in ends[:3]] == ["d", "a", "e"]
    words = last.texts["train"][0].target.words
    assert all(word.startswith(piece.strip()) for word, (piece, _) in zip(words, begins, strict=True))
    assert any(not word.endswith(piece) for word, (piece, _) in zip(words, begins, strict=True))
    assert last.train[0]["input_ids"].tolist() == last.tokenizer(last.texts["train"][0].text)["input_ids"]
    assert last.problem == ENTITIES


def test_every_held_out_word_is_told_once(prepare_tags, save_rows):
    rows = [
        {"words": [f"w{i}", *(["def", "add", "return"] * (i % 9))], "tags": ["x"] + list("yzy") * (i % 9)}
        for i in range(40)
    ]
    for both_ways in (False, True):
        found = prepare_tags(
            save_rows("a.jsonl", *rows), max_length=16, validation_fraction=0.5, bidirectional=both_ways
        )
        assert found.problem == CLASSES
        assert found.facts["windowed_texts"] > 5
        assert sorted(np.concatenate(found.places)) == list(range(len(found.right)))
        told = [found.validation[i]["labels"] for i in range(len(found.validation))]
        assert all(
            labels[labels != IGNORED].tolist() == found.right[place].tolist()
            for labels, place in zip(told, found.places, strict=True)
        )
        sizes = [len(labels) for labels in told]
        assert sizes == sorted(sizes, reverse=True)
        assert max(sizes) <= 16
        words = sum(len(row.target.words) for row in found.texts["train"])
        assert int((found.train.labels != IGNORED).sum()) == words
        assert found.ledger.total["tokens"]["total"] == sum(map(sum, found.lengths.values()))


@pytest.mark.parametrize(
    "sizes", [[1] * 50, [3, 1, 7, 2, 2, 8, 1, 1, 1, 5, 8, 8, 1], [8, 8, 8], [0, 4, 0, 0, 8, 0], [2]]
)
@pytest.mark.parametrize("overlap", [0, 3, 7])
def test_windows_cover_whole_words_and_share_some(sizes, overlap):
    parts = part(sizes, 8, overlap)
    assert {word for begin, end in parts for word in range(begin, end)} == set(range(len(sizes)))
    assert all(sum(sizes[begin:end]) <= 8 for begin, end in parts)
    assert all(a < b and c < d for (a, c), (b, d) in itertools.pairwise(parts))  # each brings words
    shared = [sum(sizes[b:c]) for (_, c), (b, _) in itertools.pairwise(parts)]
    assert all(tokens <= overlap for tokens in shared)
    if sizes == [1] * 50:
        assert shared == [overlap] * len(shared)


def test_a_word_is_told_where_most_stands_around_it():
    sizes = [1] * 12
    parts = part(sizes, 8, 4)
    assert parts == [(0, 8), (4, 12)]
    assert find_owners(parts, sizes, causal=True).tolist() == [0] * 8 + [1] * 4
    assert find_owners(parts, sizes, causal=False).tolist() == [0] * 6 + [1] * 6


@pytest.mark.parametrize("bidirectional", [False, True])
def test_packed_words_are_scored_as_alone(prepare_tags, save_rows, make_config, bidirectional):
    from gpt_finetune import GPTForTokenClassification

    file = save_rows("a.jsonl", *FEW)
    packed = prepare_tags(file, bidirectional=bidirectional)
    alone = prepare_tags(file, bidirectional=bidirectional, packing=False)
    assert len(packed.train) < len(alone.train)
    settings = packed.settings() | {"initializer_range": 0.2}
    assert settings.get("is_causal", True) is not bidirectional
    model = GPTForTokenClassification(make_config("gpt2", **settings)).eval()

    def scores(found):
        told = {}
        for i, numbers in enumerate(found.train.rows):
            batch = found.collate([found.train[i], found.train[0]])  # a neighbour pads it
            with torch.no_grad():
                logits = model(**batch).logits[0]
            mine = logits[batch["labels"][0] != IGNORED]
            sizes = [len(found.texts["train"][number].target.words) for number in numbers]
            told |= dict(zip(numbers, mine.split(sizes), strict=True))
        return torch.cat([told[number] for number in sorted(told)])

    torch.testing.assert_close(scores(packed), scores(alone), rtol=1e-5, atol=1e-5)


def test_windows_change_nothing_where_the_text_fits(make_tokenizer):
    tokenizer = make_tokenizer()
    words = ["def", "add", "a", "b", "return", "a"]
    text = tokenizer(" ".join(words))["input_ids"]
    for joiner, overlap in ((" ", 0), (" ", 20)):
        encoder = WordEncoder(tokenizer, joiner, len(text), overlap)
        (window,), cut = encoder.windows(encoder.encode([words])[0])
        assert (window.ids, window.words, cut) == (text, [0, 1, 2, 3, 4, 5], 0)
    encoder = WordEncoder(tokenizer, " ", len(text) - 1, 2)
    assert len(encoder.windows(encoder.encode([words])[0])[0]) == 2


def test_what_a_tokenizer_puts_around_a_text_stays_and_is_counted(make_tokenizer):
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    encoder = WordEncoder(tokenizer, " ", 8, 2)
    assert encoder.room == 6
    windows, _ = encoder.windows(encoder.encode([["add", "return", "def", "return", "a"]])[0])
    for window in windows:
        assert window.ids[0] == window.ids[-1] == tokenizer.eos_token_id
        assert len(window.ids) <= 8
        assert 0 not in window.columns
    with pytest.raises(InputError, match=r"data\.max_length = 2: the tokenizer puts 2 tokens around"):
        WordEncoder(tokenizer, " ", 2, 0)


def test_words_of_tokenizers_that_put_the_space_themselves():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<unk>": 0, "▁a": 1, "▁b": 2, "▁": 3}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    encoder = WordEncoder(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"), " ", 8, 0)
    assert encoder.encode([["a", "b", "a"]]) == [[[1], [2], [1]]]


def test_words_without_tokens_and_words_longer_than_a_window(prepare_tags, save_rows, monkeypatch):
    rows = [{"words": ["add", f"b{i}", "c" * 30], "tags": ["O", "B-X", "O"]} for i in range(20)]
    found = prepare_tags(save_rows("a.jsonl", *rows), max_length=16)
    assert found.ledger.truncated_examples == 20
    assert found.ledger.total["tokens"]["truncated"] == 20 * 15
    with pytest.raises(InputError, match=r"a\.jsonl:\d+.*more than 16 tokens.*strict"):
        prepare_tags(save_rows("a.jsonl", *rows), max_length=16, strict=True)
    tokens = WordEncoder._tokens
    monkeypatch.setattr(WordEncoder, "_tokens", lambda self, texts: [
        [] if "b" in text else ids for text, ids in zip(texts, tokens(self, texts), strict=True)
    ])  # fmt: skip
    found = prepare_tags(save_rows("a.jsonl", *rows))
    assert found.facts["words_without_tokens"] == 20
    told = [np.array([[0.0, 1.0]] * len(place)) for place in found.places]
    tags, losses = found.assemble(told)
    assert [found.labels.names[tag] for tag in tags[:3]] == ["B-X", "O", "B-X"]
    assert losses[:3].tolist() == [1, 0, 1]


def test_slots_become_tags(prepare_tags, save_rows):
    def tags(text, slots, **fields):
        rows = [{"text": text, "slots": slots}, *({"text": f"x {i}", "slots": {"n": str(i)}} for i in range(30))]
        found = prepare_tags(save_rows("a.jsonl", *rows), slots_column="slots", validation_fraction=0.9, **fields)
        every = [*found.texts["train"], *found.texts["validation"]]
        return next(row.target for row in every if row.origin.endswith(":1")), found.facts["slots"]

    target, counts = tags("turn on the kitchen radio in the kitchen", {"area": "kitchen", "name": "kitchen radio"})
    assert target.tags == ("O", "O", "O", "B-name", "I-name", "O", "O", "B-area")
    assert counts == {"found": 32, "ambiguous": 0, "dropped": 0}
    target, counts = tags("dim to 5% after 15 s", {"level": 5, "no": "garage"})
    assert target.tags == ("O", "O", "B-level", "O", "O", "O")
    assert counts["dropped"] == 1
    target, counts = tags("a a b", {"x": "a"})
    assert (target.tags, counts["ambiguous"]) == (("B-x", "O", "O"), 1)
    target, _ = tags("把 LED 灯调到15度，café客厅", {"room": "客厅", "level": "15"}, joiner="")
    assert target.words == ("把", "LED", "灯", "调", "到", "15", "度", "，", "café", "客", "厅")
    assert target.tags == ("O", "O", "O", "O", "O", "B-level", "O", "O", "O", "B-room", "I-room")
    with pytest.raises(InputError, match=r"a\.jsonl:1 = 'attic'.*slot 'area' does not stand"):
        tags("on", {"area": "attic"}, strict=True)
    with pytest.raises(InputError, match=r"a\.jsonl:1.*slots are a mapping"):
        tags("on", ["area"])


def test_words_taken_apart_and_tags_cut(prepare_tags, save_rows):
    rows = [{"words": ["北京", f"第{i}号", "IBM"], "tags": ["B-LOC", "O", "B-ORG"]} for i in range(30)]
    found = prepare_tags(save_rows("a.jsonl", *rows), characters=True)
    target = found.texts["train"][0].target
    assert target.words[:3] == ("北", "京", "第")
    assert target.words[-1] == "IBM"
    assert target.tags[:3] == ("B-LOC", "I-LOC", "O")
    assert target.sizes[0] == 2
    assert found.facts["joiner"] == ""
    assert found.texts["train"][0].text.startswith("北京第")
    rows = [{"words": ["a", f"b{i}"], "tags": ["nn-tl", "vb+md"]} for i in range(30)]
    cut = prepare_tags(save_rows("b.jsonl", *rows), tag_cut=r"[-+].*")
    assert cut.labels.names == ("nn", "vb")
    with pytest.raises(InputError, match=r"b\.jsonl:1.*leaves nothing"):
        prepare_tags(save_rows("b.jsonl", *rows), tag_cut=".*")


def test_the_baseline_is_each_words_commonest_tag(prepare_tags, save_rows):
    train = [{"words": ["a", "b", f"c{i}"], "tags": ["x", "y" if i % 3 else "z", "z"]} for i in range(30)]
    test = save_rows("test.jsonl", {"words": ["a", "b", "new"], "tags": ["x", "z", "y"]})
    found = prepare_tags(save_rows("a.jsonl", *train), validation=[test])
    ((name, baseline),) = run_baselines(found).items()
    assert name == "most frequent tag per word"
    assert [found.labels.names[tag] for tag in baseline.predictions] == ["x", "y", "z"]


def test_baselines_of_characters_with_and_without_words(prepare_tags, save_rows):
    train = [{"words": ["北京", "京", f"第{i}"], "tags": ["B-LOC", "O", "O"]} for i in range(9)]
    train += [{"words": ["京", f"去{i}"], "tags": ["O", "O"]} for i in range(9)]
    test = save_rows("test.jsonl", {"words": ["北京", "京", "新"], "tags": ["B-LOC", "O", "O"]})
    found = prepare_tags(save_rows("a.jsonl", *train), validation=[test], characters=True)
    told = {name: [found.labels.names[tag] for tag in each.predictions] for name, each in run_baselines(found).items()}
    assert told["most frequent tag per word, words given"] == ["B-LOC", "I-LOC", "O", "O"]
    assert told["most frequent tag per character"] == ["B-LOC", "O", "O", "O"]


def test_the_baseline_of_fields_is_what_stands_around_them(prepare_tags, save_rows):
    named = zip("甲乙丙丁戊己", ["天", "地", "玄", "黃", "宇", "日月"], strict=True)
    train = [{"text": f"{name}，字{other}，人。", "slots": {"as": other}} for name, other in named]
    train += [{"text": f"{name}，人。", "slots": {}} for name in "庚辛壬"]
    tests = [{"text": "癸，字洪荒，人。", "slots": {"as": "洪荒"}}, {"text": "子，人。", "slots": {}}]
    sides = {"validation": [save_rows("test.jsonl", *tests)], "slots_column": "slots"}
    found = prepare_tags(save_rows("a.jsonl", *train), **sides)
    assert fits(found)
    told = [found.labels.names[tag] for tag in find_by_pattern(found).predictions]
    assert told == [*("O", "O", "O", "B-as", "I-as", "O", "O", "O"), *"OOOO"]
    assert "pattern" in run_baselines(found)
    train.append({"text": "丑，字日，字月，人。", "slots": {"as": "日", "other": "月"}})
    assert fits(prepare_tags(save_rows("b.jsonl", *train), **sides))
    twice = [{"words": ["a", f"b{i}", "c"], "tags": ["B-X", "O", "B-X"]} for i in range(30)]
    assert not fits(prepare_tags(save_rows("c.jsonl", *twice)))
    words = [{"words": ["a", f"b{i}", "c"], "tags": ["x", "y", "x"]} for i in range(30)]
    assert not fits(prepare_tags(save_rows("d.jsonl", *words)))


def test_reading_to_the_right_the_last_token_knows_a_word_and_the_first_does_not(prepare_tags, save_rows, make_config):
    from gpt_finetune import GPTForTokenClassification

    generator = np.random.default_rng(0)
    rows = [{"words": [f"q{'vw'[i]}" for i in generator.integers(2, size=6)]} for _ in range(60)]
    rows = [{**row, "tags": [word[1] for word in row["words"]]} for row in rows]
    reached = {}
    for place in ("last", "first"):
        found = prepare_tags(
            save_rows("a.jsonl", *rows), label_subword=place, deduplicate=False, validation_fraction=0.3
        )
        model = GPTForTokenClassification(make_config("gpt2", num_hidden_layers=1, **found.settings()))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        batch = found.collate([found.train[i] for i in range(len(found.train))])
        for _ in range(40):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        batch = found.collate([found.validation[i] for i in range(len(found.validation))])
        numbers = batch.pop("numbers").tolist()
        said = TagTrainer.said(None, model.eval()(**batch).logits.detach(), batch)
        reached[place] = found.measure([said[numbers.index(i)] for i in range(len(said))])["accuracy"]
    assert reached["last"] > 0.98
    assert reached["first"] < 0.75


def test_the_worst_errors_name_what_is_missed_and_added(prepare_tags, save_rows):
    from gpt_finetune.tasks.config import JudgeConfig

    test = save_rows("test.jsonl", {"words": ["go", "Anna", "Lee"], "tags": ["O", "B-PER", "I-PER"]})
    found = prepare_tags(save_rows("a.jsonl", *FEW), validation=[test])
    names = found.labels.names
    told = np.array([[names.index("O"), 0.5], [names.index("B-PER"), 0.1], [names.index("B-PER"), 2.0]])
    outcome = judge(found, [told], run_baselines(found), JudgeConfig(resamples=100))
    (error,) = outcome.section["errors"]
    assert error == {
        "text": "go Anna Lee",
        "label": ["Anna Lee/PER"],
        "predicted": ["Anna/PER", "Lee/PER"],
        "loss": 2.6,
        "explained": {"place": 2, "word": "Lee", "predicted": "B-PER", "right": "I-PER"},
    }
    assert found.measure([told])["entity_f1"] == 0
    assert outcome.baselines["most frequent tag per word"]["entity_f1"] == 1


@pytest.mark.parametrize("problem", ["entity_tagging", "word_tagging"])
def test_a_fold_keeps_what_the_leading_figure_is_made_of(prepare_tags, save_rows, problem):
    from gpt_finetune.tasks.config import FIGURES, JudgeConfig
    from gpt_finetune.tasks.fold_tests import OURS, read_by_text

    rows = FEW if problem == "entity_tagging" else [{**row, "tags": list("abcb")} for row in FEW]
    found = prepare_tags(save_rows("a.jsonl", *rows), folds=3)
    assert found.problem == problem
    chance = np.random.default_rng(0)
    tags = len(found.labels.names)
    said = [np.stack((chance.integers(tags, size=4), np.ones(4)), 1) for _ in range(len(found.validation))]
    outcome = judge(found, said, run_baselines(found), JudgeConfig(resamples=100))
    figures = {OURS: found.measure(said), **outcome.baselines}
    config = TagDataConfig([RowSourceConfig("a.jsonl")], folds=3)
    kept = outcome.receipt(config)["task"]["by_text"]
    assert kept.keys() == figures.keys()
    for name, written in kept.items():
        counts = read_by_text(written)
        assert len(counts) == len(found.texts["validation"])
        assert counts[:, 0].sum() / counts[:, 1].sum() == pytest.approx(figures[name][FIGURES[problem][0]])
    assert "by_text" not in outcome.receipt(TagDataConfig([RowSourceConfig("a.jsonl")]))["task"]


def test_a_trainer_keeps_tags_and_losses():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]], [[0.0, 3.0], [0.0, 0.0], [0.0, 0.0]]])
    labels = torch.tensor([[0, IGNORED, 1], [1, IGNORED, IGNORED]])
    first, second = TagTrainer.said(None, logits, {"labels": labels})
    expected = torch.nn.functional.cross_entropy(logits[0, [0, 2]], torch.tensor([0, 1]), reduction="none")
    np.testing.assert_allclose(first, np.array([[0, float(expected[0])], [0, float(expected[1])]]), rtol=1e-6)
    assert second.shape == (1, 2)


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([{"words": ["a", "b"], "tags": ["O"]}], {}, r"a\.jsonl:1 = \['O'\]: 2 words have 1 tags"),
        ([{"words": [], "tags": []}], {}, r"a\.jsonl:1 = \[\]: there is no word"),
        ([{"words": ["a", " "], "tags": ["O", "O"]}], {}, r"a\.jsonl:1 = ' ': the text is empty"),
        ([{"words": "a b", "tags": ["O", "O"]}], {}, r"a\.jsonl:1 = 'a b': the words are str, not a list"),
        ([{"words": ["a"], "tags": "O"}], {}, r"a\.jsonl:1 = 'O': the column 'tags' is str"),
        ([{"words": ["a"], "tags": [None]}], {}, r"a\.jsonl:1 = None: a tag is a text or an integer"),
        ([{"words": ["a"], "tags": [""]}], {}, r"a\.jsonl:1 = '': a tag is a text"),
        ([{"words": ["a"], "tags": ["NN"]}], {"scheme": "iob2"}, r"a\.jsonl:1 = 'NN'.*data\.scheme is iob2"),
        ([{"words": [f"a{i}"], "tags": ["O"]} for i in range(20)], {}, r"all words have one tag"),
        ([{"words": ["a"]}], {}, r"a\.jsonl:1.*no column 'tags'"),
    ],
)
def test_bad_rows_are_named(prepare_tags, save_rows, rows, fields, message):
    with pytest.raises(InputError, match=message):
        prepare_tags(save_rows("a.jsonl", *rows), **fields)


def test_an_unknown_tag_at_evaluation_is_named(prepare_tags, save_rows):
    test = save_rows("test.jsonl", {"words": ["new"], "tags": ["B-PRE"]})
    with pytest.raises(InputError, match=r"test\.jsonl:1 = 'B-PRE': no training row has.*'B-PER'"):
        prepare_tags(save_rows("a.jsonl", *FEW), validation=[test])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tags_column": "words"}, r"data\.tags_column = 'words': data\.words_column names the same"),
        ({"slots_column": "text"}, r"data\.slots_column = 'text'"),
        ({"overlap": 256}, r"data\.overlap = 256: windows have 256 tokens"),
        ({"overlap": -1}, r"data\.overlap = -1"),
        ({"tag_cut": "("}, r"data\.tag_cut = '\(': it is no regular expression"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(InputError, match=message):
        TagDataConfig([RowSourceConfig("a.jsonl")], **fields).validate()
