"""One process of a run that goes on with another number of processes; see test_elastic_resume.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from test_elastic_resume import run


def main(folder: Path, part: str) -> None:
    """Make five steps, or the rest of the epoch, and write down which rows they were made of."""
    fields = {"epochs": 1.0} if part == "go on" else {"max_steps": 5}
    trainer, seen = run(folder / "run", resume=part == "go on", **fields)
    rank = trainer.accelerator.process_index
    (folder / f"{part}-{rank}.json").write_text(json.dumps(seen.steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
