"""A model on the Hub: its card, what goes up, and the proof that it arrived and works without us."""

from gpt_finetune.hub.adapters import load_adapter
from gpt_finetune.hub.card import write_card
from gpt_finetune.hub.staging import Staged, staged
from gpt_finetune.hub.upload import Pushed, push
from gpt_finetune.hub.verification import verify

__all__ = ["Pushed", "Staged", "load_adapter", "push", "staged", "verify", "write_card"]
