from __future__ import annotations

import json

import pytest


@pytest.fixture
def save_rows(tmp_path):
    """Return a maker of jsonl files from rows."""

    def make(name, *rows):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return file

    return make


@pytest.fixture
def prepare(make_tokenizer):
    """Return a maker of prepared tasks, from files and fields of the data section."""
    from gpt_finetune.tasks.classification import prepare_task
    from gpt_finetune.tasks.config import ClassifyDataConfig, RowSourceConfig
    from gpt_finetune.tasks.heads import padded_tokenizer

    def make(*files, validation=(), **fields):
        sources, held_out = ([RowSourceConfig(str(file)) for file in some] for some in (files, validation))
        config = ClassifyDataConfig(sources, held_out, **fields)
        return prepare_task(config, padded_tokenizer(make_tokenizer(), config.max_length))

    return make


@pytest.fixture
def make_pair(make_config):
    """Return a maker of tiny encoder-decoders, by overrides of both halves."""
    import torch
    from transformers import EncoderDecoderModel

    from gpt_finetune import GPTForCausalLM, GPTModel

    def make(**overrides):
        torch.manual_seed(0)
        fields = {"num_hidden_layers": 1, "initializer_range": 0.2, **overrides}
        encoder = GPTModel(make_config("modern", **fields, is_causal=False))
        decoder = GPTForCausalLM(make_config("modern", **fields, add_cross_attention=True))
        pair = EncoderDecoderModel(encoder=encoder, decoder=decoder)
        pair.config.pad_token_id, pair.config.decoder_start_token_id = 0, 1
        return pair

    return make
