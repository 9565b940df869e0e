"""Word alignment: counted links, where a head is told to look, and the loss that tells it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from gpt_finetune.errors import InputError
from gpt_finetune.tasks import alignment
from gpt_finetune.tasks.alignment import Alignment, Guide, GuidedLoss
from gpt_finetune.tasks.seq2seq_config import AlignConfig
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.pairs import PairLoss, decoder_inputs
from gpt_finetune.training.trainer import GPTTrainer

SIZE, PAD, START = 60, 0, 1


def phrases(count, seed=0):
    """Return sources of tokens 10 to 29, and what each is token by token, 30 more, neighbours the other way round."""
    chance = np.random.default_rng(seed)
    sources = [chance.choice(np.arange(10, 30), 2 * chance.integers(1, 5), replace=False) for _ in range(count)]
    return sources, [source.reshape(-1, 2)[:, ::-1].ravel() + 30 for source in sources]


@pytest.fixture(scope="module")
def counted():
    return Alignment.learn(*phrases(600), SIZE)


@pytest.fixture
def make_pair(make_pair):
    return functools.partial(make_pair, vocab_size=SIZE, num_hidden_layers=2)


def batch(count=6, seed=1):
    sources, targets = phrases(count, seed)
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.from_numpy(row) for row in sources], batch_first=True, padding_value=PAD)
    labels = pad([torch.from_numpy(row.copy()) for row in targets], batch_first=True, padding_value=-100)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


def test_counting_finds_what_translates_what_wherever_it_stands(counted):
    rows = batch()
    shares, known = counted(rows["input_ids"], rows["attention_mask"], rows["labels"])
    assert torch.equal(known, rows["labels"] != -100)
    torch.testing.assert_close(shares.sum(-1)[known], torch.ones(int(known.sum())))
    right = rows["labels"][:, :, None] == rows["input_ids"][:, None, :] + 30
    assert shares[right].min() > 0.9
    assert (shares[rows["attention_mask"][:, None, :].expand_as(shares) == 0] == 0).all()


def test_of_a_token_never_seen_nothing_is_said(counted):
    rows = batch()
    rows["labels"][0, 0] = 5
    shares, known = counted(rows["input_ids"], rows["attention_mask"], rows["labels"])
    assert not known[0, 0]
    assert (shares[0, 0] == 0).all()
    assert known[0, 1]


def test_pairs_beyond_what_memory_allows_are_left_out_and_said(monkeypatch, caplog):
    monkeypatch.setattr(alignment, "MOST_LINKS", 200)
    with caplog.at_level("INFO"):
        Alignment.learn(*phrases(300), SIZE)
    counted, whole, _ = next(record.args for record in caplog.records if "translates which" in record.msg)
    assert 0 < counted < whole == 300


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("overrides", [{}, {"num_attention_heads": 4, "num_key_value_heads": 2, "qk_norm": False}])
def test_the_loss_is_the_cross_entropy_of_the_weights(make_pair, counted, layer, smoothing, overrides):
    pair, rows = make_pair(**overrides).train(), batch()
    pair.set_attn_implementation("eager")  # which returns weights
    labels = rows.pop("labels")
    guided = GuidedLoss(Guide(pair, counted, layer), 0.7, smoothing)
    outputs = pair(**rows, **decoder_inputs(pair, labels), output_attentions=True)
    shares, known = counted(rows["input_ids"], rows["attention_mask"], labels)
    looked = -(shares * outputs.cross_attentions[layer][:, 0].clamp_min(1e-30).log()).sum(-1)[known].sum()
    for items in (None, 50):
        expected = PairLoss(smoothing)(outputs, labels, items) + 0.7 * looked / (items or (labels != -100).sum())
        torch.testing.assert_close(guided(outputs, labels, items), expected, atol=1e-5, rtol=1e-5)
    guided(outputs, labels).backward()
    name = f"decoder.model.layers.{layer}.cross_attn.q_proj.weight"
    assert dict(pair.named_parameters())[name].grad.abs().max() > 0


def test_what_is_logged_is_the_tokens_loss_and_the_guides_beside_it(make_pair, counted):
    pair = make_pair().train()
    guided, plain = GuidedLoss(Guide(pair, counted, 0), 0.5, 0.1), PairLoss(0.1)
    for steps in (3, 2):  # since the last time only
        wholes, tokens = [], []
        for seed in range(steps):
            rows = batch(4 + 3 * seed, seed)
            labels = rows.pop("labels")
            outputs = pair(**rows, **decoder_inputs(pair, labels))
            wholes.append(guided(outputs, labels).item())
            tokens.append(plain(outputs, labels).item())
        with torch.no_grad():
            guided(outputs, labels)  # an evaluation between
        guided({"logits": outputs.logits * torch.nan}, labels)  # a step that is skipped
        logs = {"loss": np.mean(wholes), "learning_rate": 0.1}
        guided.told_apart(logs, lambda sums, reduction: 2 * sums)  # as from two processes alike
        expected = {"loss": np.mean(tokens), "align_loss": 2 * (np.mean(wholes) - np.mean(tokens))}
        assert logs == pytest.approx({**expected, "learning_rate": 0.1}, rel=1e-5)
        assert logs["align_loss"] > 0


def test_evaluation_and_writing_know_nothing_of_it(make_pair, counted):
    pair, rows = make_pair().eval(), batch()
    guide = Guide(pair, counted, 0)
    labels = rows.pop("labels")
    with torch.no_grad():
        outputs = pair(**rows, **decoder_inputs(pair, labels))
        assert torch.equal(GuidedLoss(guide, 1.0)(outputs, labels), PairLoss()(outputs, labels))
        pair.generate(**rows, max_new_tokens=3, do_sample=False)
    assert guide.heard == {}


def rows_of(count):
    sources, targets = phrases(count, 2)
    return [
        {"input_ids": torch.from_numpy(source), "labels": torch.from_numpy(target.copy())}
        for source, target in zip(sources, targets, strict=True)
    ]


def train(pair, counted, folder, weight, **fields):
    from gpt_finetune.tasks.seq2seq import PairCollator

    base = {"log_steps": 1, "precision": "float32", "threads": 1}
    arguments = training_arguments(TrainConfig(**{**base, **fields}), folder)
    guided = GuidedLoss(Guide(pair, counted, 0), weight) if weight else None
    trainer = GPTTrainer(
        model=pair,
        args=arguments,
        train_dataset=rows_of(64),
        data_collator=PairCollator(PAD, START, 8),
        compute_loss_func=guided,
    )
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_accumulation_equals_the_big_batch(make_pair, counted, tmp_path):
    fields = {"max_steps": 4, "learning_rate": 1e-2}
    big = train(make_pair(), counted, tmp_path / "big", 1.0, batch_size=8, **fields)
    small = train(make_pair(), counted, tmp_path / "small", 1.0, batch_size=2, accumulation=4, **fields)
    assert small == pytest.approx(big, rel=1e-5)
    assert big != pytest.approx(train(make_pair(), counted, tmp_path / "plain", 0, batch_size=8, **fields), rel=1e-3)


def test_a_guided_head_looks_where_it_should_after_few_steps(make_pair, counted, tmp_path):
    shares = {}
    for weight in (0.0, 1.0):
        pair, rows = make_pair(position_embedding_type="learned"), batch(40, seed=3)
        train(
            pair,
            counted,
            tmp_path / str(weight),
            weight,
            max_steps=120,
            batch_size=16,
            optimizer="muon",
            learning_rate=1e-2,
        )
        pair.eval().set_attn_implementation("eager")
        labels = rows.pop("labels")
        with torch.no_grad():
            found = pair(**rows, **decoder_inputs(pair, labels), output_attentions=True).cross_attentions[0][:, 0]
        right = labels[:, :, None] == rows["input_ids"][:, None, :] + 30
        shares[weight] = found[right].mean().item()
    assert shares[1.0] > 0.6 > 0.4 > shares[0.0]


@pytest.mark.parametrize(
    ("align", "train_section", "said"),
    [
        ({"weight": -1.0}, {}, "align.weight = -1.0: it is below 0"),
        ({"layer": 3}, {}, "align.layer = 3: the decoder has 3 layers. Give one from 0 to 2, or null"),
        ({"layer": -1}, {}, "align.layer = -1"),
        ({"weight": 1.0}, {"compile": True}, "train.compile"),
        ({"weight": 1.0}, {"gradient_checkpointing": True}, "train.gradient_checkpointing"),
    ],
)
def test_what_cannot_be_is_refused(align, train_section, said):
    with pytest.raises(InputError, match="^" + said.replace(".", r"\.")):
        AlignConfig(**align).validate(3, TrainConfig(**train_section))
    AlignConfig().validate(1, TrainConfig(compile=True))


def test_the_last_layer_but_one_is_told():
    assert [AlignConfig().layer_of(layers) for layers in (1, 2, 3, 12)] == [0, 0, 1, 10]
    assert AlignConfig(layer=2).layer_of(3) == 2
