"""A folder becomes a commit on the Hub: checked before, sent as one, tried again where that helps, verified after."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_finetune.errors import InputError
from gpt_finetune.hub.outcomes import explained, no_token, patiently
from gpt_finetune.hub.staging import Staged, staged
from gpt_finetune.hub.verification import verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)

MAIN = "main"
# Files of an earlier push that would be loaded instead of, or beside, what is pushed now.
STALE = (".safetensors", ".safetensors.index.json", ".py")


@dataclass(frozen=True)
class Pushed:
    """What is on the Hub now.

    Args:
        url: Its page, at the commit.
        commit: The commit's id.
        files: What was pushed, with sizes.
        difference: The largest difference between its outputs and the folder's, in a fresh process.
    """

    url: str
    commit: str
    files: dict[str, int]
    difference: float


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = MAIN,
    tag: str | None = None,
    license: str | None = None,
    message: str = "Push a model with gpt_finetune",
) -> Pushed:
    """Push a model with its tokenizer, code, card and figures as one commit, and verify it.

    The token is the one of `hf auth login` or $HF_TOKEN. A second push sends only what the Hub lacks.

    Args:
        folder: A run's folder, or what `save_pretrained` of model (or adapter) and tokenizer wrote.
        repo_id: The repository, `owner/name`; it is made if need be.
        private: Make it private; one that exists and is public is refused.
        revision: The branch; it is made if need be.
        tag: A new tag for the commit, put there once it is verified.
        license: The model's licence by its Hub name, for the card.
        message: Of the commit.

    Raises:
        InputError: The folder, the token, the repository or what arrived there is not as it should be.
    """
    check_name(repo_id)
    with staged(folder, repo_id, license) as staging:
        for note in staging.notes:
            log.info(note)
        api = _open(repo_id)
        _prepare(api, repo_id, private, revision, tag)
        log.info("pushing %d files, %s bytes", len(staging.files), f"{sum(staging.files.values()):,}")
        commit = _commit(api, staging, repo_id, revision, message)
        log.info("commit %s is there; loading it in a fresh process without gpt_finetune", commit)
        difference = verify(staging, repo_id, commit)
        if tag:
            patiently(lambda: api.create_tag(repo_id, tag=tag, revision=commit, exist_ok=True), repo_id)
        return Pushed(f"{api.endpoint}/{repo_id}/tree/{commit}", commit, staging.files, difference)


def check_name(repo_id: str) -> None:
    """Refuse what is no `owner/name`.

    Raises:
        InputError: It is none.
    """
    from huggingface_hub.utils import validate_repo_id

    with explained(repo_id):
        validate_repo_id(repo_id)
    if "/" not in repo_id:
        raise InputError("repo_id", repo_id, "it names no owner", "Give owner/name; `hf auth whoami` says who you are")


def _open(repo_id: str) -> HfApi:
    """Return the client, once its token is known to be one that may write."""
    from huggingface_hub import HfApi, get_token

    api = HfApi(library_name="gpt_finetune")
    if get_token() is None:
        raise no_token()
    account = patiently(api.whoami, repo_id)
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        remedy = "Make one that may write at huggingface.co/settings/tokens, then `hf auth login`"
        raise InputError("HF_TOKEN", "…", f"this token of {account['name']} may only read", remedy)
    return api


def _prepare(api: HfApi, repo_id: str, private: bool, revision: str, tag: str | None) -> None:
    """Make the repository and the branch, and refuse what would go wrong after the upload."""
    patiently(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True), repo_id)
    if private and not patiently(lambda: api.model_info(repo_id), repo_id).private:
        remedy = "Make it private in its settings first, or give a new name"
        raise InputError("private", True, f"{repo_id} exists and is public", remedy)
    if revision != MAIN:
        patiently(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True), repo_id)
    if tag and tag in {ref.name for ref in patiently(lambda: api.list_repo_refs(repo_id), repo_id).tags}:
        raise InputError("tag", tag, f"{repo_id} has it already", "Give a new one; tags should not move")


def _commit(api: HfApi, staging: Staged, repo_id: str, revision: str, message: str) -> str:
    """Send all files as one commit on top of what is there now; returns its id.

    If the commit arrives and only its answer is lost, the next try finds nothing to change and returns it.
    """
    parent = patiently(lambda: api.model_info(repo_id, revision=revision), repo_id).sha

    def send() -> str:
        there = api.list_repo_files(repo_id, revision=revision)
        operations = _operations(staging, there)
        options: dict[str, Any] = {"revision": revision, "parent_commit": parent, "commit_message": message}
        return str(api.create_commit(repo_id, operations, **options).oid)

    return patiently(send, repo_id)


def _operations(staging: Staged, there: list[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    stale = [name for name in there if name.endswith(STALE) and name not in staging.files]
    for name in stale:
        log.info("%s of an earlier push goes", name)
    return [
        *(CommitOperationAdd(name, staging.folder / name) for name in staging.files),
        *(CommitOperationDelete(name) for name in stale),
    ]
