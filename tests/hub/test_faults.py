"""What goes wrong on the way: what passes is tried again, what does not ends in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
from hub.loopback import OTHER, READ, WRITE, WRONG, Fault, Repo

PASSING = [
    *[("lfs", route, 503) for route in ("whoami", "create", "branch", "refs", "revision", "preupload", "batch", "put")],
    *[("lfs", route, 503) for route in ("verify", "tree", "commit", "tag")],
    *[("lfs", route, "lose") for route in ("create", "branch", "preupload", "put", "commit", "tag")],
    *[("lfs", route, "truncate") for route in ("preupload", "batch", "revision")],
    *[("lfs", "commit", status) for status in (429, 500, 502, 504)],
    *[("multipart", "part", kind) for kind in (500, 503, "lose")],
    ("multipart", "complete", 503),
    *[("xet", route, 503) for route in ("xet-token", "xorb", "shard")],
]


@pytest.fixture
def push(hub, folder, repo_id, request, tmp_path):
    """Return a push in one of the three modes, of weights that the Hub has not seen yet."""

    def send(mode="lfs", **options):
        weights = (folder / "model.safetensors").read_bytes()
        hub.objects.pop(hashlib.sha256(weights).hexdigest(), None)
        source = folder
        if mode == "xet":  # it remembers what it sent
            source = shutil.copytree(folder, tmp_path / "other", dirs_exist_ok=True)
            (source / "model.safetensors").write_bytes(weights[:-64] + os.urandom(64))
        hub.part_size = 30_000 if mode == "multipart" else None
        client = request.getfixturevalue("xet" if mode == "xet" else "lfs")
        return client("push", **{"folder": str(source), "repo_id": repo_id, **options})

    return send


@pytest.mark.parametrize(("mode", "route", "kind"), PASSING)
def test_what_passes_is_tried_again(mode, route, kind, hub, lfs, folder, repo_id, push):
    hub.faults = [Fault(route, kind)]
    answer = push(mode, revision="dev", tag="v1")
    assert "value" in answer, answer
    repo = hub.repos[repo_id]
    assert repo.tags["v1"] == repo.branches["dev"] == answer["value"]["commit"]
    assert len(repo.commits) == 2, "one of ours, and the first of every repository"


def test_a_commit_is_tried_five_times(hub, push):
    hub.faults = [Fault("commit", 503, times=4)]
    assert "value" in push()


REFUSED = [
    ("commit", 400, "the Hub answers with status 400"),
    ("commit", 401, "the Hub does not know this token"),
    ("commit", 403, "this token may not write there"),
    ("commit", 404, "the Hub answers with status 404"),
    ("commit", 409, "in the midst of another change"),
    ("commit", 412, "someone committed to it"),
    ("commit", 503, "out of order, in five tries"),
    ("commit", "lose-all", "cannot be reached"),
    ("preupload", 403, "this token may not write there"),
    ("batch", 403, "this token may not write there"),
    ("put", 403, "this token may not write there"),
    ("put", 422, "the Hub answers with status 422"),
    ("verify", 404, "the Hub answers with status 404"),
    ("validate", 400, "README.md"),
    ("create", 403, "this token may not write there"),
    ("whoami", 401, "the Hub does not know this token"),
    ("whoami", 429, "too many requests"),
    ("tag", 409, None),
]


@pytest.mark.parametrize(("route", "kind", "message"), REFUSED)
def test_what_does_not_pass_ends_in_one_line(route, kind, message, hub, push):
    hub.faults = [Fault(route, 599 if kind == "lose-all" else kind, times=1000)]
    if kind == "lose-all":
        hub.faults = [Fault("preupload", "lose", times=1000)]
    answer = push(tag="v1")
    if message is None:  # the tag is ours: an earlier try made it, and its answer was lost
        assert "value" in answer
        return
    assert answer["error"] == "InputError", answer
    assert message in answer["message"]
    assert "\n" not in answer["message"]


@pytest.mark.parametrize(
    ("route", "kind", "message"),
    [
        ("xet-token", 401, "the Hub does not know this token"),
        ("xet-token", 403, "this token may not write there"),
        ("xorb", 403, "this token may not write there"),
        ("shard", 400, "the Hub answers with status 400"),
    ],
)
def test_what_does_not_pass_in_xet(route, kind, message, hub, push):
    hub.faults = [Fault(route, kind, times=1000)]
    answer = push("xet")
    assert (answer["error"], message in answer["message"]) == ("InputError", True), answer


def test_a_commit_in_between_is_not_written_over(hub, lfs, repo_id, push):
    def intrude():
        repo = hub.repos[repo_id]
        repo.commit("main", {**repo.commits[repo.branches["main"]], "theirs.txt": hub._blob(b"theirs")})

    hub.faults = [Fault("commit", intrude)]
    assert "someone committed to it while this upload was under way" in push()["message"]
    assert "theirs.txt" in hub.repos[repo_id].commits[hub.repos[repo_id].branches["main"]]


ACCOUNTS = [
    ({"token": WRONG}, "HF_TOKEN = '…': the Hub does not know this token"),
    ({"token": None}, "HF_TOKEN = None: writing to the Hub takes a token"),
    ({"token": READ}, "HF_TOKEN = '…': this token of alice may only read"),
    ({"token": OTHER}, "this token may not write there"),
    ({"repo_id": "no owner/x"}, "the Hub allows no such name"),
    ({"repo_id": "alice/--x"}, "the Hub allows no such name"),
    ({"repo_id": "alice/a/b"}, "the Hub allows no such name"),
    ({"repo_id": "x"}, "it names no owner"),
    ({"folder": "nowhere"}, "there is no such folder"),
]


@pytest.mark.parametrize(("options", "message"), ACCOUNTS)
def test_who_may_and_where(options, message, hub, push):
    before = len(hub.repos)
    answer = push(**options)
    assert answer["error"] == "InputError", answer
    assert message in answer["message"]
    assert len(hub.repos) == before


@pytest.mark.parametrize(
    ("base", "revision", "message"),
    [
        (
            "alice/nothing",
            None,
            "repo_id = 'alice/nothing': there is no such repository, or the account may not see it",
        ),
        ("alice/base", "gone", "revision = 'alice/base': the repository has no such branch, tag or commit"),
    ],
)
def test_an_adapter_needs_its_base(base, revision, message, hub, lfs, push, tmp_path):
    lfs("api", "create_repo", "alice/base", exist_ok=True)
    record = {"base_model_name_or_path": base, "revision": revision, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(record))
    assert message in push(folder=str(tmp_path))["message"]


def test_private_never_lands_in_a_public_repository(hub, lfs, repo_id, push):
    lfs("api", "create_repo", repo_id)
    assert "exists and is public" in push(private=True)["message"]
    assert len(hub.repos[repo_id].commits) == 1


def test_a_tag_does_not_move(hub, repo_id, push):
    assert push(tag="v1")["value"]
    assert f"tag = 'v1': {repo_id} has it already" in push(tag="v1")["message"]


def test_gated_and_missing_repositories_to_read(hub, lfs, folder, repo_id, push):
    commit = push()["value"]["commit"]
    hub.repos[repo_id].gated = True
    assert lfs("fetch", repo_id, commit)["value"]
    assert lfs("fetch", repo_id, commit, token=OTHER)["error"] == "GatedRepoError"
    assert lfs("fetch", repo_id, "no-such-branch")["error"] == "RevisionNotFoundError"
    assert lfs("fetch", "alice/nothing")["error"] == "RepositoryNotFoundError"
    hub.repos[repo_id] = Repo(private=True, commits=hub.repos[repo_id].commits, branches=hub.repos[repo_id].branches)
    assert lfs("fetch", repo_id, token=OTHER)["error"] == "RepositoryNotFoundError"
    assert lfs("fetch", repo_id, token=None)["error"] == "RepositoryNotFoundError"


@pytest.mark.parametrize("kind", ["truncate", "lose"])
def test_the_client_mends_a_broken_download(kind, hub, lfs, folder, repo_id, push):
    push()
    hub.faults = [Fault("get", kind)]
    arrived = lfs("fetch", repo_id)["value"]
    assert arrived["model.safetensors"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_client_takes_a_wrong_bit_for_the_file(hub, lfs, folder, repo_id, push):
    """It compares sizes; hence the verification compares SHA-256."""
    push()
    hub.faults = [Fault("get", "flip")]
    arrived = lfs("fetch", repo_id)["value"]
    assert arrived["model.safetensors"] != hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_nothing_is_done_until_it_is_verified(hub, lfs, folder, repo_id, push):
    hub.faults = [Fault("get", "flip", times=1000)]
    answer = push(verified=True, tag="v1")
    assert "what the Hub gives back for model.safetensors is not what was sent" in answer["message"]
    assert hub.repos[repo_id].tags == {}


def test_offline(monkeypatch, folder):
    from gpt_finetune.errors import InputError
    from gpt_finetune.hub import push

    monkeypatch.setenv("HF_TOKEN", WRITE)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE = '1': the Hub may not be asked"):
        push(folder, "alice/x")  # tests are offline; this is a ConnectionError, and yet is not tried again
