"""What the preview shows: every token as the model gets it, what is learned apart from what is not."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console
from supervised_helpers import chat
from support import load_recipe

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.supervised.preview import show_examples


def show(prepared, count=1, colours=False, **options) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=colours, color_system="standard" if colours else None, width=40)
    show_examples(prepared, count, console, **options)
    return stream.getvalue()


@pytest.mark.parametrize("packing", [True, False])
def test_examples_stand_as_the_model_gets_them(prepare, packing):
    prepared = prepare([chat("[b]你好[/b]?" * 9, "世界", "c", "d")], packing=packing)
    sizes = prepared.train.lengths[0], prepared.train_tokens
    head, _, body = show(prepared).partition("\n")
    assert head == f"example 1 of 1: {sizes[0]} tokens, {sizes[1]} learned, {sizes[0] - sizes[1]} masked"
    written = prepared.tokenizer.decode(prepared.train.ids)
    for answer in ("世界<|im_end|>", "d<|im_end|>"):
        written = written.replace(answer, f"⟦{answer}⟧")
    assert body.rstrip("\n") == written.rstrip("\n")


def test_colours_tell_learned_from_masked(prepare):
    shown = show(prepare([chat("a", "bb")]), colours=True)
    assert "⟦" not in shown
    assert "\x1b[1;32mbb\x1b[0m\x1b[1;4;32m<|im_end|>\x1b[0m" in shown
    assert "\x1b[2muser\x1b[0m\n\x1b[2ma\x1b[0m" in shown
    assert "\x1b[2;4m<|im_start|>\x1b[0m" in shown


def test_borders_of_tokens(prepare):
    prepared = prepare([chat("the answer", "你é")])
    shown = show(prepared, tokens=True)
    ids = prepared.train.ids.tolist()
    assert shown.partition("\n")[2].count("│") == len(ids)
    assert "�" not in shown
    assert "│<|im_end|>⟧" in shown


def test_as_many_as_there_are(prepare):
    prepared = prepare([chat(str(i), "b") for i in range(3)])
    assert show(prepared, count=2).count("of 3:") == 2
    assert show(prepared, count=9).count("of 3:") == 3


def test_recipe(tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(chat(f"问 {i}", f"答 {i}")) + "\n" for i in range(30)))
    recipe = load_recipe("preview")
    words = [f"tokenizer={tmp_path / 'tokenizer'}", f"data.sources=[{{path: {tmp_path / 'a.jsonl'}}}]"]
    prepared = recipe.main(parse(recipe.PreviewConfig, [*words, "count=2", "data.chat_template=plain"]))
    shown = capsys.readouterr().out
    assert shown.count("example") == 2
    assert "⟦答 " in shown
    assert prepared.ledger.total.examples.total == 30
    file = tmp_path / "preview.yaml"
    file.write_text(f"data:\n  sources:\n    - path: {tmp_path / 'a.jsonl'}\n      format: messages\n")
    recipe.main(parse(recipe.PreviewConfig, [f"--config={file}", words[0], "--tokens"]))
    assert "│" in capsys.readouterr().out
    for wrong, expected in [
        ("count=0", "count = 0"),
        ("data.sources=[]", r"data\.sources"),
        (f"tokenizer={tmp_path}", r"tokenizer\.path"),
    ]:
        with pytest.raises(InputError, match=expected):
            recipe.main(parse(recipe.PreviewConfig, [*words, wrong]))
    with pytest.raises(InputError, match=r"Did you mean 'data\.learn'"):
        parse(recipe.PreviewConfig, [*words, "data.learns=all"])
    with pytest.raises(InputError, match=r"data\.learn"):
        parse(recipe.PreviewConfig, [*words, "data.learn=everything"])
