"""A local HuggingFace hub: real HTTP, for `HF_ENDPOINT`.

    with LocalHub() as hub:
        commit = hub.add("org/name", {"config.json": b"{}", "model.safetensors": b"..."})
        hub.tag("org/name", "v1.0", commit)
        hub.fail("model.safetensors", status=500, times=2)
        os.environ["HF_ENDPOINT"] = hub.url

It answers what `huggingface_hub` asks for downloads: model info by branch, tag or commit, with
sizes, git blob ids and LFS digests; and files (HEAD and GET, ETag, X-Repo-Commit, ranges, LFS files
through a redirect as on the real hub). Private and gated repositories want a token. Faults are
queued for each path and used up in order; `requests` keeps what was asked.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_LFS = (".safetensors", ".bin", ".onnx", ".h5", ".msgpack", ".model", ".pt")
_INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
_REFS = re.compile(r"/api/models/([^/]+/[^/]+)/refs")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BLOB = re.compile(r"/lfs/([0-9a-f]{64})")


@dataclass
class Fault:
    """What happens to one answer. `kind`: status, truncate, corrupt, stall, pause or drop."""

    kind: str
    status: int = 500
    after: int = 0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)
    private: bool = False
    gated: bool = False


class LocalHub:
    """The hub's state and its server thread.

    Attributes:
        url: for HF_ENDPOINT.
        tokens: those that may read private and gated repositories.
        requests: (method, path, headers) of every request, in order.
    """

    def __init__(self) -> None:
        self.tokens: set[str] = set()
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.stalled = threading.Event()
        self._repositories: dict[str, Repository] = {}
        self._blobs: dict[str, bytes] = {}
        self._info: dict[str, dict[str, Any]] = defaultdict(dict)
        self._faults: dict[str, list[Fault]] = defaultdict(list)
        self._released = threading.Event()
        self._continued = threading.Event()
        self._lock = threading.Lock()

    # -- content ---------------------------------------------------------------------------------

    def add(
        self,
        repo_id: str,
        files: dict[str, bytes] | Path,
        *,
        branch: str = "main",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """Make a commit of these files (a folder's, or given), replacing the branch; its id."""
        if isinstance(files, Path):
            paths = [path for path in sorted(files.rglob("*")) if path.is_file()]
            files = {str(path.relative_to(files)): path.read_bytes() for path in paths}
        digest = hashlib.sha1(repr(sorted((n, _sha256(c)) for n, c in files.items())).encode())
        commit = digest.hexdigest()
        repository = self._repositories.setdefault(repo_id, Repository())
        repository.commits[commit] = dict(files)
        repository.refs[branch] = commit
        repository.private, repository.gated = private, gated
        self._blobs |= {_sha256(content): content for content in files.values()}
        return commit

    def tag(self, repo_id: str, name: str, commit: str) -> None:
        """Have a tag stand for a commit."""
        self._repositories[repo_id].refs[name] = commit
        self._repositories[repo_id].tags.add(name)

    def announce(self, path: str, **values: Any) -> None:
        """Lie about a file in model info: size=, sha256= or blob_id= (None leaves it out)."""
        self._info[path] |= values

    def redirect_blobs_to(self, url: str) -> None:
        """Send clients to another host for LFS files, as the hub does with its CDN."""
        self.blob_url = url

    # -- faults ----------------------------------------------------------------------------------

    def fail(self, path: str, *, status: int, times: int = 1, **headers: str) -> None:
        """Answer the next requests whose path contains `path` with an HTTP status."""
        fixed = {name.replace("_", "-"): value for name, value in headers.items()}
        self._faults[path] += [Fault("status", status=status, headers=fixed)] * times

    def truncate(self, path: str, *, after: int, times: int = 1) -> None:
        """Close the connection after so many bytes of the body."""
        self._faults[path] += [Fault("truncate", after=after)] * times

    def corrupt(self, path: str, *, times: int = 1) -> None:
        """Send other bytes, as many as there should be."""
        self._faults[path] += [Fault("corrupt")] * times

    def drop(self, path: str, *, times: int = 1) -> None:
        """Close the connection without an answer."""
        self._faults[path] += [Fault("drop")] * times

    def stall(self, path: str, *, after: int = 0, times: int = 1) -> None:
        """Send so many bytes, then nothing until the hub stops; `stalled` is set meanwhile."""
        self._faults[path] += [Fault("stall", after=after)] * times

    def pause(self, path: str, *, after: int = 0) -> None:
        """Send so many bytes of the next such file, the others after `go_on`."""
        self._faults[path] += [Fault("pause", after=after)]

    def go_on(self) -> None:
        """End every pause."""
        self._continued.set()

    def asked(self, part: str) -> int:
        """How many requests had this in their path."""
        return sum(part in path for _, path, _ in self.requests)

    # -- server ----------------------------------------------------------------------------------

    def __enter__(self) -> LocalHub:
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = self.blob_url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exc: object) -> None:
        self._released.set()
        self.go_on()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def next_fault(self, path: str) -> Fault | None:
        with self._lock:
            for part, faults in self._faults.items():
                if part in path and faults:
                    return faults.pop(0)
        return None

    def wait_to_go_on(self) -> None:
        """Wait for the end of a pause."""
        self._continued.wait(timeout=120)

    def hold(self) -> None:
        """Wait until the hub stops."""
        self.stalled.set()
        self._released.wait(timeout=120)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_blob_id(content: bytes) -> str:
    """The id that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    owner: LocalHub
    protocol_version = "HTTP/1.1"
    timeout = 120

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def end_headers(self) -> None:
        # one request per connection: no idle connection keeps a thread of the server alive
        self.send_header("Connection", "close")
        super().end_headers()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.close_connection = True
        path = unquote(urlsplit(self.path).path)
        raw = urlsplit(self.path).path
        self.owner.requests.append((self.command, path, dict(self.headers.items())))
        fault = self.owner.next_fault(path)
        if fault is not None and fault.kind == "drop":
            return
        if fault is not None and fault.kind == "status":
            self._error(fault.status, "", "made to fail", **fault.headers)
        elif match := _BLOB.fullmatch(path):
            self._send(self.owner._blobs[match[1]], fault, body=body)
        elif match := _REFS.fullmatch(raw):
            self._refs(match[1], fault)
        elif match := _INFO.fullmatch(raw):
            self._model_info(match[1], unquote(match[2] or "main"), fault)
        elif match := _FILE.fullmatch(raw):
            self._file(match[1], unquote(match[2]), unquote(match[3]), fault, body=body)
        else:
            self._error(404, "", "Not Found")

    def _find(self, repo_id: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files, or None when the refusal was already sent."""
        repository = self.owner._repositories.get(repo_id)
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        trusted = token in self.owner.tokens
        if token and not trusted:
            self._error(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and not trusted):
            self._error(404 if trusted else 401, "RepoNotFound", "Repository not found")
        elif repository.gated and not trusted and not self.path.startswith("/api/"):
            self._error(401, "GatedRepo", f"Access to model {repo_id} is restricted.")
        else:
            commit = repository.refs.get(revision, revision)
            if commit in repository.commits:
                return commit, repository.commits[commit]
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _model_info(self, repo_id: str, revision: str, fault: Fault | None) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        commit, files = found
        siblings = [self._sibling(name, files[name]) for name in sorted(files)]
        info = {"_id": "0", "id": repo_id, "modelId": repo_id, "sha": commit, "siblings": siblings}
        content = json.dumps(info | {"private": False, "tags": [], "downloads": 0}).encode()
        self._send(content, fault, body=True, content_type="application/json")

    def _refs(self, repo_id: str, fault: Fault | None) -> None:
        if self._find(repo_id, "main") is None:
            return
        repository = self.owner._repositories[repo_id]
        found: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": []}
        for name, commit in repository.refs.items():
            kind, folder = ("tags", "tags") if name in repository.tags else ("branches", "heads")
            ref = {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": commit}
            found[kind].append(ref)
        self._send(json.dumps(found).encode(), fault, body=True, content_type="application/json")

    def _sibling(self, name: str, content: bytes) -> dict[str, Any]:
        lies = self.owner._info.get(name, {})
        size = lies.get("size", len(content))
        entry: dict[str, Any] = {
            "rfilename": name,
            "size": size,
            "blobId": lies.get("blob_id", git_blob_id(content)),
        }
        if name.endswith(_LFS):
            sha256 = lies.get("sha256", _sha256(content))
            entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
        return entry

    def _file(
        self, repo_id: str, revision: str, name: str, fault: Fault | None, *, body: bool
    ) -> None:
        found = self._find(repo_id, revision)
        if found is None:
            return
        commit, files = found
        content = files.get(name)
        if content is None:
            self._error(404, "EntryNotFound", "Entry not found", x_repo_commit=commit)
        elif name.endswith(_LFS) and fault is None:
            self.send_response(302)
            self.send_header("Location", f"{self.owner.blob_url}/lfs/{_sha256(content)}")
            self.send_header("X-Repo-Commit", commit)
            self.send_header("X-Linked-Etag", f'"{_sha256(content)}"')
            self.send_header("X-Linked-Size", str(len(content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            etag = _sha256(content) if name.endswith(_LFS) else git_blob_id(content)
            self._send(content, fault, body=body, x_repo_commit=commit, etag=f'"{etag}"')

    def _send(self, content: bytes, fault: Fault | None, *, body: bool, **headers: str) -> None:
        if fault is not None and fault.kind == "corrupt":
            content = bytes(byte ^ 0xFF for byte in content)
        start = self._range_start(len(content))
        part = content[start:]
        self.send_response(206 if start else 200)
        if start:
            whole = len(content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if not body:
            return
        if fault is not None and fault.kind in ("truncate", "stall"):
            self.wfile.write(part[: fault.after])
            self.wfile.flush()
            if fault.kind == "stall":
                self.owner.hold()
            return
        try:
            if fault is not None and fault.kind == "pause":
                self.wfile.write(part[: fault.after])
                part = part[fault.after :]
                self.owner.wait_to_go_on()
            self.wfile.write(part)
        except (BrokenPipeError, ConnectionResetError):  # the client was cancelled
            return

    def _range_start(self, length: int) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range") or "")
        return int(match[1]) if match and int(match[1]) < length else 0

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def wait_until(condition: Any, *, seconds: float = 60.0) -> None:
    """Poll a condition until it holds; AssertionError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)
