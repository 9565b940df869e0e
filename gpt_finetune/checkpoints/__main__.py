"""Say whether checkpoints are whole: `python -m gpt_finetune.checkpoints [--sign] FOLDER ...`."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from gpt_finetune.checkpoints.choice import checkpoints
from gpt_finetune.checkpoints.manifest import damage, sign


def main(arguments: list[str] | None = None) -> int:
    """Verify, or sign; returns 1 when something is damaged."""
    parser = argparse.ArgumentParser(prog="python -m gpt_finetune.checkpoints", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a checkpoint, or a run's folder")
    parser.add_argument("--sign", action="store_true", help="write the manifest of a checkpoint that you trust")
    options = parser.parse_args(arguments)
    wrong = 0
    for folder in options.folders:
        if not folder.is_dir():
            parser.error(f"{folder} is no folder")
        for path in checkpoints(folder) or [folder]:
            if options.sign:
                step = re.search(r"(\d+)$", path.name)
                sign(path, int(step.group(1)) if step else 0)
            problems = damage(path)
            wrong += bool(problems)
            print(f"{path}: {'; '.join(problems) or 'whole'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
