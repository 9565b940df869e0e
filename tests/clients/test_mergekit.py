from __future__ import annotations

import pytest
import torch

pytestmark = [pytest.mark.client("mergekit"), pytest.mark.slow]

RECIPE = """
merge_method: linear
dtype: float32
models:
  - {{model: {first}, parameters: {{weight: 0.25}}}}
  - {{model: {second}, parameters: {{weight: 0.75}}}}
"""
MERGE = 'sys.argv[0] = "mergekit-yaml"\nfrom mergekit.scripts.run_yaml import main\nmain()'


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-oss"])
def test_mergekit(save, without_us, name, tmp_path):
    """`mergekit-yaml` merges two of ours linearly; the result loads, and its weights are the mean

    `--trust-remote-code`; it leaves the `*.py` files out, so load the result where gpt_finetune is imported.
    """
    from transformers import AutoModelForCausalLM

    first = save(name).rename(tmp_path / "first")
    second = save(name)
    (tmp_path / "merge.yaml").write_text(RECIPE.format(first=first, second=second))
    without_us(MERGE, tmp_path / "merge.yaml", tmp_path / "merged", "--trust-remote-code")
    merged, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    parts = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (first, second)]
    for key, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, 0.25 * parts[0][key] + 0.75 * parts[1][key])
