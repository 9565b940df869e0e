"""Memory that stays with the process: asked for before torch is there, and never against the environment's word."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import is_mapped

from gpt_finetune.allocation import CHOICES, release_file

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")


def in_a_new_process(code: str, **environment: str) -> str:
    around = {name: value for name, value in os.environ.items() if name not in (*CHOICES, "GLIBC_TUNABLES")}
    done = subprocess.run([sys.executable, "-c", code], env=around | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEARD = """
from gpt_finetune.allocation import keep_memory, return_holes
held = [bytes(2**16) for _ in range(200)]
last = bytes(2**16)
del held
print(keep_memory(), return_holes())
"""


@ON_LINUX
def test_the_c_library_hears_it():
    assert in_a_new_process(HEARD) == "True True"


@ON_LINUX
@pytest.mark.parametrize("name", [*(name for name in CHOICES if name != "LD_PRELOAD"), "GLIBC_TUNABLES"])
def test_who_has_chosen_is_left_alone(name):
    value = "glibc.malloc.trim_threshold=1000000" if name == "GLIBC_TUNABLES" else "1000000"
    assert in_a_new_process(HEARD, **{name: value}) == "False False"


@ON_LINUX
def test_large_pages_of_the_heap_go_with_it():
    assert in_a_new_process(HEARD, GLIBC_TUNABLES="glibc.malloc.hugetlb=1") == "True True"


@ON_LINUX
def test_freed_buffers_come_back_without_page_faults():
    """Two hundred buffers of 4 MB, one after the other: cleared page by page each time, or had again as they were."""
    code = """
import resource, sys
from gpt_finetune.allocation import keep_memory
if sys.argv[1:] != ["plain"]: keep_memory()
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 4 * 2**20
for turn in range(200):
    place = libc.malloc(size + turn)
    ctypes.memset(place, 1, size)
    if turn == 10: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    libc.free(place)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    assert int(in_a_new_process(code)) < 100


@ON_LINUX
def test_the_heap_asks_for_large_pages():
    code = """
import os
from gpt_finetune.allocation import keep_memory
assert keep_memory()
heap, told = False, []
for line in open("/proc/self/smaps"):
    heap = line.rstrip().endswith("[heap]") or heap and ":" in line.split()[0]
    if heap and line.startswith("VmFlags"):
        told.append("hg" in line.split())
print(any(told) if told and os.path.exists("/sys/kernel/mm/transparent_hugepage") else "unknown")
"""
    assert in_a_new_process(code) in ("True", "unknown")  # not every kernel tells


@ON_LINUX
def test_memory_does_not_grow_with_the_steps():
    """Buffers of a step, some as long as the batch's labels are many: what torch's own large pages leave in holes."""
    code = """
from gpt_finetune.allocation import keep_memory
assert keep_memory()
import random, resource, torch
random.seed(0)
peaks = []
for step in range(30):
    rows, held = random.randint(900, 2048), []
    for layer in range(24):
        wide = torch.ones(2048, 576)
        narrow = torch.ones(2048, 576, dtype=torch.bfloat16)
        held += [wide, torch.ones(rows, 576), torch.ones(2048, 576)]
        del wide, narrow
    while held:
        gradients = torch.ones(2048, 576), torch.ones(rows, 576)
        held.pop()
        del gradients
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(peaks[-1] / peaks[4])
"""
    assert float(in_a_new_process(code)) < 1.05


@ON_LINUX
def test_a_process_that_runs_several_recipes_can_still_fork():
    code = """
import os
from gpt_finetune.allocation import keep_memory
held = []
for _ in range(6):
    assert keep_memory()
    held += [bytes(2**20) for _ in range(20)]
process = os.fork()
if process == 0: os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""
    assert in_a_new_process(code) == "7"


@ON_LINUX
def test_where_promises_are_kept_none_is_asked_for():
    code = """
from gpt_finetune import allocation
allocation._promises_are_kept = lambda: True
allocation._lay_out = lambda *given: print("asked")
print(allocation.keep_memory())
"""
    assert in_a_new_process(code) == "True"


@ON_LINUX
def test_the_heap_is_laid_out_again_after_holes_went_back():
    code = """
from gpt_finetune import allocation
def end():
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if line.rstrip().endswith("[heap]")]
    return int(spans[-1][1], 16)
assert allocation.keep_memory()
before = end()
assert before >= allocation._end - 2**20
assert allocation.return_holes()
print(abs(end() - before) < 2**22)
"""
    assert in_a_new_process(code) == "True"


@ON_LINUX
def test_holes_go_back():
    """Below the last buffer, which stays, lie 400 MB of freed ones."""
    code = """
from gpt_finetune.allocation import keep_memory, return_holes
assert keep_memory()
import torch
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 // 2**20
held = [torch.ones(2**20) for _ in range(100)]
last = torch.ones(2**20)
del held
before = resident()
assert return_holes()
print(before - resident(), int(last.sum()))
"""
    returned, left = in_a_new_process(code).split()
    assert (int(returned) > 350, int(left)) == (True, 2**20)


def test_holes_go_back_between_steps_but_seldom(monkeypatch):
    from gpt_finetune.training import memory

    times = iter([0.0, 10.0, 31.0, 40.0, 62.0])
    returned = []
    monkeypatch.setattr(memory.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(memory, "return_holes", lambda: returned.append(1))
    callback, counts = memory.HoleReturner(every=30), []
    for _ in range(4):
        callback.on_step_end(None, None, None)
        counts.append(len(returned))
    assert counts == [0, 1, 1, 2]


@ON_LINUX
def test_a_heap_is_laid_out_within_a_limit_on_addresses():
    code = """
import resource
from gpt_finetune.allocation import keep_memory
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
print(keep_memory(), len(bytes(2**28)))
"""
    assert in_a_new_process(code) == f"True {2**28}"


@ON_LINUX
def test_each_recipe_asks_before_torch_is_there():
    code = """
import sys
from dataclasses import dataclass
from gpt_finetune import config

@dataclass
class Nothing:
    '''Nothing.'''

config.keep_memory = lambda: print("torch" in sys.modules)
config.run(lambda config: None, Nothing, [])
"""
    assert in_a_new_process(code) == "False"


def test_elsewhere_nothing_is_done():
    code = """
import sys
from gpt_finetune.allocation import keep_memory, return_holes
sys.platform = "win32"
print(keep_memory(), return_holes())
"""
    assert in_a_new_process(code) == "False False"


@ON_LINUX
@pytest.mark.parametrize("vocab_size", [40, 2000], ids=["most were turned", "a third was"])
def test_a_file_whose_weights_were_turned_is_let_go(tmp_path, vocab_size):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt_finetune import GPTForCausalLM

    theirs = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=16, vocab_size=vocab_size)).eval()
    theirs.save_pretrained(tmp_path)
    ours = GPTForCausalLM.from_pretrained(tmp_path).eval()
    assert not is_mapped(tmp_path)
    ids = torch.arange(16)[None]
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)
    assert ours.lm_head.weight is ours.model.embed_tokens.weight


@ON_LINUX
def test_weights_that_were_read_as_they_stand_are_not_copied(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    model = type(make_model()).from_pretrained(tmp_path)
    assert release_file(model) == 0
    assert is_mapped(tmp_path)


@ON_LINUX
def test_a_file_whose_weights_were_rounded_is_let_go(make_model, tmp_path):
    import torch

    make_model().save_pretrained(tmp_path)
    model = type(make_model()).from_pretrained(tmp_path)
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.ndim == 1}
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.bfloat16()
    assert release_file(model) == sum(parameter.nbytes for parameter in before.values()) > 0
    assert not is_mapped(tmp_path)
    for name, parameter in before.items():
        assert torch.equal(model.get_parameter(name), parameter)


def test_weights_elsewhere_are_left_alone(make_model):
    model = make_model().to("meta")
    assert release_file(model) == 0


def in_a_program(folder: Path, *words: str, before: str = "", given: str = "None", **environment: str) -> list[str]:
    """Run a program that says what it was started with, before it is configured and after, one line each."""
    script = folder / "program.py"
    script.write_text(
        f"""
import os, sys
from dataclasses import dataclass
from gpt_finetune.config import run
{before}
def tell():
    print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), "torch" in sys.modules, sys.flags.dont_write_bytecode)

@dataclass
class Config:
    '''Nothing.

    Args:
        text: Some.
    '''
    text: str = "none"

def main(config):
    print(config.text)
    tell()

tell()
run(main, Config, {given})
""",
        encoding="utf-8",
    )
    around = {name: value for name, value in os.environ.items() if name not in (*CHOICES, "GLIBC_TUNABLES")}
    around |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-B", str(script), *words]
    done = subprocess.run(command, env=around | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


WITHOUT_CACHES = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


@ON_LINUX
def test_a_recipe_starts_anew_once_as_the_same_process_with_the_same_words(tmp_path):
    first, second, text, working = in_a_program(tmp_path, "text=two words")
    number = first.split()[0]
    assert first == f"{number} None False 1"
    assert text == "two words"
    assert second == working == f"{number} {WITHOUT_CACHES} False 1"


@ON_LINUX
def test_what_else_is_set_stays(tmp_path):
    *_, working = in_a_program(tmp_path, GLIBC_TUNABLES="glibc.malloc.hugetlb=1")
    assert working.split()[1] == f"glibc.malloc.hugetlb=1:{WITHOUT_CACHES}"


@ON_LINUX
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.tcache_count=3"}, id="caches chosen"),
        pytest.param({"MALLOC_TRIM_THRESHOLD_": "1000000"}, id="threshold chosen"),
        pytest.param({"before": "import torch"}, id="begun"),
        pytest.param({"before": "sys.settrace(lambda *_: None)"}, id="debugged"),
        pytest.param({"given": "['text=a']"}, id="called"),
        pytest.param({"before": "from gpt_finetune import allocation; allocation._is_glibc = bool"}, id="no glibc"),
    ],
)
def test_who_has_chosen_or_begun_is_not_started_anew(tmp_path, given):
    told, _, working = in_a_program(tmp_path, **given)
    assert told == working


@ON_LINUX
def test_buffers_of_one_size_take_each_others_places():
    """Low-rank terms beside each layer: buffers of one size, most of which go while small objects come and stay."""
    code = """
from gpt_finetune.allocation import keep_memory
keep_memory()
import torch
torch.set_num_threads(1)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
layers, tokens, width = 24, 512, 640
weights = [torch.randn(width, width) for _ in range(layers)]
down = [torch.randn(width, 8, requires_grad=True) for _ in range(layers)]
up = [torch.zeros(8, width, requires_grad=True) for _ in range(layers)]
before, peak = resident(), 0
for step in range(2):
    hidden = torch.ones(tokens, width)
    for weight, low, high in zip(weights, down, up):
        hidden = torch.relu(hidden @ weight + (hidden @ low) @ high * 2.0)
        peak = max(peak, resident())
    hidden.sum().backward()
print((peak - before) / (layers * tokens * width * 4))
"""
    plain, joined = float(in_a_new_process(code)), float(in_a_new_process(code, GLIBC_TUNABLES=WITHOUT_CACHES))
    assert joined < 0.75 * plain, (plain, joined)
