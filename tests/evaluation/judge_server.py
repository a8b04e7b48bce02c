"""An OpenAI-compatible server in a thread, which replies what a test says."""

from __future__ import annotations

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ANSWERS = re.compile(r"<answer_a>\n(.*?)\n</answer_a>\s*<answer_b>\n(.*?)\n</answer_b>", re.DOTALL)


class Reply(NamedTuple):
    """A whole HTTP response; `body` is sent as it is, without its length where `endless`."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}
    endless: bool = False


class Request(NamedTuple):
    """What arrived."""

    path: str
    headers: dict[str, str]
    json: dict[str, Any]

    @property
    def question(self) -> str:
        """The text that was asked."""
        return str(self.json["messages"][0]["content"])

    @property
    def answers(self) -> tuple[str, str]:
        """Both answers of a comparison."""
        found = _ANSWERS.search(self.question)
        assert found
        return found[1], found[2]


class JudgeServer:
    """A running server.

    Attributes:
        url: up to `/v1`.
        requests: all that arrived.
        reply: makes the answer to a request, text or a whole response.
    """

    def __init__(self, url: str, reply: Callable[[Request], str | Reply]) -> None:
        self.url = url
        self.reply = reply
        self.requests: list[Request] = []


def completion(text: str | None) -> bytes:
    """A chat completion."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def judge_server(reply: Callable[[Request], str | Reply]) -> Iterator[JudgeServer]:
    """Serve until the context ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    running = JudgeServer(f"http://127.0.0.1:{server.server_address[1]}/v1", reply)
    server.judge = running  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("no_proxy", "127.0.0.1")
            yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def do_GET(self) -> None:
        """Only where a redirect was followed."""
        self._answer(b"")

    def do_POST(self) -> None:
        """Any path is a question."""
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _answer(self, body: bytes) -> None:
        judge: JudgeServer = self.server.judge  # type: ignore[attr-defined]
        request = Request(self.path, dict(self.headers), json.loads(body or b"{}"))
        judge.requests.append(request)
        reply = judge.reply(request)
        if isinstance(reply, str):
            reply = Reply(completion(reply))
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if not reply.endless:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        try:
            while True:
                self.wfile.write(reply.body)
                self.wfile.flush()
                if not reply.endless:
                    break
        except OSError:  # the client had enough
            pass


def prefers(word: str) -> Callable[[Request], str]:
    """A judge that finds the answer better that has a word, whatever its place."""

    def reply(request: Request) -> str:
        first, second = (word in answer for answer in request.answers)
        return "C" if first == second else "A" if first else "B"

    return reply
