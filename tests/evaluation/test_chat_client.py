import json
import threading
import time
from email.utils import formatdate

import pytest

from alignez_bake.errors import BadInputError
from alignez_bake.evaluation import chat_client as module
from alignez_bake.evaluation.chat_client import JudgeUnavailableError, chat_client
from tests.evaluation.judge_server import Reply, completion, judge_server

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that were waited for between tries; nobody really waits."""
    found = []
    monkeypatch.setattr(module.time, "sleep", found.append)
    return found


def client(url, *, key=None, tries=3, timeout=60.0, seed=0):
    return chat_client(url, "judge-1", key, tries=tries, timeout=timeout, seed=seed)


def in_turn(*replies):
    """The replies one after the other, the last one for ever."""
    left = list(replies)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_what_is_asked(waits):
    with judge_server(lambda _: "A") as server:
        assert client(f"{server.url}/", key=KEY).reply("Which?") == "A"
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.json["model"] == "judge-1"
    assert request.json["messages"] == [{"role": "user", "content": "Which?"}]
    assert request.json["temperature"] == 0
    assert waits == []


def test_no_key_no_header():
    with judge_server(lambda _: "A") as server:
        client(server.url).reply("Which?")
    assert "Authorization" not in server.requests[0].headers


def test_the_key_is_in_no_text():
    assert KEY not in repr(client("http://localhost/v1", key=KEY))
    with (
        judge_server(lambda _: Reply(f"wrong key {KEY}".encode(), 401)) as server,
        pytest.raises(JudgeUnavailableError, match=r"status 401, 'wrong key \*\*\*'") as caught,
    ):
        client(server.url, key=KEY).reply("Which?")
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_failures_that_pass_are_tried_again_with_growing_waits(waits):
    with judge_server(in_turn(Reply(status=503), Reply(status=500), "B")) as server:
        assert client(server.url).reply("Which?") == "B"
    assert len(server.requests) == 3
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2
    again = []
    again += [client("http://localhost/v1")._wait("Which?", attempt) for attempt in (1, 2)]
    assert again == waits
    assert client("http://localhost/v1", seed=1)._wait("Which?", 1) != waits[0]
    assert client("http://localhost/v1", tries=99)._wait("Which?", 90) <= 60


@pytest.mark.parametrize("asked", ["7", None])
def test_a_server_that_asks_to_wait_is_left_alone(waits, asked):
    headers = {"Retry-After": asked or formatdate(time.time() + 30, usegmt=True)}
    with judge_server(in_turn(Reply(status=429, headers=headers), "A")) as server:
        client(server.url).reply("Which?")
    (waited,) = waits
    assert waited == 7 if asked else 25 < waited <= 30


def test_a_wait_that_is_too_long_ends_the_run(waits):
    with (
        judge_server(lambda _: Reply(status=429, headers={"Retry-After": "3600"})) as server,
        pytest.raises(JudgeUnavailableError, match="asks to wait for 3600 s, and at most 600 s are waited"),
    ):
        client(server.url).reply("Which?")
    assert len(server.requests) == 1
    assert waits == []


@pytest.mark.parametrize("header", ["soon", "", "²", "-3", "Sun, 99 Foo 2020 00:00:00 GMT"])
def test_a_wait_that_is_no_time_is_none(header):
    assert module._asked_wait(header) == 0


def test_a_server_that_is_not_there(waits):
    with judge_server(lambda _: "A") as server:
        url = server.url
    with pytest.raises(JudgeUnavailableError, match=r"gave no reply in 4 tries: .*Connection refused"):
        client(url, tries=4).reply("Which?")
    assert len(waits) == 3


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "is not valid JSON"),
        (b"[]", "it must be an object"),
        (b"{}", r"without choices\[0\].message"),
        (b'{"choices": [{"message": "A"}]}', r"without choices\[0\].message"),
        (b'{"choices": {}}', r"without choices\[0\].message"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b" " * (1024 * 1024 + 1), "more than 1048576 bytes"),
        (b"[" * 100_000, "nested"),
    ],
)
def test_replies_that_are_no_completion(body, message):
    with (
        judge_server(lambda _: Reply(body)) as server,
        pytest.raises(JudgeUnavailableError, match=f"in 2 tries: .*{message}"),
    ):
        client(server.url, tries=2).reply("Which?")
    assert len(server.requests) == 2


def test_a_body_that_never_ends():
    with (
        judge_server(lambda _: Reply(b" " * 1000, endless=True)) as server,
        pytest.raises(JudgeUnavailableError, match=r"more than 1048576 bytes|did not end in time"),
    ):
        client(server.url, tries=1).reply("Which?")


def test_a_server_that_says_nothing():
    ended = threading.Event()

    def silent(_):
        ended.wait()
        return "A"

    with judge_server(silent) as server:
        with pytest.raises(JudgeUnavailableError, match=r"timed out|TimeoutError"):
            client(server.url, tries=1, timeout=0.2).reply("Which?")
        ended.set()


def test_a_refusal_has_no_text():
    with judge_server(lambda _: Reply(completion(None))) as server:
        assert client(server.url).reply("Which?") == ""


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(status):
    with judge_server(lambda _: "A") as other:
        headers = {"Location": f"{other.url}/chat/completions"}
        with (
            judge_server(lambda _: Reply(status=status, headers=headers)) as server,
            pytest.raises(JudgeUnavailableError, match=f"status {status}"),
        ):
            client(server.url, key=KEY).reply("Which?")
    assert other.requests == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/v1", "must look like"),
        ("file:///etc/passwd", "must look like"),
        ("http:///v1", "must look like"),
        ("http://host/v1?key=1", "must look like"),
        ("http://host:port/v1", "is no address"),
        ("http://[::1/v1", "is no address"),
        ("http://host/v 1", "characters that an address cannot have"),
        ("http://hóst/v1", "characters that an address cannot have"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(BadInputError, match=message):
        client(url)


def test_a_password_in_the_address_is_not_repeated():
    with pytest.raises(BadInputError, match="holds a user or password") as caught:
        client("http://me:hidden@host/v1")
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "a\nb", "a b", "ké"])
def test_keys_that_no_header_can_hold(key):
    with pytest.raises(BadInputError, match="key is empty or holds characters") as caught:
        client("http://host/v1", key=key)
    assert not key or repr(key)[1:-1] not in str(caught.value)


@pytest.mark.parametrize(
    "settings", [{"tries": 0}, {"timeout": 0.0}, {"timeout": float("inf")}, {"timeout": float("nan")}]
)
def test_bounds(settings):
    with pytest.raises(BadInputError, match="at least one try, above 0 seconds"):
        client("http://host/v1", **settings)


def test_any_text_can_be_asked():
    with judge_server(lambda request: json.dumps(request.question)) as server:
        text = 'Ünïcode "quotes" {braces}\n\ud800'
        assert json.loads(client(server.url).reply(text)) == text
