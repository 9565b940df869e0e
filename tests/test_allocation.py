"""Memory that stays with the process: asked for before torch is there, and never against the environment's word."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from gpt_finetune.allocation import CHOICES, LARGE_PAGES, keep_memory

ON_LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")


def in_a_new_process(code: str, **environment: str) -> str:
    around = {
        name: value for name, value in os.environ.items() if name not in (*CHOICES, LARGE_PAGES, "GLIBC_TUNABLES")
    }
    done = subprocess.run([sys.executable, "-c", code], env=around | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEARD = f"""
import os
from gpt_finetune.allocation import keep_memory
print(keep_memory(), os.environ.get("{LARGE_PAGES}"))
"""


@ON_LINUX
def test_the_c_library_hears_it():
    assert in_a_new_process(HEARD) == "True 1"


@ON_LINUX
@pytest.mark.parametrize("name", [*CHOICES[:-1], "GLIBC_TUNABLES"])
def test_who_has_chosen_is_left_alone(name):
    value = "glibc.malloc.trim_threshold=1000000" if name == "GLIBC_TUNABLES" else "1000000"
    assert in_a_new_process(HEARD, **{name: value}) == "False None"


@ON_LINUX
def test_large_pages_of_the_heap_go_with_it():
    assert in_a_new_process(HEARD, GLIBC_TUNABLES="glibc.malloc.hugetlb=1") == "True 1"


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
def test_each_recipe_asks_before_torch_is_there():
    code = f"""
import os, sys
from dataclasses import dataclass
from gpt_finetune.config import run

@dataclass
class Nothing:
    '''Nothing.'''

run(lambda config: print(os.environ["{LARGE_PAGES}"], "torch" in sys.modules), Nothing, [])
"""
    assert in_a_new_process(code) == "1 False"


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delenv(LARGE_PAGES, raising=False)
    assert keep_memory() is False
    assert LARGE_PAGES not in os.environ
