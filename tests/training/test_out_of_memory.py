"""Memory that does not suffice: a message that says what to lower; or halves, on the whole batch's trajectory."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
from pathlib import Path

import pytest
import torch

from gpt_finetune import GPTForCausalLM, GPTForQuestionAnswering, GPTForSequenceClassification
from gpt_finetune.errors import InputError
from gpt_finetune.hub import travel
from gpt_finetune.training.arguments import TrainConfig, training_arguments
from gpt_finetune.training.memory import _what_to_lower, cut, is_out_of_memory
from gpt_finetune.training.trainer import GPTTrainer

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
FAST = {"max_steps": 4, "log_steps": 1, "precision": "float32", "learning_rate": 1e-2}


def rows(head: type) -> list[dict[str, torch.Tensor]]:
    """Return rows of uneven numbers of labels, for a head."""
    generator, made = torch.Generator().manual_seed(7), []
    for i in range(32):
        ids = torch.randint(2, 512, (12,), generator=generator)
        labels = ids.clone()
        labels[12 - i % 10 :] = -100
        made.append(
            {
                GPTForCausalLM: {"input_ids": ids, "labels": labels},
                GPTForSequenceClassification: {"input_ids": ids, "labels": torch.tensor(i % 2 if i % 5 else -100)},
                GPTForQuestionAnswering: {
                    "input_ids": ids,
                    "start_positions": torch.tensor(i % 9 if i % 3 else -100),
                    "end_positions": torch.tensor(i % 9 + 1 if i % 3 else -100),
                },
            }[head]
        )
    return made


def packed() -> list[dict[str, torch.Tensor]]:
    """Return rows of two or three texts, each with a label."""
    made = []
    for i, row in enumerate(rows(GPTForCausalLM)):
        sizes = (5, 7) if i % 2 else (3, 4, 5)
        positions = torch.cat([torch.arange(size) for size in sizes])
        labels = torch.tensor([(i + n) % 2 for n in range(len(sizes))])
        made.append({"input_ids": row["input_ids"], "position_ids": positions, "labels": labels})
    return made


def collate(batch):
    join = {"labels": torch.cat} if "position_ids" in batch[0] and batch[0]["labels"].ndim else {}
    return {key: join.get(key, torch.stack)([row[key] for row in batch]) for key in batch[0]}


@pytest.fixture
def build(make_config, tmp_path):
    """Return a maker of trainers of the same tiny model."""

    def build(head=GPTForCausalLM, data=None, folder="run", evaluate=None, **fields):
        torch.manual_seed(0)
        config = TrainConfig(**{**FAST, "batch_size": 8, "accumulation": 2, **fields})
        return GPTTrainer(
            model=head(make_config("modern", num_hidden_layers=1)),
            args=training_arguments(config, tmp_path / folder),
            train_dataset=data or rows(head),
            eval_dataset=evaluate,
            data_collator=collate,
            z_loss=1e-3 if head is GPTForCausalLM else 0.0,
        )

    return build


def narrow(trainer, most: int, *, since: int = 0, late: bool = False, error: Exception | None = None) -> list[int]:
    """Let a trainer's model hold so many rows a pass, from a step on; return the list of rows that passed.

    Args:
        trainer: The trainer.
        most: Rows that fit.
        since: Steps before that, in which all fit.
        late: Run out in the backward pass, when some gradients are there, and in a step's second batch at first.
        error: What to raise.
    """
    passed: list[int] = []
    first = next(iter(trainer.model.parameters()))

    def refuse():
        raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def enter(module, args, kwargs):
        if not module.training:
            return
        count = len(kwargs["input_ids"])
        full = count > most and trainer.state.global_step >= since
        if full and not late:
            refuse()
        if full and len(passed) % 2:
            refuses.append(True)
        passed.append(count)

    def leave(_):
        if refuses:
            refuses.clear()
            refuse()

    refuses: list[bool] = []
    first.register_hook(leave)
    trainer.model.register_forward_pre_hook(enter, with_kwargs=True)
    return passed


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize(
    ("head", "data", "late"),
    [
        (GPTForCausalLM, None, False),
        (GPTForSequenceClassification, packed, True),
        pytest.param(GPTForCausalLM, None, True, marks=pytest.mark.long),
        pytest.param(GPTForSequenceClassification, None, False, marks=pytest.mark.long),
        pytest.param(GPTForSequenceClassification, None, True, marks=pytest.mark.long),
        pytest.param(GPTForSequenceClassification, packed, False, marks=pytest.mark.long),
        pytest.param(GPTForQuestionAnswering, None, False, marks=pytest.mark.long),
        pytest.param(GPTForQuestionAnswering, None, True, marks=pytest.mark.long),
    ],
)
def test_halves_share_the_trajectory_of_the_whole(build, head, data, late):
    whole = build(head, data and data())
    whole.train()
    halved = build(head, data and data(), "halved", halve_on_out_of_memory=True)
    passed = narrow(halved, 3, since=1, late=late)
    halved.train()
    assert losses(halved) == pytest.approx(losses(whole), abs=1e-6)
    assert (halved.halvings, halved.rows_at_once) == (2, 2)
    assert set(passed[-8:]) == {2}
    logged = [row.get("halvings") for row in halved.state.log_history if "loss" in row]
    assert logged == [None, 2, 2, 2]
    # tokens are counted once, though batches ran again
    assert halved.throughput.tokens == whole.throughput.tokens


def test_a_resumed_run_goes_on_in_halves(build, tmp_path, monkeypatch):
    monkeypatch.setattr(travel, "check_class", lambda kind: None)  # most of a tiny model's save, tested elsewhere
    options = {"halve_on_out_of_memory": True, "save_steps": 2, "log_steps": 4}
    halved = build(**options)
    narrow(halved, 4, since=1)
    halved.train()
    again = build(**options, folder="again")
    passed = narrow(again, 4)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert set(passed) == {4}
    assert (again.halvings, again.rows_at_once) == (1, 4)
    for a, b in zip(halved.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_message_says_what_to_lower(build):
    trainer = build()
    narrow(trainer, 7, since=2, error=RuntimeError(f"{CPU} 9 bytes"))
    with pytest.raises(InputError) as caught:
        trainer.train()
    said = str(caught.value)
    assert "train.batch_size = 8" in said
    assert "step 3, a batch of 8 rows x 12 tokens" in said
    assert "MB at the most" in said
    assert "train.batch_size=4 and train.accumulation=4, which is the same batch" in said
    assert "train.halve_on_out_of_memory=true" in said


def test_one_row_that_does_not_fit_is_the_end(build):
    trainer = build(halve_on_out_of_memory=True, batch_size=2)
    passed = narrow(trainer, 0)
    with pytest.raises(InputError, match="step 1, a batch of 2 rows"):
        trainer.train()
    assert passed == []
    assert trainer.rows_at_once == 1


def test_an_evaluation_says_its_own_batch_size(build, monkeypatch):
    trainer = build(evaluate=rows(GPTForCausalLM)[:8], eval_steps=1, eval_batch_size=6)

    def refuse(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer, "prediction_step", refuse)
    with pytest.raises(InputError, match=r"train\.eval_batch_size = 6: memory did not suffice for an evaluation.*to 3"):
        trainer.train()


def test_other_errors_are_none_of_its_business(build):
    trainer = build(halve_on_out_of_memory=True)
    narrow(trainer, 0, error=RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))


@pytest.mark.parametrize(
    "spoil",
    [
        {"cu_seq_lens_q": torch.arange(4)},
        {"position_ids": torch.zeros(4, 4, 5)},
        {"position_ids": torch.zeros(3, 5)},
        {"labels": torch.zeros(7)},
        {"names": ["a", "b", "c", "d"]},
    ],
)
def test_what_does_not_lie_row_by_row_is_not_cut(spoil):
    batch = {"input_ids": torch.arange(20).view(4, 5), "skip": True}
    assert [len(part["input_ids"]) for part in cut(batch, 3) or []] == [3, 1]
    assert cut(batch | spoil, 3) is None


def test_a_batch_that_cannot_be_cut_is_told(build):
    trainer = build(halve_on_out_of_memory=True)
    narrow(trainer, 4)
    trainer.model.config.router_aux_loss_coef, trainer.model.config.output_router_logits = 0.1, True
    with pytest.raises(InputError, match="cannot be halved: its load-balancing loss is one of the whole batch"):
        trainer.train()


@pytest.mark.parametrize(
    ("size", "accumulation", "said"),
    [
        (8, 3, "train.batch_size=4 and train.accumulation=6"),
        (9, 1, "train.batch_size=3 and train.accumulation=3"),
        (7, 1, "train.batch_size=1 and train.accumulation=7"),
        (1, 4, "shorten the rows"),
    ],
)
def test_the_remedy_keeps_the_batch(size, accumulation, said):
    assert said in _what_to_lower(size, accumulation, halves=False)


def test_processes_together_are_refused(build, monkeypatch):
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "num_processes", property(lambda self: 2))
    with pytest.raises(InputError, match="leave the others waiting"):
        build(halve_on_out_of_memory=True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_memory_that_the_system_refuses(build, tmp_path):
    """A real limit: the address space of a forked child has room for half of the batch's logits."""
    wide = 512 * 1024  # 8 rows ask for 2 GiB, 4 for one: both far from the limit, whatever is freed meanwhile

    def child() -> int:
        trainer = build(halve_on_out_of_memory=True, max_steps=2)
        forward, seen = trainer.model.forward, []

        def hungry(input_ids=None, **kwargs):
            seen.append(len(input_ids))
            held = torch.empty(len(input_ids), wide, 128)  # 256 MiB a row, never touched
            return forward(input_ids=input_ids, **kwargs) if len(held) else None

        trainer.model.forward = hungry
        gc.collect()  # what earlier tests left would be room, and so would a heap that recipes keep
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + 1536 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        trainer.train()
        return (
            0
            if trainer.halvings == 1 and trainer.rows_at_once == 4 and seen[0] == 8 and len(losses(trainer)) == 2
            else 3
        )

    process = os.fork()
    if process == 0:
        code = 1
        try:
            code = child()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
