"""A hub on this machine: enough of its HTTP interface for the real client, transformers and PEFT.

`running_hub(folder)` serves from a thread. Clients run in a subprocess with `hub.env(...)`, because the client reads
its environment once, when it is imported, and because a suite that is offline must stay so.

Tokens: `OWNER` may write to `user/...`, `READER` may only read what is that user's, `STRANGER` is somebody else.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

from tests.hub.hub_store import Account, HubError, HubStore, StoredFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OWNER, READER, STRANGER = "hf_owner", "hf_reader", "hf_stranger"
_ACCOUNTS = {OWNER: Account("user", True), READER: Account("user", False), STRANGER: Account("somebody", True)}
_DROPPED = ("HF_", "HUGGING", "TRANSFORMERS_", "http_proxy", "https_proxy", "all_proxy")
_RANGE = re.compile(r"bytes=(\d+)-")
# Hub ids in cards; a name without a slash is refused, so that a card with a local folder's name fails.
_MODEL_ID = re.compile(r"[\w.-]+/[\w.-]+")


class LocalHub:
    """A running hub.

    Attributes:
        url: its address, for HF_ENDPOINT.
        store: its repositories, to fill and to look at.
        requests: `(method, path)` of every request, in order.
        broken: paths (regular expressions) that answer 500.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.store = HubStore(folder / "objects", _ACCOUNTS)
        self.requests: list[tuple[str, str]] = []
        self.broken: list[str] = []

    def env(self, *, token: str | None = None, home: str = "home", **more: str) -> dict[str, str]:
        """The environment of a client: this process's own without what concerns hubs and proxies.

        Args:
            token: OWNER, READER, STRANGER, or none.
            home: name of the client's HF_HOME; another one has an empty cache.
            more: further variables.
        """
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(self.folder / home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }
        return {**kept, **own, **({} if token is None else {"HF_TOKEN": token}), **more}

    def downloaded(self) -> set[str]:
        """`user/repo/path` of every file whose content was sent."""
        found = [re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path) for method, path in self.requests
                 if method == "GET"]  # fmt: skip
        return {f"{match[1]}/{match[2]}" for match in found if match}

    def uploads(self) -> int:
        """How many LFS objects were sent."""
        return sum(method == "PUT" for method, _ in self.requests)


@contextmanager
def running_hub(folder: Path) -> Iterator[LocalHub]:
    """Serve a hub that keeps everything below `folder`."""
    (folder / "objects").mkdir(parents=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}", folder)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _serve(self) -> None:
        self.hub: LocalHub = self.server.hub  # type: ignore[attr-defined]
        self.store = self.hub.store
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        self.query = parse_qs(parts.query)
        self.hub.requests.append((self.command, path))
        try:
            self._dispatch(parts.path)
        except HubError as error:
            headers = {"X-Error-Message": error.message} | ({"X-Error-Code": error.code} if error.code else {})
            self._answer({"error": error.message}, error.status, headers)

    def _dispatch(self, path: str) -> None:
        if any(re.search(pattern, unquote(path)) for pattern in self.hub.broken):
            raise HubError(500, None, "Internal Error")
        bearer = self.headers.get("Authorization", "")
        self.account = self.store.account(bearer.removeprefix("Bearer ") or None)
        for methods, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods:
                with self.store.lock:
                    handle(self, *(unquote(group) for group in match.groups()))
                return
        raise HubError(404, None, f"no such endpoint: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815 - the base's names

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # --- reading --------------------------------------------------------------------------------------------

    def who_am_i(self) -> None:
        if self.account is None:
            raise HubError(401, None, "Invalid username or password.")
        self._answer({"type": "user", "name": self.account.user, "auth": {"accessToken": {"role": "write"}}})

    def info(self, name: str, revision: str = "main") -> None:
        repository = self.store.readable(name, self.account)
        oid = repository.resolve(revision)
        siblings = [{"rfilename": path} for path in repository.commits[oid]]
        self._answer({"_id": name, "id": name, "modelId": name, "sha": oid, "private": repository.private,
                      "gated": repository.gated, "tags": [], "siblings": siblings})  # fmt: skip

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        repository = self.store.readable(name, self.account)
        files = repository.commits[repository.resolve(revision)]
        below = {path: file for path, file in files.items() if not folder or path.startswith(f"{folder}/")}
        if folder and not below:
            raise HubError(404, "EntryNotFound", f"{folder} does not exist")
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            below = {path: file for path, file in below.items() if "/" not in path.removeprefix(f"{folder}/")}
        self._answer([_entry(path, file) for path, file in below.items()])

    def refs(self, name: str) -> None:
        branches = self.store.readable(name, self.account).branches
        listed = [{"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": oid} for branch, oid in
                  branches.items()]  # fmt: skip
        self._answer({"branches": listed, "converts": [], "tags": [], "pullRequests": []})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.store.readable(name, self.account)
        oid = repository.resolve(revision)
        file = repository.commits[oid].get(path)
        commit = {"X-Repo-Commit": oid}
        if file is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", **commit}
            self._send(b"", 404, headers)
            return
        data = self.store.path(file.sha256).read_bytes()
        wanted = _RANGE.match(self.headers.get("Range", ""))
        headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", **commit}
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
        if wanted and int(wanted[1]) < len(data):
            begin = int(wanted[1])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(data[begin:], 206, headers)
        else:
            self._send(data, 200, headers)

    # --- writing --------------------------------------------------------------------------------------------

    def create(self) -> None:
        wanted = json.loads(self.body)
        user = wanted.get("organization") or (self.account.user if self.account else "nobody")
        name = f"{user}/{wanted['name']}"
        self.store.check_writer(name, self.account)
        if name in self.store.repositories:
            self._answer({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
            return
        self.store.create(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        self._answer({"url": f"{self.hub.url}/{name}", "name": name})

    def validate_yaml(self) -> None:
        """The hub's checks that matter here: metadata that parses, and ids that can be ids."""
        match = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError as error:
            self._answer({"errors": [{"message": f"YAML: {error}"}], "warnings": []}, 400)
            return
        bases = metadata.get("base_model", [])
        wrong = [base for base in ([bases] if isinstance(bases, str) else bases) if not _MODEL_ID.fullmatch(base)]
        errors = [{"message": f'"base_model" {base!r} is not a valid model id'} for base in wrong]
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        self._answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def create_branch(self, name: str, branch: str) -> None:
        self.store.check_writer(name, self.account)
        repository = self.store.readable(name, self.account)
        if branch in repository.branches:
            raise HubError(409, None, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.branches[branch] = repository.resolve(start)
        self._answer({})

    def preupload(self, name: str, revision: str) -> None:
        self.store.check_writer(name, self.account)
        repository = self.store.readable(name, self.account)
        present = repository.commits[repository.resolve(revision)]
        self._answer({"files": [
            {"path": path, "uploadMode": "lfs" if self.store.goes_to_lfs(path) else "regular", "shouldIgnore": False,
             **({"oid": present[path].etag} if path in present else {})}
            for path in (file["path"] for file in json.loads(self.body)["files"])
        ]})  # fmt: skip

    def lfs_batch(self, name: str) -> None:
        self.store.check_writer(name, self.account)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.hub.url}/lfs/{wanted['oid']}"
            known = self.store.path(wanted["oid"]).exists()
            objects.append(wanted | ({} if known else {"actions": {"upload": {"href": href}}}))
        self._answer({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, None, "the content has another hash than announced")
        self.store.path(oid).write_bytes(self.body)
        self._answer({})

    def commit(self, name: str, revision: str) -> None:
        self.store.check_writer(name, self.account)
        repository = self.store.readable(name, self.account)
        files = dict(repository.commits[repository.resolve(revision)])
        message = ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "header":
                message = value["summary"]
            elif operation["key"] == "file":
                files[value["path"]] = self.store.keep(base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.store.keep(self.store.path(value["oid"]).read_bytes(), True)
            else:
                raise HubError(400, None, f"operation {operation['key']} is not served here")
        oid = repository.commit(revision, files, message)
        self._answer({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})


def _entry(path: str, file: StoredFile) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": file.size, "oid": file.blob_id}
    return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.is_lfs else {})


_REPO = r"([^/]+/[^/]+)"
_API = rf"/api/models/{_REPO}"
_ROUTES: tuple[tuple[tuple[str, ...], str, Callable[..., None]], ...] = (
    (("GET",), r"/api/whoami-v2", _Handler.who_am_i),
    (("POST",), r"/api/repos/create", _Handler.create),
    (("POST",), r"/api/validate-yaml", _Handler.validate_yaml),
    (("GET",), _API, _Handler.info),
    (("GET",), rf"{_API}/revision/([^/]+)", _Handler.info),
    (("GET",), rf"{_API}/tree/([^/]+)", _Handler.tree),
    (("GET",), rf"{_API}/tree/([^/]+)/(.+)", _Handler.tree),
    (("GET",), rf"{_API}/refs", _Handler.refs),
    (("POST",), rf"{_API}/branch/([^/]+)", _Handler.create_branch),
    (("POST",), rf"{_API}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), rf"{_API}/commit/([^/]+)", _Handler.commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/lfs/([0-9a-f]{64})", _Handler.lfs_put),
    (("GET", "HEAD"), rf"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
