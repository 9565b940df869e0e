"""Classify texts by prompt, without training: a few examples or none, and the likeliest words of a label.

Brown et al. 2020 (GPT-3), arXiv:2005.14165; contextual calibration: Zhao et al. 2021, arXiv:2102.09690.

    python recipes/zero_shot.py --config configs/zero_shot/sentiment-en.yaml
    python recipes/zero_shot.py --config configs/zero_shot/sentiment-en.yaml prompt.shots=4 output_dir=runs/few-shot

The held-out texts are those of recipes/classify.py with the same data section, so that figures can be compared.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from gpt_finetune.config import run
from gpt_finetune.errors import InputError
from gpt_finetune.tasks.config import SINGLE, ClassifyDataConfig, JudgeConfig
from gpt_finetune.tasks.prompt_config import PromptConfig
from gpt_finetune.training.run import RECEIPT, Run


@dataclass
class ZeroShotConfig:
    """Classify held-out texts by prompt.

    Args:
        output_dir: Folder for figures, predictions and the report.
        overwrite: Replace the run that output_dir holds.
        model: Folder or Hub id of a causal language model, name of a packaged one, or folder of an adapter.
        data: The texts with their labels, as recipes/classify.py takes them; max_length cuts a text in the prompt.
        prompt: How labels are asked for.
        judge: Beside what, and how sure the figures are; what it says of training counts for nothing.
    """

    output_dir: str = "runs/zero-shot"
    overwrite: bool = False
    model: str = "smollm2-135m-instruct"
    data: ClassifyDataConfig = field(default_factory=ClassifyDataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


def main(config: ZeroShotConfig) -> dict[str, float]:
    """Run the recipe; returns the figures."""
    config.data.validate()
    config.prompt.validate()
    from gpt_finetune.adaptation.loading import load_tuned
    from gpt_finetune.report import write_report
    from gpt_finetune.tasks import prompting
    from gpt_finetune.tasks.baselines import run_baselines
    from gpt_finetune.tasks.classification import prepare_task
    from gpt_finetune.tasks.heads import padded_tokenizer
    from gpt_finetune.tasks.judging import decide, judge
    from gpt_finetune.tasks.labels import softmax

    model, tokenizer = load_tuned(config.model)
    data = prepare_task(config.data, padded_tokenizer(tokenizer, config.data.max_length))
    if data.labels.problem != SINGLE:
        remedy = "Use recipes/classify.py"
        raise InputError("data.problem_type", data.labels.problem, "a prompt asks for one label of a text", remedy)
    names = data.labels.names
    words = config.prompt.words_of(names)
    with Run(config.output_dir, "zero_shot", config, overwrite=config.overwrite) as launched:
        begin = time.perf_counter()
        sides = {side: [row.text for row in rows] for side, rows in data.texts.items()}
        shown = {side: prompting.cut_texts(tokenizer, texts, config.data.max_length) for side, texts in sides.items()}
        examples = prompting.draw_examples(data, shown["train"], words, config.prompt)
        ask = [config.prompt.write(text, examples) for text in shown["validation"]]
        scores = prompting.score_words(model, tokenizer, ask, words, config.prompt)
        if config.prompt.calibrate:
            others = prompting.calibration_texts(shown["train"], config.prompt)
            ask = [config.prompt.write(text, examples) for text in others]
            scores = prompting.calibrated(scores, prompting.score_words(model, tokenizer, ask, words, config.prompt))
        seconds = time.perf_counter() - begin
        problem, right = data.labels.problem, data.targets["validation"]
        baselines = run_baselines(problem, sides["train"], data.targets["train"], sides["validation"])
        figures = data.measure(list(scores))
        outcome = judge(data, list(scores), baselines if config.judge.baselines else {}, config.judge)
        odds, said = softmax(scores).round(6).tolist(), decide(problem, scores)
        lines = [
            {"text": text, "right": names[r], "label": names[p], "scores": dict(zip(names, each, strict=True))}
            for text, r, p, each in zip(sides["validation"], right, said, odds, strict=True)
        ]
        launched.write("predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        told = prompting.describe(dict(zip(names, words, strict=True)), examples, config.prompt)
        launched.receipt |= {
            "model": {"base_model": config.model, "parameters": model.num_parameters()},
            "data": {
                "sources": [source.path for source in config.data.sources],
                "ledger": data.ledger.to_dict(),
                "fingerprint": data.fingerprint,
                "validation_bytes": data.validation_bytes,
            },
            "baselines": outcome.baselines,
            "task": outcome.section | {"name": "zero-shot classification", "prompt": told},
            "status": "finished",
            "duration_s": round(seconds, 1),
            "figures": figures,
        }
        launched.save_receipt()
        write_report(launched.folder)
    print(json.dumps(figures, indent=2), f"\n{launched.folder / RECEIPT}")
    return figures


if __name__ == "__main__":
    run(main, ZeroShotConfig)
