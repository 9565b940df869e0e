"""What the user can say about classification by prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gpt_finetune.errors import InputError, did_you_mean

SLOT = "{text}"


@dataclass
class PromptConfig:
    """How labels are asked for.

    Args:
        template: What the model reads of a text; `{text}` is the text. It ends where the words of a label begin.
        words: By label, the words that stand for it, their leading space included; a label that is not named here is
            its own name behind a space.
        shots: Examples before the text, drawn from the training side: all labels as evenly as they can be.
        separator: What stands between them.
        calibrate: Divide by what the model expects behind a text that says nothing: the mean over `content_free`.
        content_free: Texts that say nothing.
        calibration_texts: So many training texts, drawn without a look at their labels, to calibrate by instead: behind
            examples, what a text that says nothing is called says little of real ones (Zhou et al. 2023,
            arXiv:2309.17249). 0 takes `content_free`.
        normalise: Divide the log-likelihood of a label by its tokens, where labels are of different lengths.
        batch_size: Prompts a forward pass; does not change the scores.
        seed: Of the draw of examples.
    """

    template: str = "{text}\nLabel:"
    words: dict[str, str] = field(default_factory=dict)
    shots: int = 0
    separator: str = "\n\n"
    calibrate: bool = True
    content_free: list[str] = field(default_factory=lambda: ["N/A"])
    calibration_texts: int = 0
    normalise: bool = False
    batch_size: int = 16
    seed: int = 0

    def validate(self, prefix: str = "prompt") -> None:
        """Check every field; costs nothing.

        Args:
            prefix: Dotted key under which the user wrote this section.

        Raises:
            InputError: A field cannot be used.
        """
        if self.template.count(SLOT) != 1 or self.template.endswith(SLOT):
            problem = "the text must stand in it once, and something behind it"
            raise InputError(f"{prefix}.template", self.template, problem, "Write e.g. '{text}\\nLabel:'")
        if self.calibration_texts and not self.calibrate:
            remedy = "Leave it out, or set calibrate=true"
            raise InputError(f"{prefix}.calibration_texts", self.calibration_texts, "calibrate is false", remedy)
        if self.calibrate and not self.calibration_texts and not self.content_free:
            remedy = "Give e.g. [N/A], or set calibrate=false"
            raise InputError(f"{prefix}.content_free", [], "there is nothing to calibrate with", remedy)
        for name, least in (("shots", 0), ("calibration_texts", 0), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{prefix}.{name}", getattr(self, name), f"it must be at least {least}", "Raise it")
        for label, words in self.words.items():
            if isinstance(label, bool):  # what YAML makes of a bare yes, no, on or off
                problem = "YAML reads a bare yes, no, on or off as true or false"
                raise InputError(f"{prefix}.words", label, problem, "Put the label into quotes")
            if not words.strip():
                raise InputError(f"{prefix}.words.{label}", words, "it is empty", "Give a word, or leave it out")

    def words_of(self, labels: Sequence[str]) -> list[str]:
        """Return the words of each label.

        Raises:
            InputError: Words are given for a label that there is not, or two labels have the same.
        """
        given = {str(label): words for label, words in self.words.items()}  # YAML's integers are labels, too
        for label in given:
            if label not in labels:
                raise InputError("prompt.words", label, "there is no such label", did_you_mean(label, labels))
        found = [given.get(label, f" {label}") for label in labels]
        if len(set(found)) < len(found):
            raise InputError("prompt.words", found, "two labels have the same words", "Give each its own")
        return found

    def write(self, text: str, examples: Sequence[tuple[str, str]] = ()) -> str:
        """Return the prompt of a text.

        Args:
            text: The text.
            examples: Texts with the words of their labels, to stand before it.
        """
        shown = [self.template.replace(SLOT, other) + words for other, words in examples]
        return self.separator.join([*shown, self.template.replace(SLOT, text)])
