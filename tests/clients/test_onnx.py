from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.client("onnxruntime"), pytest.mark.slow]


@pytest.mark.parametrize("name", ["gpt2", "llama", "modern", "gpt-oss"])
def test_onnx(save, name, tmp_path):
    """`torch.onnx.export(dynamo=True)` of any batch and length, run in onnxruntime: same logits (1e-5)

    Experts in a form without loops over them: `model.set_experts_implementation("batched_mm")`.
    """
    import onnxruntime

    from gpt_finetune import GPTForCausalLM

    model = GPTForCausalLM.from_pretrained(save(name)).eval()
    if model.config.num_local_experts:
        model.set_experts_implementation("batched_mm")
    ids = torch.randint(2, 290, (2, 12))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=64)}
    path = tmp_path / "model.onnx"

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask):
            return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits

    torch.onnx.export(
        Logits(),
        (ids, torch.ones_like(ids)),
        path,
        dynamo=True,
        input_names=["input_ids", "attention_mask"],
        dynamic_shapes={"input_ids": sizes, "attention_mask": sizes},
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((2, 12), (3, 21)):
        ids, mask = torch.randint(2, 290, shape), torch.ones(shape, dtype=torch.int64)
        mask[0, -4:] = 0
        found = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        with torch.no_grad():
            wanted = model(ids, attention_mask=mask).logits
        torch.testing.assert_close(torch.tensor(found)[mask == 1], wanted[mask == 1], atol=1e-5, rtol=1e-5)
