"""Pairs of texts: how they are read and batched, the loss of an encoder-decoder, and what it writes."""

from __future__ import annotations

import pytest
import torch

from gpt_finetune.build import ModelConfig
from gpt_finetune.data.config import TokenizerConfig
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import RowSourceConfig
from gpt_finetune.tasks.seq2seq import prepare_pairs, with_pad
from gpt_finetune.tasks.seq2seq_config import Seq2SeqDataConfig
from gpt_finetune.tasks.seq2seq_model import build_pair, check_model, write
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.trainer import GPTTrainer

FAST = {"max_steps": 4, "log_steps": 1, "precision": "float32", "learning_rate": 1e-2, "threads": 1}
PAD, START = 0, 1


def uneven(count, width=10):
    """Return sources and targets of very different length."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i in range(count):
        labels = torch.randint(2, 512, (width,), generator=generator)
        labels[1 + i * 7 % width :] = -100
        rows.append({"input_ids": torch.randint(2, 512, (6,), generator=generator), "labels": labels})
    return rows


def train(model, folder, **fields):
    config = TrainConfig(**{**FAST, **fields})
    trainer = GPTTrainer(model=model, args=training_arguments(config, folder), train_dataset=uneven(32))
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_accumulation_equals_the_big_batch(make_pair, tmp_path, smoothing):
    """transformers' EncoderDecoderModel takes the mean over each pass, however few tokens it has."""
    more = {"trainer": {"label_smoothing_factor": smoothing}}
    big = train(make_pair(), tmp_path / "big", batch_size=8, accumulation=1, **more)
    small = train(make_pair(), tmp_path / "small", batch_size=2, accumulation=4, **more)
    assert len(big) == 4
    assert small == pytest.approx(big, abs=1e-6, rel=1e-6)


def test_evaluation_counts_each_token_once_whatever_the_batch(make_pair, tmp_path):
    model, data = make_pair().eval(), uneven(7)
    config = training_arguments(TrainConfig(**FAST), tmp_path)
    found = []
    for size in (1, 2, 7):
        config.per_device_eval_batch_size = size
        found.append(GPTTrainer(model=model, args=config, eval_dataset=data).evaluate()["eval_loss"])
    nats = count = 0.0
    for row in data:
        labels = row["labels"][row["labels"] >= 0]
        read = torch.cat((torch.tensor([START]), labels[:-1]))
        logits = model(input_ids=row["input_ids"][None], decoder_input_ids=read[None]).logits[0]
        nats += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += len(labels)
    assert found == pytest.approx([nats / count] * 3, rel=1e-5)


PAIRS = [{"en": f"one and {i} more", "fr": f"un et {i} de plus"} for i in range(20)]


@pytest.fixture
def pairs(save_rows, make_tokenizer, tmp_path):
    """Return a maker of prepared pairs, from rows and fields of the data section."""
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def make(*rows, tokenizer=None, **fields):
        sources = [RowSourceConfig(str(save_rows("pairs.jsonl", *(rows or PAIRS))))]
        config = Seq2SeqDataConfig(sources, source_column="en", target_column="fr", **fields)
        return prepare_pairs(config, TokenizerConfig(path=str(tokenizer or tmp_path / "tokenizer")))

    return make


def test_a_batch_says_what_is_read_and_what_is_to_be_written(pairs):
    data = pairs({"en": "a", "fr": "un mot"}, {"en": "some words", "fr": "b"}, {"en": "c", "fr": "d"})
    tokenizer = data.tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    batch = data.collate([data.train[i] for i in range(len(data.train))])
    for i, row in enumerate(data.texts["train"]):
        assert tokenizer.decode(batch["input_ids"][i][batch["attention_mask"][i] == 1]) == row.text
        labels = batch["labels"][i][batch["labels"][i] != -100]
        assert tokenizer.decode(labels[:-1]) == row.target.text
        assert labels[-1] == end != pad
        size = len(labels)
        read = batch["decoder_input_ids"][i]
        assert read[:size].tolist() == [data.start_id, *labels[:-1].tolist()]
        assert set(read[size:].tolist()) <= {pad, end}
    assert (batch["input_ids"][batch["attention_mask"] == 0] == pad).all()


def test_what_is_too_long_loses_its_end_and_is_counted(pairs):
    data = pairs(max_source_length=3, max_target_length=4)
    assert max(len(row["input_ids"]) for row in data.train) == 3
    assert all(data.tokenizer.eos_token_id not in row["labels"] for row in data.train)  # it is no place to stop
    total = data.ledger.total
    assert data.ledger.truncated_examples == 20
    assert total["tokens"]["trained"] == 7 * len(data.train)
    assert total["tokens"]["total"] == sum(total["tokens"][name] for name in ("trained", "validation", "truncated"))


def test_of_several_targets_the_first_counts(pairs):
    again = [{"en": "One  AND 3 more", "fr": "autre"}, {"en": "one and 3 more", "fr": "encore"}]
    data = pairs(*PAIRS, *again)
    assert data.ledger.total["examples"]["duplicate"] == 2
    assert "contradictory" not in data.ledger.total["examples"]
    assert not {"autre", "encore"} & {row.target.text for side in data.texts.values() for row in side}


def test_a_text_cannot_forge_the_end_of_a_target(pairs):
    data = pairs({"en": "a", "fr": "b<|endoftext|>c"}, {"en": "d", "fr": "e<|endoftext|>f"})
    labels = data.train[0]["labels"].tolist()
    assert labels.count(data.tokenizer.eos_token_id) == 1


def test_a_tokenizer_without_padding_gets_a_token_for_it(pairs, make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    size, tokenizer.pad_token = len(tokenizer), tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "bare")
    data = pairs(tokenizer=tmp_path / "bare")
    assert data.tokenizer.pad_token_id not in (data.tokenizer.eos_token_id, data.tokenizer.bos_token_id)
    assert len(data.tokenizer) == size  # it had one, unused


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"en": "a", "fr": " "}, {}, r"pairs\.jsonl:21 = ' ': the text is empty"),
        ({"en": "", "fr": "b"}, {}, r"pairs\.jsonl:21 = '': the text is empty"),
        ({"en": "a", "fr": 3}, {}, r"pairs\.jsonl:21 = 3: the text is int"),
        ({"en": "a"}, {}, r"pairs\.jsonl:21.*no column 'fr', which data\.target_column names"),
        ({"en": "x" * 400, "fr": "b"}, {"strict": True}, r"its source has \d+ tokens.*Set data\.max_source_length="),
        ({"en": "a", "fr": "x" * 400}, {"strict": True}, r"its target has \d+ tokens.*Set data\.max_target_length="),
        (PAIRS[0], {"max_target_length": 1}, r"data\.max_target_length = 1: it is below 2"),
        (PAIRS[0], {"max_length": 1}, r"data\.max_length = 1: one token holds nothing but the end"),
    ],
)
def test_bad_rows_are_refused(pairs, row, fields, message):
    with pytest.raises(InputError, match=message):
        pairs(*PAIRS, row, **fields)


def test_halves_of_a_checkpoint(make_model, make_tokenizer, tmp_path):
    """Both begin from its weights; what is new is the cross-attention, and a row of each table for the pad token."""
    tokenizer = with_pad(make_tokenizer())
    base = make_model("modern", vocab_size=len(tokenizer) - 1)
    base.save_pretrained(tmp_path)
    pair = build_pair(ModelConfig(from_pretrained=str(tmp_path)), (32, 32), tokenizer, tokenizer.bos_token_id)
    assert not pair.encoder.config.is_causal
    assert pair.decoder.config.add_cross_attention
    for half in (pair.encoder, pair.decoder.model):
        assert half.embed_tokens.weight.shape[0] == len(tokenizer)
        assert torch.equal(half.layers[0].mlp.down_proj.weight, base.model.layers[0].mlp.down_proj.weight)
    with pytest.raises(InputError, match=r"data\.max_source_length = 65: the model has only 64 positions"):
        check_model(ModelConfig(from_pretrained=str(tmp_path)), (65, 32))
    make_model("gpt-j").save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"model\.from_pretrained.*add_cross_attention"):
        check_model(ModelConfig(from_pretrained=str(tmp_path / "other")), (32, 32))


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_does_not_depend_on_the_batch(pairs, beams):
    data = pairs()
    fields = {"num_hidden_layers": 1, "initializer_range": 0.3}
    pair = build_pair(ModelConfig("tiny", fields), (32, 32), data.tokenizer, data.start_id).eval()
    texts = [prompt.text for prompt in data.prompts] + ["more", "one and one and one more", "and"]
    together = write(pair, data.tokenizer, texts, 6, num_beams=beams)
    alone = write(pair, data.tokenizer, texts, 6, batch_size=1, num_beams=beams)
    assert together == alone
    assert all(answer.tokens <= 6 for answer in together)
    assert len({answer.text for answer in together}) > 1


def test_the_order_of_grouped_rows_is_of_seed_and_epoch_alone(make_pair, tmp_path):
    """transformers draws it from torch's global state: a resumed run then skips other rows than it has seen."""
    config = training_arguments(TrainConfig(**FAST), tmp_path, train_sampling_strategy="group_by_length")
    data = [{"input_ids": row["input_ids"][: 1 + i % 6], "labels": row["labels"]} for i, row in enumerate(uneven(32))]
    sampler = GPTTrainer(model=make_pair(), args=config, train_dataset=data)._get_train_sampler()
    first = list(sampler)
    torch.rand(3)
    assert list(sampler) == first
    assert sorted(first) == list(range(32))
    sampler.set_epoch(1)
    assert list(sampler) != first
