"""The notation of templates: what may come out, and what is no template."""

from __future__ import annotations

from random import Random

import pytest

from gpt_finetune.errors import InputError
from gpt_finetune.packaged.templates import Sampler, parse

LISTS = {"room": ["kitchen", "living [ ] room"], "level": ["(full|half)"]}
RULES = {"the": "(the|my)", "in_room": "in <the> {room}", "bare": "a|b"}


def sentences(template: str, draws: int = 400) -> set[str]:
    random = Random(0)
    sampler = Sampler(RULES, lambda name: random.choice(LISTS[name]), random)
    return {sampler.draw(template)[0] for _ in range(draws)}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("turn it on", {"turn it on"}),
        ("[please] go", {"go", "please go"}),
        ("light[s] (on|off)", {"light on", "light off", "lights on", "lights off"}),
        ("[the|a] lamp", {"lamp", "the lamp", "a lamp"}),
        ("[[the] color of] it", {"it", "color of it", "the color of it"}),
        ("<bare>c", {"ac", "bc"}),
        ("<the> lamp", {"the lamp", "my lamp"}),
        ("(x;y z)!", {"x y z!", "y z x!"}),
        ("off (now;<in_room>)", {f"off {a}" for room in ("kitchen", "living room") for the in ("the", "my")
                                 for a in (f"now in {the} {room}", f"in {the} {room} now")}),
        ("50[([ ]%)| percent]", {"50", "50%", "50 %", "50 percent"}),
        ("[把|将]灯打开", {"灯打开", "把灯打开", "将灯打开"}),
        ("", {""}),
    ],
)  # fmt: skip
def test_exactly_these_sentences(template, expected):
    assert sentences(template) == expected


def test_slots_have_the_values_of_the_text():
    sampler = Sampler(RULES, lambda name: LISTS[name][-1], Random(1))
    text, slots = sampler.draw("set {room} to {level:brightness}")
    assert slots == {"room": "living room", "brightness": text.split()[-1]}
    assert text in ("set living room to full", "set living room to half")
    assert sampler.draw("nothing") == ("nothing", {})


@pytest.mark.parametrize("template", ["(a", "a)", "[a|b", "a]", "(a]", "[a)", "{a", "a}", "<a", "a>", "(a|b;c)"])
def test_what_is_no_template(template):
    with pytest.raises(InputError, match="template"):
        parse(template)
