"""Checkpoints that a run can go on from: written whole, signed, and verified before they are used."""

from gpt_finetune.checkpoints.choice import find_whole, newest_whole
from gpt_finetune.checkpoints.manifest import MANIFEST, damage, sign

__all__ = ["MANIFEST", "damage", "find_whole", "newest_whole", "sign"]
