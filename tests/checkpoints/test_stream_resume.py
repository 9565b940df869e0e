"""A run on a stream goes on where the stream stood: to the last bit, without reading again what was read before."""

from __future__ import annotations

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import surviving
import torch
from reliability import record
from support import ROOT, load_recipe

from gpt_finetune.data.config import DataConfig, SourceConfig, TokenizerConfig
from gpt_finetune.data.documents import DocumentStream
from gpt_finetune.data.packing import collate
from gpt_finetune.data.resuming import StreamState
from gpt_finetune.data.sources import open_source
from gpt_finetune.data.streaming import StreamingBlocks
from gpt_finetune.data.tokenizer import CorpusEncoder, train_tokenizer
from gpt_finetune.errors import InputError
from gpt_finetune.training.streams import FILE

FIELDS = {"max_steps": 8, "save_steps": 1, "save_total_limit": 99}
opened: list[Path] | None = None


def hook(event: str, arguments: tuple) -> None:
    if opened is not None and event == "open" and str(arguments[0]).endswith(".jsonl"):
        opened.append(Path(str(arguments[0])))


sys.addaudithook(hook)


def write(folder: Path, files: int, rows: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(folder.name)
    for i in range(files):
        texts = [
            " ".join(chance.choices(["the", "cat", "sat", "天气", "很好", "1", "2", "3"], k=9)) for _ in range(rows)
        ]
        lines = (json.dumps({"text": text}) for text in [*texts, texts[0]])
        (folder / f"{folder.name}-{i:03}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def make_corpus(folder: Path) -> tuple[Path, CorpusEncoder]:
    """Return two folders of files, and the encoder: a pass has about 60 rows of 12 tokens."""
    write(folder / "a", 6, 5)
    write(folder / "b", 3, 5)
    texts = ["the cat sat " * 20, "天气很好 " * 20]
    return folder, CorpusEncoder.of(train_tokenizer(texts, TokenizerConfig(vocab_size=280)))


def make_rows(corpus: tuple[Path, CorpusEncoder], **options) -> StreamingBlocks:
    folder, encoder = corpus
    sources = [SourceConfig(str(folder / "a"), 2.0), SourceConfig(str(folder / "b"), 1.0)]
    options = {"block_size": 12, "shuffle_buffer": 8, "seed": 0, "streaming": True, **options}
    config = DataConfig(sources=sources, **options)
    stream = DocumentStream([open_source(source, "data.sources") for source in sources], config)
    return StreamingBlocks(stream, encoder, config)


def train_on(corpus, output: Path, *, resume: bool = False, data_config=None, **fields):
    """Train a tiny model with dropout on the stream; its rows are noted."""
    rows = make_rows(corpus, **(data_config or {}))
    trainer = surviving.make_trainer(output, data=rows, **{**FIELDS, **fields})
    trainer.data_collator = collate
    trainer.trained_rows = []
    step = trainer.training_step

    def watched(model, inputs, *more):
        trainer.trained_rows += inputs["input_ids"].tolist()
        return step(model, inputs, *more)

    trainer.training_step = watched
    if resume:  # a new process has drawn other numbers so far
        for draw in (random.random, np.random.rand, lambda: torch.rand(3)):
            draw()
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("stream"))


@pytest.fixture
def train(corpus, monkeypatch):
    monkeypatch.setattr("gpt_finetune.data.streaming.BATCH", 100)
    return partial(train_on, corpus)


def go_on(train, begun: Path, step: int, folder: Path, **fields):
    shutil.copytree(begun / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    return train(folder, resume=True, **fields)


SETTINGS = {
    "its second epoch, odd accumulation": ({"batch_size": 4, "accumulation": 3, "max_steps": 8}, (4, 5, 7)),
    "two workers": ({"workers": 2, "accumulation": 1, "max_steps": 18}, (5, 12)),
    "a worker, evaluations": (
        {"workers": 1, "evaluate": lambda: surviving.rows(8), "eval_steps": 2, "max_steps": 10},
        (3, 8, 9),
    ),
    "in its order": ({"data_config": {"shuffle_buffer": 1, "deduplicate": False}, "max_steps": 12}, (4, 11)),
    "all of it shuffled": ({"data_config": {"shuffle_buffer": 999}, "max_steps": 9}, (1, 6)),
}
GATE = "its second epoch, odd accumulation"


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == GATE else [pytest.mark.long]) for n in SETTINGS])
def test_a_resumed_stream_is_the_one_that_was_never_stopped(train, tmp_path, name):
    fields, middles = SETTINGS[name]
    fields = {key: value() if key == "evaluate" else value for key, value in fields.items()}
    whole = train(tmp_path / "whole", **fields)
    last = f"checkpoint-{whole.state.global_step}"
    assert whole._epoch == 1, "it ends in the second epoch"
    if name == "two workers":
        states = {step: StreamState.load(tmp_path / "whole" / f"checkpoint-{step}" / FILE) for step in range(1, 18)}
        middles += (next(step for step, state in states.items() if not state.parts),)  # where the first epoch ends
    for middle in middles:
        again = go_on(train, tmp_path / "whole", middle, tmp_path / f"from {middle}", **fields)
        assert again.state.global_step == whole.state.global_step
        states = [surviving.state_of(run / last) for run in (tmp_path / "whole", tmp_path / f"from {middle}")]
        assert surviving.same(*states)
        assert again.trained_rows == whole.trained_rows[-len(again.trained_rows) :]
        names = [(tmp_path / run / last / FILE).read_bytes() for run in ("whole", f"from {middle}")]
        assert names[0] == names[1], "both say that the stream stands at one place"
        logs = [
            [(row["step"], row["epoch"], row["loss"]) for row in run.state.log_history if "loss" in row]
            for run in (whole, again)
        ]
        assert logs[0] == logs[1]


@pytest.mark.slow
def test_other_batches_and_each_row_once(train, tmp_path):
    whole = train(tmp_path / "whole").trained_rows
    again = go_on(train, tmp_path / "whole", 3, tmp_path / "again", batch_size=5, accumulation=1)
    assert again.trained_rows == whole[24:49]
    assert [row["epoch"] for row in again.state.log_history][2:4] == [6 / 16, (24 / 5 + 1) / 8]
    twice = go_on(train, tmp_path / "again", 7, tmp_path / "twice", batch_size=2, accumulation=3)
    assert twice.trained_rows == whole[24 + 20 : 24 + 20 + 6]
    assert len({tuple(row) for row in whole[:50]}) == 50, "rows differ"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"workers": 1}, r"train\.workers = 1: the run that is resumed had 0"),
        ({"data_config": {"block_size": 13}}, r"data\.block_size = 13: the run that is resumed had 12"),
        ({"data_config": {"seed": 1}}, r"data\.seed = 1"),
    ],
)
def test_what_its_rows_depend_on_may_not_change(train, begun, tmp_path, fields, expected):
    with pytest.raises(InputError, match=expected):
        go_on(train, begun[0], 2, tmp_path, **fields)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    return tmp_path_factory.mktemp("begun"), {}


@pytest.fixture(autouse=True)
def begin(request, train):
    """Let `begun` hold a short run."""
    if "begun" in request.fixturenames and not (request.getfixturevalue("begun")[0] / "checkpoint-2").exists():
        folder, told = request.getfixturevalue("begun")
        told["rows"] = train(folder, max_steps=4).trained_rows


def test_a_checkpoint_of_before_is_gone_on_with_by_skipping(train, begun, tmp_path, caplog):
    folder, told = begun
    shutil.copytree(folder / "checkpoint-2", tmp_path / "old" / "checkpoint-2")
    (tmp_path / "old" / "checkpoint-2" / FILE).unlink()
    from gpt_finetune.checkpoints import sign

    sign(tmp_path / "old" / "checkpoint-2", 2)
    with caplog.at_level(logging.WARNING):
        again = train(tmp_path / "old", resume=True, max_steps=4)
    assert again.trained_rows == told["rows"][len(told["rows"]) // 2 :]
    assert caplog.text.count("its stream is read again from the epoch's beginning") == 1
    assert not (tmp_path / "old" / "checkpoint-4" / FILE).exists()
    assert surviving.same(*(surviving.state_of(run / "checkpoint-4") for run in (folder, tmp_path / "old")))


@pytest.fixture
def pretrain(tmp_path, monkeypatch):
    """Return what runs the recipe on 40 + 20 files, and stops it by SIGTERM where asked."""
    from gpt_finetune.config import run
    from gpt_finetune.training.callbacks import MetricsWriter

    write(tmp_path / "a", 40, 60)
    write(tmp_path / "b", 20, 60)
    recipe, log = load_recipe("pretrain"), MetricsWriter.on_log

    def start(folder: Path, *more: str, stop: int = 0) -> list[str]:
        """Return the names of the files that were opened in training."""

        def logged(self, args, state, control, logs=None, **kwargs):
            log(self, args, state, control, logs, **kwargs)
            if state.global_step == stop:
                os.kill(os.getpid(), signal.SIGTERM)

        def began(self, *_, **__):
            global opened
            opened = []

        monkeypatch.setattr(MetricsWriter, "on_log", logged)
        monkeypatch.setattr(MetricsWriter, "on_train_begin", began)
        words = [
            f"output_dir={folder}",
            "model.preset=tiny",
            "model.overrides={num_hidden_layers: 1, residual_dropout: 0.1}",
            f"data.sources=[{{path: {tmp_path / 'a'}, weight: 2}}, {{path: {tmp_path / 'b'}}}]",
            "data.streaming=true",
            "data.block_size=32",
            "data.shuffle_buffer=50",
            "data.validation_documents=10",
            f"data.cache_dir={tmp_path / 'cache'}",
            "tokenizer.vocab_size=300",
            "train.batch_size=8",
            "train.save_steps=null",
            "train.log_steps=1",
            "train.precision=float32",
            *more,
        ]
        global opened
        try:
            run(recipe.main, recipe.PretrainConfig, words)
        except SystemExit as stopped:
            assert stopped.code == 143
        found, opened = [file.name for file in opened or [] if file.parent.parent == tmp_path], None
        return [name for name in found if name[:2] in ("a-", "b-")]

    return start


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_recipe_that_is_stopped_reads_what_is_left(pretrain, tmp_path, monkeypatch, workers):
    monkeypatch.setattr("gpt_finetune.data.streaming.BATCH", 2000)
    words = ["train.max_steps=170", f"train.workers={workers}"]
    straight = pretrain(tmp_path / "straight", *words)
    before = pretrain(tmp_path / "stopped", *words, stop=109)
    after = pretrain(tmp_path / "stopped", *words, "--resume")
    from safetensors.torch import load_file

    states = [load_file(tmp_path / run / "model.safetensors") for run in ("straight", "stopped")]
    assert surviving.same(*states)
    if workers:
        return  # which read in processes of their own
    assert len(before) > 25
    again = set(before) & set(after)
    assert len(again) <= 2, "of each source the file that it stood in"
    assert sorted(straight) == sorted([*before, *(set(after) - again)])
    record(
        "stream",
        "A stream that is resumed goes on in the file that it stood in",
        f"SIGTERM to a recipe that has read {len(before)} files of two sources, `--resume`; weights compared with "
        "those of a run that was never stopped",
        f"{len(after)} files opened, {len(again)} of them for the second time; bit-identical",
    )


@pytest.mark.long
@pytest.mark.parametrize(("first", "then"), [(2, 2), (1, 2), (2, 1)])
def test_real_processes(corpus, tmp_path, first, then):
    """Process 0 reads for all: as many as before go on to the last bit, another number trains on each row once."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "checkpoints")))
    seen: list[list[int]] = []
    for part, processes in (("whole", first), ("again", then)):
        config = ROOT / "configs" / "accelerate" / ("cpu-2.yaml" if processes == 2 else "single.yaml")
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), __file__]
        done = subprocess.run(
            [*launch, str(tmp_path), part],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        told = [json.loads((tmp_path / f"{part}-{rank}.json").read_text()) for rank in range(processes)]
        if part == "whole":
            shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
        seen += [row for rank in told for row in (rank[: len(rank) // 2] if part == "whole" else rank)]
    assert sorted(seen) == sorted(row["input_ids"].tolist() for row in islice(make_rows(corpus), len(seen)))
    if first == then:
        last = [tmp_path / run / "checkpoint-6" for run in ("whole", "again")]
        assert surviving.same(*(surviving.state_of(folder, 2) for folder in last))
        assert (last[0] / FILE).read_bytes() == (last[1] / FILE).read_bytes()


def main(folder: Path, part: str) -> None:
    """Make six steps, or the last three of them; write down which rows they were made of."""
    fields = {"batch_size": 3, "accumulation": 1, "max_steps": 6, "save_steps": 3}
    corpus = make_corpus(folder / f"corpus-{os.environ.get('RANK', 0)}")
    trainer = train_on(corpus, folder / part, resume=part == "again", **fields)
    (folder / f"{part}-{trainer.accelerator.process_index}.json").write_text(json.dumps(trainer.trained_rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
