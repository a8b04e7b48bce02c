"""What the hub's client raises, as one line for the user.

Errors are told apart by their class, never by their text. The client has had three HTTP libraries (requests, httpx,
httpx2), so those are not named here: every answer of the server is an `HfHubHTTPError`, and a connection that fails
is either an `OSError` (requests) or of the class that `HfHubHTTPError` itself derives from (httpx, httpx2).
"""

from __future__ import annotations

import errno
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, cast

from alignez_bake.errors import BadInputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub.errors import HfHubHTTPError

    from alignez_bake.hub.repo_id import RepoId

Action = Literal["read", "write"]

_LOGIN: Final = "log in with `hf auth login`, or set HF_TOKEN"
_MAX_SERVER_WORDS: Final = 300


@contextmanager
def hub_errors(repo: RepoId, action: Action) -> Iterator[None]:
    """Turn what the client raises inside this context into a BadInputError.

    Args:
        repo: whose name the message gives.
        action: what was tried.

    Raises:
        BadInputError: no such repository or revision, no token, no rights, gated, offline, no connection, no space
            left on the disk, or a server that fails.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415 - only those who use the hub pay for its client
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    transport = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    try:
        yield
    except BadInputError:
        raise
    except HFValidationError as error:
        raise BadInputError(f"{repo} is no name that the hub allows: {_one_line(str(error))}") from error
    except LocalTokenNotFoundError as error:
        raise BadInputError(f"{repo} needs a token: {_LOGIN}") from error
    except OfflineModeIsEnabled as error:
        raise BadInputError(_offline(repo, action)) from error
    except LocalEntryNotFoundError as error:
        raise BadInputError(_not_in_cache(repo, action, error)) from error
    except HfHubHTTPError as error:
        raise BadInputError(_refused(repo, action, error)) from error
    except (transport, OSError) as error:
        raise BadInputError(_no_answer(repo, error)) from error
    except ValueError as error:  # what the client refuses itself, such as metadata, or an answer that is no JSON
        raise BadInputError(f"{repo}: the hub's client gives up: {_one_line(str(error))}") from error


def _not_in_cache(repo: RepoId, action: Action, error: BaseException) -> str:
    """The client looks into its cache when the hub does not answer; why it did not is the cause of the error."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled  # noqa: PLC0415

    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        return _refused(repo, action, cause)
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return _offline(repo, action)
    return _no_answer(repo, cause)


def _offline(repo: RepoId, action: Action) -> str:
    way_out = "unset HF_HUB_OFFLINE" if action == "write" else "unset HF_HUB_OFFLINE, or give a folder on this machine"
    where = "" if action == "write" else ", and it is not in the local cache"
    return f"{repo} cannot be reached: HF_HUB_OFFLINE is set{where}; {way_out}"


def _no_answer(repo: RepoId, error: BaseException) -> str:
    """Neither a refusal nor an answer: the connection, or the disk that the cache lies on."""
    from huggingface_hub import constants  # noqa: PLC0415

    # Errors of the file system name a file, but for a full disk, which has only its number.
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EDQUOT)):
        place = "the disk" if error.filename is None else error.filename
        return f"{repo}: {place}: {error.strerror}: make room or set HF_HOME to another folder, and try again"
    return (
        f"{repo}: no connection to {constants.ENDPOINT} ({type(error).__name__}): check the network and HF_ENDPOINT, "
        "then try again"
    )


def _refused(repo: RepoId, action: Action, error: HfHubHTTPError) -> str:
    """What the server answered: by the class of the error where it has one of its own, else by its status."""
    from huggingface_hub import constants, get_token  # noqa: PLC0415
    from huggingface_hub.errors import (  # noqa: PLC0415
        DisabledRepoError,
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    has_token = get_token() is not None
    match error:
        case GatedRepoError():
            token = "your token's account is not on its list" if has_token else f"there is no token ({_LOGIN})"
            return f"{repo} is gated, and {token}: ask for access at {constants.ENDPOINT}/{repo.repo}"
        case DisabledRepoError():
            return f"{repo} was disabled by the hub: choose another repository"
        case RevisionNotFoundError():
            return f"{repo.repo} has no revision {repo.revision or 'main'!r}: name a branch, tag or commit that it has"
        case RepositoryNotFoundError() if has_token or action == "read":
            private = "your token cannot see it" if has_token else f"it is private ({_LOGIN})"
            return f"no such repository on the hub: {repo.repo}, or {private}; check the name"
        case _:
            return _refused_by_status(repo, action, error, has_token=has_token)


def _refused_by_status(repo: RepoId, action: Action, error: HfHubHTTPError, *, has_token: bool) -> str:
    status = error.response.status_code
    said = _one_line(error.server_message or "")
    quoted = f' (it says: "{said}")' if said else ""
    if action == "write" and status in (401, 403, 404) and not has_token:
        return f"{repo} cannot be written without a token: {_LOGIN}"
    if status == 401:
        return f"{repo}: the hub does not accept the token: {_LOGIN} to a valid one{quoted}"
    if status == 403:
        verb = "write to" if action == "write" else "read"
        return f"{repo}: your token may not {verb} it: use one with that right, or a repository of your own{quoted}"
    advice = "try again in a while" if status == 429 or status >= 500 else "check name and revision"
    return f"{repo}: the hub answered {status}: {advice}{quoted}"


def _one_line(text: str) -> str:
    """The words of a server, which may be long, of many lines, or hostile to a terminal."""
    words = " ".join(text.split())
    return "".join(character for character in words if character.isprintable())[:_MAX_SERVER_WORDS]
