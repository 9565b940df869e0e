"""Pretrained models that arrive as packages: fetching, with wheels of our own; then the real ones."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import POEM, ROOT, load_recipe, put_wheel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from gpt_finetune import GPTForCausalLM, export_native
from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import PACKAGES, Package, fetch, locate
from gpt_finetune.packaged.models import gpt2_from_ranks

SMOLLM2, GEMMA, GPT2 = "smollm2-135m-instruct", "gemma3-270m", "gpt2-tokenizer"
TEXTS = [
    "The rain had stopped, and the two of them walked down to the harbour without a word about 1984 or 3.14159.",
    POEM,
]


def copy(file: Path, folder: Path) -> None:
    (folder / "copy.txt").write_bytes(file.read_bytes())


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Callable[..., None]:
    """Return a maker of a package `tiny-wheel`, the only one in the world; the cache is empty."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("GPT_FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def make(content: bytes, build: Callable[[Path, Path], None] = copy, needs: str | None = None) -> None:
        put_wheel(folder, "tiny_wheel", {"tiny_wheel/assets/file.bin": content})
        package = Package("tiny-wheel", "1.0", "tiny_wheel/assets/file.bin", "nothing", "MIT", build, needs=needs)
        monkeypatch.setitem(PACKAGES, "tiny", package)

    return make


def entries(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_fetched_once(wheels, tmp_path, monkeypatch):
    wheels(b"content")
    folder = fetch("tiny")
    assert sorted(path.name for path in folder.iterdir()) == ["copy.txt", "meta.json"]
    assert (folder / "copy.txt").read_bytes() == b"content"
    assert entries(tmp_path) == [folder.name]
    monkeypatch.setattr(subprocess, "run", None)  # pip is not asked again
    assert locate("tiny") == str(folder)


def test_anything_else_is_left_alone(wheels, tmp_path, monkeypatch):
    wheels(b"content")
    for path in ("openai-community/gpt2", "runs/quickstart", str(tmp_path)):
        assert locate(path) == path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert locate("tiny") == "tiny"
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match=r"model = 'tyny': no package brings it\. Did you mean 'tiny'\?"):
        fetch("tyny")


def test_an_interrupted_build_leaves_nothing(wheels, tmp_path):
    def interrupted(file: Path, folder: Path) -> None:
        copy(file, folder)
        raise KeyboardInterrupt

    wheels(b"content", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny")
    assert entries(tmp_path) == []
    wheels(b"content")
    assert (fetch("tiny") / "copy.txt").read_bytes() == b"content"


def test_what_pip_cannot_find_is_one_error(wheels, tmp_path, capfd):
    wheels(b"content")
    (tmp_path / "wheels" / "tiny_wheel-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError) as caught:
        fetch("tiny")
    assert str(caught.value) == (
        "model = 'tiny': pip cannot download tiny-wheel==1.0 (No matching distribution found for tiny-wheel==1.0). "
        "Check the network and pip's settings, or point $GPT_FINETUNE_CACHE at a cache that has it."
    )
    assert capfd.readouterr().out == ""
    assert entries(tmp_path) == []


def test_a_missing_reader_is_named_before_anything_is_downloaded(wheels, monkeypatch):
    wheels(b"content", needs="no_such_reader")
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(InputError, match=r"model = 'tiny': .*no_such_reader.*Run `pip install no_such_reader`"):
        fetch("tiny")


def test_ranks_become_merges(wheels):
    """Three letters and what BPE makes of them; the merges in their order, each of two earlier tokens."""
    tokens = [bytes([byte]) for byte in b"abc"] + [b"ab", b"bc", b"abc", b"abab", b"abcabab"]
    content = b"\n".join(base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    wheels(content, gpt2_from_ranks)
    folder = fetch("tiny")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges == ["#version: 0.2", "a b", "b c", "ab c", "ab ab", "abc abab"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abcab")["input_ids"] == [5, 3]
    assert tokenizer.eos_token_id == len(tokens) == len(tokenizer) - 1


PROCESS = """
import sys, time
from pathlib import Path
from gpt_finetune.packaged import PACKAGES, Package, fetch

def build(file, folder):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    time.sleep(float(sys.argv[2]))
    (folder / "copy.txt").write_bytes(file.read_bytes())

PACKAGES["tiny"] = Package("tiny-wheel", "1.0", "tiny_wheel/assets/file.bin", "nothing", "MIT", build)
print(fetch("tiny"))
"""


@pytest.mark.slow
def test_two_processes_build_once_and_a_killed_one_is_no_obstacle(wheels, tmp_path):
    wheels(b"content")
    log = tmp_path / "log"

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROCESS, str(log), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})

    killed = start(600)
    while not log.exists():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [start(1), start(1)]
    folders = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert log.read_text() == "built\n" * 2  # the killed one's, and one of these
    (folder,) = folders
    assert Path(folder.strip(), "copy.txt").read_bytes() == b"content"


# ------------------------------------------------------------------------------------------------------- the real ones


@pytest.fixture(scope="module")
def smollm2() -> str:
    return locate(SMOLLM2)


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return AutoTokenizer.from_pretrained(smollm2)


def logits(model, tokenizer) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(tokenizer(text, return_tensors="pt").input_ids).logits for text in TEXTS]


@pytest.mark.slow
def test_smollm2_has_the_logits_of_its_own_class(smollm2, tokenizer):
    """Not one bit differs: the same operations in the same order. Rounding alone, against float64, would be 7e-5."""

    def by_attention(model) -> list[torch.Tensor]:
        found = []
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            found += logits(model, tokenizer)
        return found

    reference = AutoModelForCausalLM.from_pretrained(smollm2)
    assert type(reference) is LlamaForCausalLM
    assert (reference.dtype, reference.generation_config.eos_token_id) == (torch.float32, tokenizer.eos_token_id)
    expected = by_attention(reference)
    del reference
    model, info = GPTForCausalLM.from_pretrained(smollm2, output_loading_info=True)
    assert not any(info.values()), info
    assert model.num_parameters() == 134_515_008
    for ours, theirs in zip(by_attention(model), expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.long
def test_smollm2_opens_from_its_gguf_and_goes_back_bit_for_bit(smollm2, tokenizer, tmp_path):
    file = Path(PACKAGES[SMOLLM2].file).name
    model = GPTForCausalLM.from_pretrained(smollm2, gguf_file=file)
    for ours, theirs in zip(
        logits(model, tokenizer), logits(AutoModelForCausalLM.from_pretrained(smollm2), tokenizer), strict=True
    ):
        assert torch.equal(ours, theirs)
    back = export_native(model, tmp_path / "back", tokenizer=tokenizer)
    del model
    with (
        safe_open(back / "model.safetensors", "pt") as written,
        safe_open(Path(smollm2, "model.safetensors"), "pt") as original,
    ):
        assert written.keys() == original.keys()
        for key in original.keys():  # noqa: SIM118  # it is no dict
            assert torch.equal(written.get_tensor(key), original.get_tensor(key)), key
    (back / "model.safetensors").unlink()  # half a gigabyte


@pytest.mark.long
def test_gemma_has_the_logits_of_its_own_class(tmp_path):
    """To the last bit, beyond its window of 512 tokens too; exported, it is what it was."""
    folder = locate(GEMMA)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(" ".join(TEXTS * 10), return_tensors="pt").input_ids[:, :600]
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    model, info = GPTForCausalLM.from_pretrained(folder, output_loading_info=True, dtype="float32")
    assert not any(info.values()), info
    assert model.num_parameters() == 268_098_176
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    prompt = tokenizer("English: good morning. French:", return_tensors="pt")
    said = model.generate(**prompt, do_sample=False, max_new_tokens=5)
    assert torch.equal(said, reference.generate(**prompt, do_sample=False, max_new_tokens=5))
    back = AutoModelForCausalLM.from_pretrained(export_native(model, tmp_path / "back"))
    assert type(back) is type(reference)
    for key, tensor in reference.state_dict().items():
        assert torch.equal(back.state_dict()[key], tensor), key


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(smollm2, tokenizer):
    model = GPTForCausalLM.from_pretrained(smollm2)
    helpful = {"role": "system", "content": "You are a helpful assistant."}
    asked = {"role": "user", "content": "What is the capital of France?"}
    begun = {"role": "user", "content": "The capital of France is"}
    for messages in ([asked], [helpful, asked], [helpful, begun]):
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=20)[0, inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_smollm2_tokenizer(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("a 123 b")["input_ids"]) == ["a", "Ġ", "1", "2", "3", "Ġb"]
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_recipe_answers_through_the_chat_template(smollm2, make_model, make_tokenizer, tmp_path, capsys):
    recipe = load_recipe("generate")
    words = ["--model", SMOLLM2, "--temperature", "0", "--max_new_tokens", "20", "--chat"]
    question = "What is the capital of France?"
    assert recipe.main(parse(recipe.GenerateConfig, [*words, "--prompt", question])) == [
        "The capital of France is Paris."
    ]
    assert capsys.readouterr().out.startswith(f"{question}\nThe capital of France is Paris.")
    (tmp_path / "prompts.txt").write_text(f"{question}\nSay hello.\n", encoding="utf-8")
    answers = recipe.main(parse(recipe.GenerateConfig, [*words, f"prompt_file={tmp_path / 'prompts.txt'}"]))
    assert answers[0] == "The capital of France is Paris."
    make_model().save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match="chat = True: this model has no chat template"):
        recipe.main(parse(recipe.GenerateConfig, [*words, f"model={tmp_path / 'plain'}"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello world", [15496, 995]),
        ("<|endoftext|>", [50256]),
        ("The quick brown fox jumps over the lazy dog", [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290]),
        (POEM, None),
        ("def f(x):\n    return x  # 42\r\n\t🙂", None),
    ],
)
def test_gpt2_tokenizer(text, ids):
    tokenizer = AutoTokenizer.from_pretrained(locate(GPT2))
    assert len(tokenizer) == 50257
    encoded = tokenizer(text)["input_ids"]
    assert ids is None or encoded == ids
    assert tokenizer.decode(encoded) == text
