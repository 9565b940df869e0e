"""Weights of 8 and 4 bits: what they cost in precision, that they come back from disk, and what is refused."""

import pytest
import torch
from torch import nn

from gpt_finetune.errors import InputError

NAMES = ("int8", "int8_split", "int8_packed", "int4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return a folder of a small model trained for a moment, so that its weights are no noise, and its text."""
    from gpt_finetune import GPTForCausalLM, preset

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 64}
    config = preset("tiny", vocab_size=257, tie_word_embeddings=True, pad_token_id=None, **sizes)
    model = GPTForCausalLM(config)
    # a language with something to learn: each token follows from the one before it, but for some noise
    follows, rows = torch.randperm(257), torch.randint(257, (64, 32))
    for place in range(1, 32):
        rows[:, place] = torch.where(torch.rand(64) < 0.9, follows[rows[:, place - 1]], rows[:, place])
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        batch = rows[step % 4 * 16 :][:16]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("quantization") / "model"
    model.save_pretrained(folder)
    return folder, rows


def load(folder, name=None):
    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.quantization import quantization_config
    from gpt_finetune.quantization.config import WeightOnlyConfig

    # the first two have no name in recipes: what machines without VNNI, and without FBGEMM, get
    backend = {"int8_split": "split", "int8_packed": "packed"}.get(name)
    made = WeightOnlyConfig(bits=8, backend=backend) if backend else quantization_config(name)
    more = {"quantization_config": made} if name else {}
    return GPTForCausalLM.from_pretrained(folder, **more).eval()


def skip_without_bfloat16():
    """Skip the test where this processor has no products of bfloat16 weights in oneDNN's layout."""
    from gpt_finetune.quantization.kernels import PackedSixteen

    if missing := PackedSixteen.missing():
        pytest.skip(f"torch {missing}")


@torch.no_grad()
def perplexity(model, rows):
    return model(rows, labels=rows).loss.exp().item()


@pytest.mark.parametrize(
    ("name", "limit"), [("int8", 1.01), ("int8_split", 1.01), ("int8_packed", 1.01), ("int4", 1.04)]
)
def test_perplexity_hardly_changes(folders, name, limit):
    folder, rows = folders
    whole = perplexity(load(folder), rows)
    assert whole < 60, "the model has learned something of 257 tokens"
    assert 1 / limit < perplexity(load(folder, name), rows) / whole < limit


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_quantised_the_tied_head_too(folders, name):
    from gpt_finetune.quantization.layers import QuantizedEmbedding, QuantizedLinear
    from gpt_finetune.quantization.quantizer import summarize

    whole, model = load(folders[0]), load(folders[0], name)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert isinstance(model.get_input_embeddings(), QuantizedEmbedding)
    assert model.lm_head.weight is None  # held once, in the kernel's layout
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    counted = summarize(model)
    head = 257 * 128
    assert counted.quantized + counted.kept == head + sum(p.numel() for p in whole.parameters() if p.ndim > 1)
    assert counted.kept == 64 * 128  # learned positions
    assert counted.nbytes < 0.45 * sum(p.nbytes for p in whole.parameters())
    biases = {name: value for name, value in whole.named_parameters() if name.endswith("bias")}
    kept = dict(model.named_parameters())
    assert biases
    assert all(torch.equal(kept[name], value) for name, value in biases.items())


@pytest.mark.parametrize("name", NAMES)
def test_a_quantised_model_comes_back_from_disk_bit_for_bit(folders, name, tmp_path):
    from transformers import AutoModelForCausalLM

    folder, rows = folders
    model = load(folder, name)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(again(rows[:2]).logits, model(rows[:2]).logits)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(again.generate(rows[:1, :8], **asked), model.generate(rows[:1, :8], **asked))
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size < 0.5 * (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("outputs", [50, 257])
@pytest.mark.parametrize("key", [(8, "packed"), (8, "dot"), (8, "split"), (4, "packed"), (16, "packed")], ids=str)
def test_products_are_those_of_the_rounded_matrix(key, outputs, group_size):
    from gpt_finetune.quantization.kernels import KERNELS

    if key[0] == 16:
        skip_without_bfloat16()
    form = KERNELS[key]
    weight = torch.randn(outputs, 128) + 0.5
    stored, scale = form.quantize(weight, group_size)
    kernel = form(stored, scale, group_size)
    assert torch.equal(kernel.stored(), stored)
    torch.compiler.reset()  # each kernel compiles this line anew
    compiled = torch.compile(lambda x: kernel(x).sum(), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(torch.ones(3, 128)), kernel(torch.ones(3, 128)).sum())
    for rows in (1, 7, 40, 130):
        x = torch.randn(rows, 128)
        exact = x @ weight.T
        error = (kernel(x) - exact).norm() / exact.norm()
        assert error < {16: 0.005, 8: 0.03, 4: 0.12}[key[0]]
        bias = torch.randn(outputs)
        assert torch.allclose(kernel(x, bias), kernel(x) + bias, rtol=0.01, atol=0.05 if key[0] == 16 else 1e-5)
    assert kernel(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["dot", "split"])
def test_activations_in_parts_lose_next_to_nothing_and_no_row_sees_another(backend):
    from gpt_finetune.quantization.kernels import _AT_ONCE, KERNELS

    torch.manual_seed(0)
    form = KERNELS[8, backend]
    stored, scale = form.quantize(torch.randn(48, 64), 32)
    kernel = form(stored, scale, 32)
    x = torch.randn(_AT_ONCE + 3, 64)
    x[:, 5] *= 100  # as activations of trained models have them
    x[3] = 0
    x[7] *= 1e4
    exact = x.double() @ (stored.double() * scale.double()[:, None]).T
    found = kernel(x)
    assert ((found - exact).norm(dim=1) <= 3e-5 * exact.norm(dim=1)).all()
    for row in (0, 3, 7, _AT_ONCE + 1):
        assert torch.equal(kernel(x[row : row + 1])[0], found[row])
    # two parts of activations in bfloat16 lose no more than rounding the result does, or little more beside an outlier
    exact = x.bfloat16().double() @ (stored.double() * scale.double()[:, None]).T
    found = kernel(x.bfloat16())
    assert ((found - exact).norm(dim=1) <= 5e-3 * exact.norm(dim=1)).all()
    found = kernel(x)
    x[2, 2] = float("nan")
    assert kernel(x)[2].isnan().all()
    assert torch.equal(kernel(x)[0], found[0])


def test_the_kernel_is_the_fastest_that_there_is(monkeypatch):
    from gpt_finetune.quantization.kernels import DotEight, PackedEight, PackedFour, SplitEight, choose

    assert choose(8, "auto") is PackedEight
    monkeypatch.setattr(PackedEight, "missing", staticmethod(lambda: "has no _weight_int8pack_mm"))
    monkeypatch.setattr(DotEight, "missing", staticmethod(lambda: ""))
    assert choose(8, "auto") is DotEight
    monkeypatch.setattr(DotEight, "missing", staticmethod(lambda: "finds no VNNI instructions"))
    assert choose(8, "auto") is SplitEight
    assert choose(8, "packed") is PackedEight
    assert choose(4, "split") is PackedFour
    monkeypatch.setattr(SplitEight, "missing", staticmethod(lambda: "was built without FBGEMM"))
    assert choose(8, "auto") is SplitEight  # says itself what is missing
    assert choose(8, "split") is SplitEight


def test_groups_of_equal_weights_keep_their_value():
    from gpt_finetune.quantization.kernels import PackedFour

    weight = torch.full((4, 32), 0.75)
    kernel = PackedFour(*PackedFour.quantize(weight, 32), 32)
    assert torch.allclose(kernel(torch.eye(32)), weight.T, rtol=1e-2)


def test_weights_of_transformers_own_gpt2_are_found(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt_finetune.quantization import quantization_config
    from gpt_finetune.quantization.quantizer import summarize

    theirs = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=64, vocab_size=101, n_positions=32)).eval()
    theirs.save_pretrained(tmp_path)
    model = GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=quantization_config("int8"))
    ids = torch.randint(101, (2, 9))
    with torch.no_grad():
        exact, found = theirs(ids).logits, model(ids).logits
    assert (exact - found).norm() / exact.norm() < 0.03
    assert summarize(model).kept == 32 * 64


def test_small_and_odd_shapes_stay():
    from gpt_finetune.quantization.config import WeightOnlyConfig
    from gpt_finetune.quantization.layers import replacement

    config = WeightOnlyConfig(bits=4, group_size=64, skip_modules=["lm_head"])
    assert replacement("a", nn.Linear(64, 8), config) is None
    assert replacement("a", nn.Linear(100, 1000), config) is None
    assert replacement("model.lm_head", nn.Linear(128, 1000), config) is None
    assert replacement("a", nn.Linear(128, 1000), config) is not None


def test_the_head_may_have_four_bits_too(folders):
    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.quantization.config import WeightOnlyConfig
    from gpt_finetune.quantization.kernels import PackedFour, choose

    assert type(load(folders[0], "int4").lm_head.kernel) is choose(8, "auto")
    asked = {"quantization_config": WeightOnlyConfig(bits=4, head_bits=4)}
    assert type(GPTForCausalLM.from_pretrained(folders[0], **asked).lm_head.kernel) is PackedFour


def test_training_is_refused(folders, tmp_path):
    from transformers import Trainer, TrainingArguments

    folder, rows = folders
    model = load(folder, "int8")
    with pytest.raises(ValueError, match="fine-tuning on purely quantized"):
        Trainer(model, TrainingArguments(str(tmp_path), report_to=[]))
    with pytest.raises(InputError, match="cannot be trained"):
        model.train()(rows[:1], labels=rows[:1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bits": 3}, "Take 16, 8 or 4"),
        ({"bits": 4, "backend": "split"}, "no such backend"),
        ({"bits": 4, "group_size": 48}, "no such group"),
        ({"head_bits": 2}, "Take 16, 8"),
        ({"bit": 8}, "Did you mean 'bits'"),
    ],
)
def test_what_cannot_be_is_refused(fields, said):
    from gpt_finetune.quantization.config import WeightOnlyConfig

    with pytest.raises(InputError, match=said):
        WeightOnlyConfig(**fields)


def test_another_device_and_a_missing_kernel_are_refused(folders, monkeypatch):
    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.quantization import quantization_config
    from gpt_finetune.quantization.kernels import PackedFour

    with pytest.raises(InputError, match="CPU only"):
        GPTForCausalLM.from_pretrained(folders[0], quantization_config=quantization_config("int8"), device_map="cuda")
    with pytest.raises(InputError, match="Did you mean 'int8'"):
        quantization_config("in8")
    monkeypatch.setattr(PackedFour, "missing", staticmethod(lambda: "has no such kernel"))
    with pytest.raises(InputError, match="has no such kernel"):
        load(folders[0], "int4")


def test_weights_that_stand_between_boundaries_are_multiplied():
    from gpt_finetune.quantization.kernels import PackedEight

    stored, scale = PackedEight.quantize(torch.randn(257, 128), 32)
    shifted = torch.empty(257 * 128 + 1, dtype=torch.int8)[1:].view(257, 128).copy_(stored)  # as in a mapped file
    x = torch.randn(8, 128)
    assert torch.equal(PackedEight(shifted, scale, 32)(x), PackedEight(stored, scale, 32)(x))


def test_bfloat16_weights_in_another_layout_are_the_same(folders, tmp_path):
    from transformers import AutoModelForCausalLM

    from gpt_finetune import GPTForCausalLM
    from gpt_finetune.quantization import quantization_config
    from gpt_finetune.quantization.layers import QuantizedLinear

    skip_without_bfloat16()
    folder, rows = folders
    whole = GPTForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    asked = {"dtype": torch.bfloat16, "quantization_config": quantization_config("bf16")}
    model = GPTForCausalLM.from_pretrained(folder, **asked)
    assert isinstance(model.lm_head, QuantizedLinear)
    assert type(model.get_input_embeddings()) is nn.Embedding
    with torch.no_grad():
        exact, found = whole(rows).logits.float(), model(rows).logits.float()
    assert (exact - found).norm() / exact.norm() < 0.01  # sums come in another order
    kept = whole.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in model.state_dict().items() if key in kept)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(again(rows).logits.float(), found)


def test_4_bits_are_spelt_out_as_the_kernel_reads_them(monkeypatch):
    from gpt_finetune.quantization import kernels

    kernel = kernels.PackedFour(*kernels.PackedFour.quantize(torch.randn(80, 128) + 0.5, 64), 64)
    x = torch.randn(kernels._MANY_FOR_FOUR, 128)
    found = kernel(x)
    monkeypatch.setattr(kernels, "_is_in_halves", lambda: False)  # as where torch packs in another order
    exact = kernel(x)
    assert found.shape == exact.shape
    assert (found - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("name", ["int8", "int4", "bf16"])
def test_queries_keys_and_values_are_one_product_and_three_layers(folders, name):
    from gpt_finetune.quantization.joint import NAMES

    if name == "bf16":
        skip_without_bfloat16()
    model = load(folders[0], name)
    attention = model.model.layers[0].self_attn
    x = torch.randn(2, 5, 128)
    heard = []
    with torch.no_grad():
        joint = attention.project(x)
        alone = [getattr(attention, part)(x) for part in NAMES]
        handle = attention.k_proj.register_forward_hook(lambda *given: heard.append(given))
        attention.project(x)
        handle.remove()
        attention.project(x)
    assert all(
        torch.allclose(one, other, atol=0.02 if name == "bf16" else 1e-6)
        for one, other in zip(joint, alone, strict=True)
    )
    assert len(heard) == 1
