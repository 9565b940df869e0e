"""What the Hub answers, in one line each: tried again where it may pass, explained where it does not."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from gpt_finetune.errors import InputError
from gpt_finetune.report.redaction import redact

T = TypeVar("T")
log = logging.getLogger(__name__)

WAITS = (1, 2, 4, 8)  # seconds before each further attempt
_XET_STATUS = re.compile(r"HTTP status \w+ error \((\d{3})")  # hf_xet has one error for all, with the status in words
BUSY = (408, 429, 500, 502, 503, 504)  # statuses that pass by themselves


def patiently(call: Callable[[], T], repo_id: str) -> T:
    """Call, and again while the Hub is busy or the line breaks; what stays wrong is explained.

    Args:
        call: One that does no harm when an earlier try arrived and only its answer was lost.
        repo_id: The repository in question.

    Raises:
        InputError: The Hub refuses.
    """
    with explained(repo_id):
        for wait in WAITS:
            try:
                return call()
            except Exception as error:
                if not _passes(error):
                    raise
                log.warning("the Hub did not take it (%s); again in %d s", _said(error), wait)
                time.sleep(wait)
        return call()


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turn the client's errors into one line each; no token is in any of them."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (known := _explain(error, repo_id)) is None:
            raise
        raise known from None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    for cause in _chain(error):
        if isinstance(cause, HfHubHTTPError):
            return int(cause.response.status_code)
        if isinstance(cause, ConnectionError) and (said := _XET_STATUS.search(str(cause))):
            return int(said[1])
    return None


def _is_broken_line(error: BaseException) -> bool:
    kinds = {kind for cause in _chain(error) for kind in type(cause).__mro__}
    # by name: huggingface_hub has changed its HTTP library before
    return not kinds.isdisjoint({ConnectionError, TimeoutError}) or "TransportError" in {
        kind.__name__ for kind in kinds
    }


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return any(isinstance(cause, OfflineModeIsEnabled) for cause in _chain(error))


def _passes(error: BaseException) -> bool:
    status = _status(error)
    return not _is_offline(error) and (status in BUSY if status else _is_broken_line(error))


def _said(error: BaseException) -> str:
    status = _status(error)
    return f"status {status}" if status else redact(f"{type(error).__name__}: {str(error).splitlines()[:1]}")


def _explain(error: Exception, repo_id: str) -> InputError | None:
    """Return what to tell the user; None for what is no outcome of talking to a Hub."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kinds = tuple(type(cause) for cause in _chain(error))

    def is_a(kind: type) -> bool:
        return any(issubclass(known, kind) for known in kinds)

    if is_a(HFValidationError):
        return InputError("repo_id", repo_id, "the Hub allows no such name", "Give owner/name")
    if is_a(LocalTokenNotFoundError):
        return no_token()
    if _is_offline(error):
        return InputError("HF_HUB_OFFLINE", "1", "the Hub may not be asked", "Unset it to go online")
    if is_a(GatedRepoError):
        remedy = "Ask for access on its page on the Hub, or give another repository"
        return InputError("repo_id", repo_id, "this repository is gated, and the account has no access", remedy)
    if is_a(RevisionNotFoundError):
        return InputError("revision", repo_id, "the repository has no such branch, tag or commit", "See its history")
    if is_a(RepositoryNotFoundError):
        problem = "there is no such repository, or the account may not see it"
        return InputError("repo_id", repo_id, problem, "Check the name, and whose token is in use: `hf auth whoami`")
    if "metadata in README.md" in str(error):
        return InputError("README.md", "…", " ".join(str(error).split()), "Mend the metadata at the card's top")
    status = _status(error)
    if status in OUTCOMES:
        named = ("HF_TOKEN", "…") if status == 401 else ("repo_id", repo_id)
        return InputError(*named, *OUTCOMES[status])
    if status is not None:
        return InputError("repo_id", repo_id, f"the Hub answers with status {status}", "Try again later")
    if _is_broken_line(error):
        remedy = "Check the network and $HF_ENDPOINT; a second try sends only what is missing"
        return InputError("repo_id", repo_id, f"{constants.ENDPOINT} cannot be reached", remedy)
    return None


OUTCOMES = {
    401: ("the Hub does not know this token", "Make a new one at huggingface.co/settings/tokens, then `hf auth login`"),
    403: (
        "this token may not write there",
        "Use a token with write access to that owner's models: huggingface.co/settings/tokens",
    ),
    409: ("the Hub is in the midst of another change to it", "Try again"),
    412: ("someone committed to it while this upload was under way", "Look at that commit, then push again"),
    429: ("the Hub has had too many requests", "Wait a few minutes; a second try sends only what is missing"),
    **dict.fromkeys(
        (500, 502, 503, 504),
        ("the Hub is out of order, in five tries", "Try again later; a second try sends only what is missing"),
    ),
}


def no_token() -> InputError:
    """Return the error of a push without any token."""
    return InputError("HF_TOKEN", None, "writing to the Hub takes a token", "Run `hf auth login`, or export HF_TOKEN")
