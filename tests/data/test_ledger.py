"""The account: its sums hold, and agree with what is counted independently in the datasets."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from data_helpers import as_source, documents, make_texts, targets
from hypothesis import event, given, settings
from hypothesis import strategies as st

from gpt_finetune.data.config import DataConfig, TokenizerConfig
from gpt_finetune.data.ledger import Fates, Ledger, SourceLedger, TokenFates
from gpt_finetune.data.prepare import prepare
from gpt_finetune.data.tokenizer import CorpusEncoder
from gpt_finetune.errors import InputError

texts = st.lists(st.text(alphabet="ab \n天🙂", max_size=12), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(st.tuples(texts, st.sampled_from([0.3, 1.0, 1.5])), min_size=1, max_size=3),
    validation=st.one_of(st.none(), texts),
    block_size=st.integers(2, 20),
    fraction=st.sampled_from([0.0, 0.1, 0.6]),
    deduplicate=st.booleans(),
    seed=st.integers(0, 3),
)
def test_sums_agree_with_independent_counts(
    tokenizer_folder, sources, validation, block_size, fraction, deduplicate, seed
):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            prepared = prepare(
                DataConfig(
                    sources=[as_source(s, folder / f"{i}.jsonl") for i, s in enumerate(sources)],
                    validation=[as_source(validation, folder / "v.jsonl")] if validation else [],
                    validation_fraction=fraction,
                    deduplicate=deduplicate,
                    block_size=block_size,
                    seed=seed,
                    cache_dir=name,
                ),
                TokenizerConfig(path=tokenizer_folder),
            )
        except InputError:
            event("refused")
            return  # too little text: the tests of prepare say when
        prepared.ledger.check()
        everything = [*(validation or []), *(text for source, _ in sources for text in source)]
        total, tokenizer = prepared.ledger.total, prepared.tokenizer
        kept = [text for text in everything if text.strip()]
        assert total.documents.total == len(everything)
        assert total.bytes.total == sum(len(text.encode()) for text in everything)
        assert total.documents.empty == len(everything) - len(kept)
        assert total.documents.duplicate == (len(kept) - len(set(kept)) if deduplicate else 0)
        sizes = {text: len(ids) + 1 for text, ids in zip(kept, CorpusEncoder.of(tokenizer)(kept), strict=True)}
        assert total.tokens.total == sum(sizes[text] for text in kept)

        held_out = documents(prepared.validation, tokenizer) if prepared.validation else []
        assert total.documents.validation == len(held_out)
        assert prepared.validation_bytes == sum(len(text.encode()) for text in held_out)
        assert prepared.validation_tokens == sum(sizes[text] for text in held_out)
        assert total.tokens.per_epoch == len(targets(prepared.train))

        trained = [
            text for part in prepared.train.parts for text in documents(part, tokenizer)
        ]  # the whole streams, before weights
        assert Counter(trained) + Counter(held_out) == Counter(set(kept) if deduplicate else kept)
        assert total.documents.train == len(trained)
        assert prepared.train_bytes == sum(len(text.encode()) for text in trained)
        if not validation:
            assert not set(trained) & set(held_out), "a text is never on both sides"
        distinct = sum(
            part.targets(np.unique(rows)) for part, rows in zip(prepared.train.parts, prepared.train.rows, strict=True)
        )
        assert prepared.train_tokens == distinct
        duplicates = sum(sizes[text] for text in kept) - sum(sizes[text] for text in [*trained, *held_out])
        assert total.tokens.dropped == duplicates + sum(sizes[text] for text in trained) - distinct
        streams = [*prepared.train.parts, *(prepared.validation.parts if prepared.validation else [])]
        assert total.tokens.separators == len(streams)
        assert total.tokens.padding == sum(
            int((stream[i]["labels"][1:] == -100).sum()) for stream in streams for i in range(len(stream))
        )


@pytest.mark.parametrize("field", ["total", "train", "validation", "duplicate", "empty"])
def test_check_finds_a_lost_document(field):
    account = SourceLedger("a", Fates(4, 1, 1, 1, 1), Fates(4, 1, 1, 1, 1), TokenFates(4, 1, 1, 1, 1))
    Ledger([account]).check()
    setattr(account.documents, field, 9)
    with pytest.raises(AssertionError, match="a: the documents do not add up"):
        Ledger([account]).check()


@pytest.mark.parametrize("field", ["total", "trained", "validation", "masked", "dropped"])
def test_check_finds_a_lost_token(field):
    account = SourceLedger("a", tokens=TokenFates(4, 1, 1, 1, 1))
    setattr(account.tokens, field, 9)
    with pytest.raises(AssertionError, match="a: the tokens do not add up"):
        Ledger([account]).check()


def test_round_trip_and_table(run):
    ledger = run((make_texts(30), 0.5), [*make_texts(50, seed=1), "", "same text", "same text"]).ledger
    assert Ledger.from_dict(json.loads(json.dumps(ledger.to_dict()))) == ledger
    table = ledger.table().splitlines()
    assert len({len(line) for line in table}) == 1, "the columns are aligned"
    assert len(table) == 1 + 3 * 3
    assert table[-3].split()[:3] == ["total", "documents", "83"]
    assert ledger.sources[0].tokens.dropped > 0
    assert ledger.sources[1].documents.duplicate == 1
    assert ledger.sources[1].documents.empty == 1
