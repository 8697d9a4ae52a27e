"""A real S3 server on loopback (moto's), and faults in front of it: requests fail in the ways that networks do."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

Kind = Literal["500", "503", "412", "timeout", "lost", "answer lost", "truncated"]
"""``lost``: the connection ends before the server does anything; ``answer lost``: after it did it."""
READ_TIMEOUT_S = 0.4
"""How long an impatient client waits for an answer; others wait as users' do."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAQHARNESSTESTKEYS",
    "AWS_SECRET_ACCESS_KEY": "a-secret-that-nobody-may-see",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class ObjectStore:
    """The server. ``fault`` chooses, by method, path and number of the request, how it fails; None: it does not."""

    endpoint: str = ""
    fault: Callable[[str, str, int], Kind | None] = lambda method, path, number: None
    requests: list[tuple[str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def bucket(self, name: str) -> str:
        """A new bucket's URL."""
        urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")).close()
        return f"s3://{name}"

    @contextmanager
    def failing(self, fault: Callable[[str, str, int], Kind | None]) -> Iterator[list[tuple[str, str]]]:
        """Within it requests fail; the list holds what was requested."""
        self.requests.clear()
        self.fault = fault
        try:
            yield self.requests
        finally:
            self.fault = lambda method, path, number: None

    def _next(self, method: str, path: str) -> Kind | None:
        with self._lock:
            self.requests.append((method, path))
            return self.fault(method, path, len(self.requests))

    def wrap(self, app: Any) -> Any:
        def serve(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            kind = self._next(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            connection: socket.socket = environ["werkzeug.socket"]
            if kind in ("500", "503", "412"):
                _drain(environ)
                code, words = {"500": ("InternalError", "Internal"), "503": ("SlowDown", "Slow")}.get(
                    kind, ("PreconditionFailed", "Failed")
                )
                start(f"{kind} {words}", [("Content-Type", "application/xml")])
                return [f"<Error><Code>{code}</Code><Message>{words}</Message></Error>".encode()]
            if kind == "lost":
                return _cut(connection)
            if kind == "timeout":
                threading.Event().wait(READ_TIMEOUT_S * 2)
                return _cut(connection)
            if kind is None:
                return app(environ, start)
            answer: dict[str, Any] = {}
            body = b"".join(app(environ, lambda status, headers, error=None: answer.update(s=status, h=headers)))
            if kind == "answer lost":
                return _cut(connection)
            start(answer["s"], answer["h"])  # of its length only half comes
            return _half(body, connection)

        return serve


def _drain(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def _cut(connection: socket.socket) -> Iterable[bytes]:
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _half(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield body[: len(body) // 2]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def impatient(patch: pytest.MonkeyPatch) -> None:
    """Has clients that are made from now on give up soon."""
    from fsspec.config import conf

    patch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": READ_TIMEOUT_S}})


@contextmanager
def served() -> Iterator[ObjectStore]:
    """The server, and an environment in which the harness finds it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from s3fs import S3FileSystem
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            pass

    store = ObjectStore()
    app = store.wrap(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    store.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": store.endpoint}.items():
            patch.setenv(name, value)
        patch.setattr("harness.storage.objects.FIRST_PAUSE_S", 0.01)
        S3FileSystem.clear_instance_cache()
        yield store
        S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()
    thread.join()
