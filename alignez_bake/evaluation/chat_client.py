"""One question to an OpenAI-compatible server: bounded in time and size, tried again with back-off, never redirected.

The standard library's client: the hub's has changed its HTTP package with each of its last major versions.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from alignez_bake.errors import BadInputError
from alignez_bake.language_model.sampling import derived_seed
from alignez_bake.safetensors_io.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPResponse

_MAX_REPLY_BYTES: Final = 1024 * 1024
_MAX_ERROR_BYTES: Final = 4096
_PIECE: Final = 64 * 1024
_REPLY_TOKENS: Final = 16
_FIRST_WAIT: Final = 1.0
_LONGEST_WAIT: Final = 60.0
_LONGEST_ASKED_WAIT: Final = 600.0
"""What a Retry-After may ask for; beyond it the run ends, and the same command goes on some other time."""
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that may be gone a moment later."""


class JudgeUnavailableError(BadInputError):
    """A server gave no reply: what it judged so far stays, nothing is made up for the rest."""


class _Failure(NamedTuple):
    """Why one try gave no reply, and for how many seconds the server asked to be left alone."""

    reason: str
    asked_wait: float = 0.0


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the key to another host: it is an error instead."""

    def redirect_request(self, *arguments: Any) -> None:  # noqa: ANN401 - the base's signature, none of it is used
        """Refuse."""
        del arguments


@dataclass(frozen=True)
class ChatClient:
    """Asks one model of one server; made by `chat_client`.

    Attributes:
        url: up to and including `/v1`.
        model: its name there.
        key: sent as bearer token; None: none is sent. Neither shown nor stored.
        tries: how often a question is sent at most.
        timeout: seconds that one try may take.
        seed: of the jitter in the waits.
    """

    url: str
    model: str
    key: str | None = field(repr=False)
    tries: int
    timeout: float
    seed: int

    def reply(self, question: str) -> str:
        """The text that the model replies to one message; empty where its message has none.

        Waits double from 1 s to at most 60 s, times a number from 0.5 to 1 that is drawn from the seed, and are never
        shorter than what the server asks for (`Retry-After`).

        Raises:
            JudgeUnavailableError: no reply after all tries, or one that says that more of them are of no use.
        """
        body = json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": _REPLY_TOKENS,
            }
        ).encode("ascii")
        failure = _Failure("")
        for attempt in range(self.tries):
            if attempt:
                time.sleep(max(failure.asked_wait, self._wait(question, attempt)))
            found = self._try(body)
            if isinstance(found, str):
                return found
            failure = found
        raise JudgeUnavailableError(
            f"the judge at {self.url} gave no reply in {self.tries} tries: {failure.reason}; is it running?"
        )

    def _wait(self, question: str, attempt: int) -> float:
        jitter = random.Random(derived_seed(self.seed, "wait", question, attempt)).uniform(0.5, 1.0)  # noqa: S311
        return min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (attempt - 1)) * jitter

    def _try(self, body: bytes) -> str | _Failure:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(f"{self.url}/chat/completions", data=body, headers=headers)  # noqa: S310 - checked when made
        ends = time.monotonic() + self.timeout
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                data = _read(response, ends)
            return _text_of(parse_object(data, f"the reply of {self.url}"))
        except HTTPError as error:
            with error:
                return self._refused(error)
        except (OSError, HTTPException) as error:
            return _Failure(_reason(error))
        except BadInputError as error:  # a reply that is no chat completion: a proxy's page, or one that was cut off
            return _Failure(str(error))

    def _refused(self, error: HTTPError) -> _Failure:
        """What an error status means.

        Raises:
            JudgeUnavailableError: a status that another try does not change, or a wait that is too long.
        """
        try:
            said = error.read(_MAX_ERROR_BYTES).decode("utf-8", errors="replace")
        except (OSError, HTTPException):
            said = ""
        if self.key is not None:  # some servers repeat it
            said = said.replace(self.key, "***")
        reason = f"status {error.code}, {shown(said)}"
        if error.code not in _PASSING:
            raise JudgeUnavailableError(
                f"the judge at {self.url} refuses: {reason}; look at --judge, --judge-model and --judge-key-env"
            )
        asked = _asked_wait(error.headers.get("Retry-After", ""))
        if asked > _LONGEST_ASKED_WAIT:
            raise JudgeUnavailableError(
                f"the judge at {self.url} asks to wait for {asked:.0f} s, and at most {_LONGEST_ASKED_WAIT:.0f} s are "
                f"waited ({reason}): run the same command later"
            )
        return _Failure(reason, asked)


def chat_client(url: str, model: str, key: str | None, *, tries: int, timeout: float, seed: int) -> ChatClient:
    """A client, whose address is checked; nothing is sent.

    Args:
        url: such as `http://localhost:8000/v1`.
        model: name of a model of that server.
        key: bearer token, or None.
        tries: at least 1.
        timeout: seconds, above 0.
        seed: of the jitter.

    Raises:
        BadInputError: no such address, one with a password in it, a key that no header can hold, or a number out of
            bounds. The key is in no message.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise BadInputError(f"judge {shown(url)} is no address: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise BadInputError("the judge's address holds a user or password, which would be stored: use --judge-key-env")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise BadInputError(f"judge {shown(url)} is no address of a server: it must look like http://localhost:8000/v1")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise BadInputError(f"judge {shown(url)} holds characters that an address cannot have: escape them")
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise BadInputError("the judge's key is empty or holds characters that a header cannot have: set it anew")
    if tries < 1 or not 0 < timeout < float("inf"):
        raise BadInputError(f"--judge-tries {tries} and --judge-timeout {timeout:g}: at least one try, above 0 seconds")
    return ChatClient(url.rstrip("/"), model, key, tries, timeout, seed)


def _opener() -> OpenerDirector:
    return build_opener(_NoRedirects)


def _read(response: HTTPResponse, ends: float) -> bytes:
    """The whole body; a server that sends it drop by drop, or without end, does not hold the run up.

    Raises:
        OSError: out of time.
        BadInputError: too long.
    """
    data = bytearray()
    while piece := response.read1(_PIECE):
        data += piece
        if len(data) > _MAX_REPLY_BYTES:
            raise BadInputError(f"a reply of more than {_MAX_REPLY_BYTES} bytes")
        if time.monotonic() > ends:
            raise TimeoutError("the reply did not end in time")
    return bytes(data)


def _text_of(completion: Mapping[str, object]) -> str:
    """`choices[0].message.content` of a chat completion.

    Raises:
        BadInputError: it is none.
    """
    choices = completion.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise BadInputError(f"a reply without choices[0].message: {shown(completion)}")
    content = message.get("content")
    return content if isinstance(content, str) else ""  # a refusal has null


def _asked_wait(header: str) -> float:
    """Seconds of Retry-After, a number or a date; 0 where it is neither."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _reason(error: Exception) -> str:
    """The cause, without the wrapping of `URLError`."""
    inner = getattr(error, "reason", None)
    cause = inner if isinstance(inner, Exception) else error
    return shown(f"{type(cause).__name__}: {cause}")
