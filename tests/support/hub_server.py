"""A model hub on loopback: the requests that huggingface_hub makes, answered from folders.

A process whose ``HF_ENDPOINT`` is ``HubServer.endpoint`` uses it. It has the endpoints ``/api/models`` (a search),
``/api/models/ID`` (also ``/revision/COMMIT``), ``/api/models/ID/tree/COMMIT`` and ``/ID/resolve/COMMIT/FILE``. A file's
name may have slashes; a tree holds all files, whichever folder of it was asked for.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".gguf")
"""The endings of files that the hub keeps apart from git, under their SHA-256."""


@dataclass(frozen=True)
class Repository:
    """A model's files at one commit. ``base_model`` is what its card says that it is a quantization of."""

    files: Mapping[str, bytes]
    base_model: str | None = None
    downloads: int = 0

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(map(len, self.files.values()))


def repository(folder: Path, base_model: str | None = None, downloads: int = 0) -> Repository:
    """The files of a folder, published."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return Repository(files, base_model, downloads)


@dataclass
class HubServer:
    """``requests`` are those that were made.

    A download of a file in ``held`` stops halfway, which sets ``stopped``, until ``release`` is set.
    """

    repositories: dict[str, Repository]
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def downloaded(self, model: str) -> list[str]:
        """The files whose content was asked for."""
        prefix = f"GET /{model}/resolve/"
        return [each.split("/")[-1] for each in self.requests if each.startswith(prefix)]


@contextmanager
def hub_server(repositories: Mapping[str, Repository]) -> Iterator[HubServer]:
    """A server of these repositories, by id, for as long as the context lasts."""
    hub = HubServer(dict(repositories))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: ``HubServer.requests`` has them."""

    def _answer(self, body: bool) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append(f"{self.command} {path}")
        api, _, rest = path.partition("/api/models")
        if not api and not rest:
            self._send_json(self._found(query))
            return
        model, rest = _id((path if api else rest).removeprefix("/"))
        found, name = self.hub.repositories.get(model), "/".join(rest.split("/")[2:])
        if found is None:
            self._missing("RepoNotFound")
        elif not api:
            self._send_json(_tree(found) if rest.startswith("tree/") else _info(model, found))
        elif name not in found.files:
            self._missing("EntryNotFound")
        else:
            self._send_file(found, name, body)

    def _found(self, query: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        base = query["filter"][0].removeprefix("base_model:quantized:")
        of_base = [(name, each) for name, each in self.hub.repositories.items() if each.base_model == base]
        if "gguf" in query["filter"]:
            of_base = [pair for pair in of_base if any(name.endswith(".gguf") for name in pair[1].files)]
        return [_info(name, each) for name, each in sorted(of_base, key=lambda pair: -pair[1].downloads)]

    def _send_file(self, found: Repository, name: str, body: bool) -> None:
        content, first = found.files[name], 0
        if asked := self.headers.get("Range"):
            first = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{_etag(name, content)}"')
        self.send_header("X-Repo-Commit", found.commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body and name in self.hub.held:
            self.wfile.write(content[first : len(content) // 2])
            self.wfile.flush()
            self.hub.stopped.set()
            self.hub.release.wait()
            self.close_connection = True
        elif body:
            self.wfile.write(content[first:])

    def _send_json(self, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _missing(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", "not found")
        self.send_header("Content-Length", "0")
        self.end_headers()


def _id(path: str) -> tuple[str, str]:
    """A repository's id, and what follows it."""
    owner, name, *rest = path.split("/")
    return f"{owner}/{name}", "/".join(rest)


def _etag(name: str, content: bytes) -> str:
    """As the hub has it: the SHA-256 of a large file, and git's own digest of another."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _info(model: str, found: Repository) -> dict[str, Any]:
    config = json.loads(found.files.get("config.json", b"{}"))
    shown = {name: config[name] for name in ("model_type", "quantization_config") if name in config}
    card = {} if found.base_model is None else {"cardData": {"base_model": found.base_model}}
    return {
        "id": model,
        "sha": found.commit,
        "downloads": found.downloads,
        "config": shown,
        "siblings": [{"rfilename": name, "size": len(content)} for name, content in found.files.items()],
        **card,
    }


def _tree(found: Repository) -> list[dict[str, Any]]:
    return [
        {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": _etag(name, content)[:40],
            **({"lfs": _large(name, content)} if name.endswith(LARGE) else {}),
        }
        for name, content in found.files.items()
    ]


def _large(name: str, content: bytes) -> dict[str, Any]:
    return {"oid": _etag(name, content), "size": len(content), "pointerSize": 134}
