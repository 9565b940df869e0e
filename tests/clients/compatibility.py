"""The compatibility table: what the tests of this folder found, as a page of Markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

TABLE = os.environ.get("CLIENTS_TABLE", "")
PAGE = """# Compatibility

What other people's software does with our models, as `make test-clients` found it: each row is a test in
`tests/clients/` that runs the real client on a tiny model, on CPU. That command writes this page; nobody else does.

Python {python}, torch {torch}, transformers {transformers}.

| client | version | what was run | what it takes | result |
|---|---|---|---|---|
{rows}
"""


class Outcome(NamedTuple):
    """What came of one case of a test."""

    client: str
    version: str
    what: str
    needs: str
    test: str
    passed: bool


def write_table(path: Path, outcomes: list[Outcome]) -> None:
    """Write the page, a row for each test, its cases together, in the order of files and names of clients."""
    rows = []
    for _, cases in groupby(sorted(outcomes, key=_place), key=_place):
        first, *others = list(cases)
        results = [first.passed, *(case.passed for case in others)]
        result = "works" if all(results) else "fails" if not any(results) else f"{sum(results)} of {len(results)} work"
        cells = (first.client, first.version, first.what, first.needs, result)
        rows.append("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |")
    versions = {name: importlib.metadata.version(name).split("+")[0] for name in ("torch", "transformers")}
    page = PAGE.format(python=platform.python_version(), rows="\n".join(rows), **versions)
    path.write_text(page, encoding="utf-8")


def _place(outcome: Outcome) -> tuple[str, str]:
    return outcome.client.lower(), outcome.test
