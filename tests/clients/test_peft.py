from __future__ import annotations

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.utils import constants

from gpt_finetune import GPTForCausalLM, GPTForSequenceClassification

pytestmark = pytest.mark.client("peft")

WEIGHTS = {  # methods whose result can be merged
    "LoRA": lambda: LoraConfig(task_type="CAUSAL_LM"),
    "DoRA": lambda: LoraConfig(task_type="CAUSAL_LM", use_dora=True),
    "rsLoRA": lambda: LoraConfig(task_type="CAUSAL_LM", use_rslora=True),
    "IA3": lambda: IA3Config(task_type="CAUSAL_LM"),
}
PROMPTS = {
    "prompt tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}
METHODS = {**WEIGHTS, **PROMPTS}
IDS = torch.arange(2, 26).view(2, 12)
FULL = torch.ones_like(IDS)


def train(model, steps=8):
    """Fit one batch; the loss falls, and nothing but what PEFT left trainable moves."""
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, attention_mask=FULL, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1e-3
    for name, parameter in model.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    return model.eval()


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS, attention_mask=FULL).logits


@pytest.mark.parametrize("name", ["gpt2", "llama", "modern", "gpt-oss"])
@pytest.mark.parametrize("method", METHODS)
def test_adapters_without_any_target(save, method, name):
    """LoRA, DoRA, rsLoRA, IA3, prompt and prefix tuning: train, generate, save, reload by AutoPeftModel

    No `target_modules` after `import gpt_finetune`; without it, name them, or `"all-linear"`.
    """
    folder = save(name)
    model = train(get_peft_model(GPTForCausalLM.from_pretrained(folder), METHODS[method]()))
    model.save_pretrained(folder / "adapter")
    assert PeftConfig.from_pretrained(folder / "adapter").base_model_name_or_path == str(folder)
    reloaded = AutoPeftModelForCausalLM.from_pretrained(folder / "adapter").eval()
    assert torch.equal(logits(reloaded), logits(model))
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    found = reloaded.generate(input_ids=IDS, attention_mask=FULL, **settings)
    with torch.no_grad():  # as greedy without a cache
        recomputed = model(input_ids=found[:, :-1], attention_mask=torch.ones_like(found[:, :-1])).logits
    assert torch.equal(found[:, 12:], recomputed[:, -6:].argmax(-1))


@pytest.mark.parametrize("name", ["gpt2", "llama", "modern", "gpt-oss"])
@pytest.mark.parametrize("method", WEIGHTS)
def test_merging(save, method, name, tmp_path):
    """LoRA, DoRA, rsLoRA, IA3: merge, save, load without PEFT: same logits (1e-5)"""
    model = train(get_peft_model(GPTForCausalLM.from_pretrained(save(name)), METHODS[method]()))
    expected = logits(model)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = GPTForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(plain), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])  # tied and untied embeddings
@pytest.mark.parametrize("rows", ["new rows", "whole table"])
def test_new_tokens(save, tokenizer, name, rows, tmp_path):
    """Add tokens, train with LoRA, save, reload, merge: same logits

    `trainable_token_indices`; or `modules_to_save=["embed_tokens"]`, and `ensure_weight_tying=True` with a tied head.
    """
    new = [len(tokenizer), len(tokenizer) + 1]

    def base():
        model = GPTForCausalLM.from_pretrained(folder)
        torch.manual_seed(1)
        model.resize_token_embeddings(len(tokenizer) + 2)
        return model

    folder = save(name)
    tied = {"ensure_weight_tying": True} if base().config.tie_word_embeddings else {}
    taught = {"trainable_token_indices": new} if rows == "new rows" else {"modules_to_save": ["embed_tokens"], **tied}
    model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", **taught))
    before = logits(model)
    ids = IDS.clone()
    ids[:, -2:] = torch.tensor(new)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=ids).logits
    assert not torch.equal(logits(model), before)
    reloaded = PeftModel.from_pretrained(base(), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(input_ids=ids).logits, expected, atol=0, rtol=0)
        merged = reloaded.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        plain = GPTForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(plain(input_ids=ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_experts(save):
    """LoRA on a layer's experts: train, merge: same logits (1e-5)

    `target_parameters=["experts.gate_up_proj", "experts.down_proj"]`: experts are stacked tensors, not layers.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "v_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    )
    model = train(get_peft_model(GPTForCausalLM.from_pretrained(save("gpt-oss")), config))
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)


def test_a_head_is_saved_with_the_adapter(save, tmp_path):
    """Sequence classification with LoRA: the new head travels in the adapter

    `task_type="SEQ_CLS"`, and the same `num_labels` when the base model is loaded again.
    """
    folder = save("llama")

    def base(seed):
        torch.manual_seed(seed)
        return GPTForSequenceClassification.from_pretrained(folder, num_labels=3)

    model = get_peft_model(base(1), LoraConfig(task_type="SEQ_CLS"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=IDS, attention_mask=FULL, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(base(2), tmp_path / "adapter").eval()
    assert torch.equal(logits(reloaded), logits(model))


def test_code_that_travels(save, without_us):
    """LoRA on a folder's own code, saved and reloaded by AutoPeftModel, where gpt_finetune is not installed

    `trust_remote_code=True`, and `target_modules` by name or `"all-linear"`.
    """
    script = """
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
folder, ids = sys.argv[1], torch.arange(2, 26).view(2, 12)
base = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False))
model.eval().save_pretrained(folder + "/adapter")
reloaded = AutoPeftModelForCausalLM.from_pretrained(folder + "/adapter", trust_remote_code=True).eval()
with torch.no_grad():
    assert torch.equal(reloaded(ids).logits, model(ids).logits)
"""
    without_us(script, save("modern"))


def test_every_method_that_knows_llama_knows_us():
    """Every method with default targets for Llama has them for our models"""
    tables = [getattr(constants, name) for name in dir(constants) if name.endswith("_MODULES_MAPPING")]
    knowing = [table for table in tables if "llama" in table]
    assert len(knowing) > 30
    assert all(table["gpt_finetune"] == table["llama"] for table in knowing)
