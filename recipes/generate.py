"""Generate text from any causal language model: one prompt streamed, or a file of prompts in batches.

    python recipes/generate.py --model runs/quickstart --prompt "def "
    python recipes/generate.py --model runs/quickstart --prompt_file prompts.txt --output answers.jsonl

With `--model smollm2-135m-instruct --chat`, a pretrained model answers; it arrives on first use.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt_finetune.config import run
from gpt_finetune.errors import InputError, did_you_mean


@dataclass
class GenerateConfig:
    """Generate text.

    Args:
        model: Folder or Hub id of a causal language model, name of a packaged one, or folder of an adapter.
        prompt: Text to go on from; streamed as it is generated.
        prompt_file: UTF-8 file with one prompt a line, generated in batches instead.
        chat: Put each prompt to the model as a user's message, in the words of its chat template.
        output: JSON-lines file for the answers to prompt_file; null prints them.
        batch_size: Prompts generated at once, from prompt_file.
        max_new_tokens: Length of an answer, in tokens.
        temperature: 0 takes the likeliest token each time; 1 samples from the model as it is.
        top_p: Sample from the likeliest tokens that together have this probability.
        top_k: Sample from so many likeliest tokens; 0 means all.
        seed: Seed of the sampling.
        trust_remote_code: Run the code that comes with a model that is not one of ours.
        quantize: int8 or int4: smaller weights, or bf16: laid out for speed; on CPU. null keeps them as they are.
        options: Any further field of transformers.GenerationConfig: `options.num_beams=4`.
    """

    model: str = "runs/quickstart"
    prompt: str = ""
    prompt_file: str | None = None
    chat: bool = False
    output: str | None = None
    batch_size: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 0
    seed: int = 0
    trust_remote_code: bool = False
    quantize: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def read_prompts(config: GenerateConfig) -> list[str]:
    """Return the prompts of the file, or the one given.

    Raises:
        InputError: The file cannot be read, or holds no prompt.
    """
    if config.prompt_file is None:
        return [config.prompt]
    try:
        prompts = Path(config.prompt_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("prompt_file", config.prompt_file, str(error), "Give a UTF-8 text file") from None
    if not any(prompts):
        raise InputError("prompt_file", config.prompt_file, "it holds no prompt", "Write one prompt a line")
    return [prompt for prompt in prompts if prompt]


def main(config: GenerateConfig) -> list[str]:
    """Run the recipe; returns the answers."""
    prompts = read_prompts(config)
    from transformers import GenerationConfig, TextStreamer, set_seed
    from transformers.utils import logging

    from gpt_finetune.adaptation.loading import load_tuned
    from gpt_finetune.generation import generate

    known = set(GenerationConfig().to_dict())
    for name, value in config.options.items():
        if name not in known:
            raise InputError(f"options.{name}", value, "there is no such option", did_you_mean(name, known))
    logging.set_verbosity_error()
    model, tokenizer = load_tuned(config.model, trust_remote_code=config.trust_remote_code, quantize=config.quantize)
    if config.chat and not tokenizer.chat_template:
        raise InputError("chat", True, "this model has no chat template", "Leave it out, or take a chat model")
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    worded = {"tokenize": False, "add_generation_prompt": True}
    asked = tokenizer.apply_chat_template(messages, **worded) if config.chat else prompts
    set_seed(config.seed)
    choice = {"do_sample": True} | {name: getattr(config, name) for name in ("temperature", "top_p", "top_k")}
    options = (choice if config.temperature > 0 else {"do_sample": False}) | config.options
    if config.prompt_file is None:
        print(config.prompt, end="\n" if config.chat else "", flush=True)
        if options.get("num_beams", 1) == 1:
            options["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        answers = generate(model, tokenizer, asked, config.max_new_tokens, **options)
        if "streamer" not in options:  # beams know their text only at the end
            print(answers[0])
        return answers
    answers = []
    with Path(config.output).open("w", encoding="utf-8") if config.output else nullcontext(sys.stdout) as file:
        for start in range(0, len(prompts), config.batch_size):
            batch = slice(start, start + config.batch_size)
            texts = generate(model, tokenizer, asked[batch], config.max_new_tokens, **options)
            for prompt, text in zip(prompts[batch], texts, strict=True):
                file.write(json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n")
            answers += texts
            print(f"{len(answers)}/{len(prompts)} prompts", file=sys.stderr)
    return answers


if __name__ == "__main__":
    run(main, GenerateConfig)
