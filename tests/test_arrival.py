"""Importing the package is light, and yet transformers and PEFT know of it, whoever is imported first."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support import ROOT

RECIPES = sorted(path.name for path in (ROOT / "recipes").glob("*.py"))
HEAVY = ("torch", "transformers", "numpy", "peft", "datasets", "sklearn")
KNOWN = "from transformers import AutoConfig; assert type(AutoConfig.for_model('gpt_finetune')).__name__ == 'GPTConfig'"


def execute(code: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "code",
    [
        f"import gpt_finetune; {KNOWN}",
        f"import transformers, gpt_finetune; {KNOWN}",
        # a module of ours imports transformers while it is half done itself
        f"from gpt_finetune.conversion import export_native; {KNOWN}",
        f"from gpt_finetune.training.trainer import GPTTrainer; {KNOWN}",
        "from gpt_finetune.model.configuration_gpt import GPTConfig; assert GPTConfig.save_pretrained.__wrapped__",
        "from gpt_finetune import GPTConfig, preset; assert isinstance(preset('tiny'), GPTConfig)",
        "import gpt_finetune, peft; from peft.utils import constants as c;"
        "assert 'gpt_finetune' in c.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING",
    ],
    ids=["ours first", "theirs first", "conversion", "trainer", "configuration", "names", "peft"],
)
def test_whoever_is_imported_first_the_classes_are_known(code):
    execute(code)


def test_importing_alone_imports_nothing_heavy():
    execute(f"import sys, gpt_finetune; assert not {set(HEAVY)} & set(sys.modules), sys.modules.keys()")


def test_help_and_errors_of_every_recipe_import_nothing_heavy():
    """They take a third of a second; with torch and transformers it would be eight."""
    code = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT / "recipes")!r})
for name in {RECIPES}:
    for words in (["--help"], ["no_such_key=1"]):
        sys.argv = [name, *words]
        try:
            runpy.run_path({str(ROOT / "recipes")!r} + "/" + name, run_name="__main__")
        except SystemExit as end:
            assert end.code == (0 if "--help" in words else 2), (name, words, end.code)
        heavy = {set(HEAVY)} & set(sys.modules)
        assert not heavy, (name, words, heavy)
"""
    execute(code)


def test_a_name_that_is_not_there_is_an_attribute_error():
    import gpt_finetune

    with pytest.raises(AttributeError, match="no attribute 'GPTForEverything'"):
        _ = gpt_finetune.GPTForEverything
    assert {"GPTConfig", "preset", "export_native"} <= set(dir(gpt_finetune))
