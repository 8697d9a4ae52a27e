"""Objects below a URL, through fsspec: ``s3://``, ``gs://``, ``hf://``, ``memory://`` and whatever else it knows.

An object store has no folders, no renames and no locks. What it has is an object that appears whole, and, on S3 and
GCS, a write on a condition: only if there is no such object, or only if it is still the one that was read. ``Objects``
offers just that, with a bound on every read and on the number of tries, and with errors that name the URL and hold no
credentials. Where the libraries find credentials and endpoints is theirs: ``AWS_…`` variables, profiles, fsspec's
configuration.
"""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from harness.core.foreign import shortened, shown
from harness.errors import ResultsError, UsageError
from harness.storage.anonymizer import Anonymizer

T = TypeVar("T")
_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.DOTALL | re.IGNORECASE)
_LOGIN = re.compile(r"[^/]*@")
TRIES = 4
"""How often an operation is tried before it fails."""
FIRST_PAUSE_S = 0.25
"""Before the second try; each later pause is three times as long."""
BATCH_BYTES = 64 * 2**20
"""Of objects that are read at the same time."""
BATCH_OBJECTS = 256
MAX_REASON = 300
"""Characters of what a library reports."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Another try would end in the same way."""
_S3_CONFIGURATION = {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}}
"""Botocore's: it tries once, and so does s3fs, since ``Objects`` tries again."""


def is_url(location: object) -> bool:
    """Whether a results folder or a cache is named by a URL. ``file://`` is none: it is a path."""
    found = _URL.match(str(location))
    return found is not None and found[1].lower() != "file"


def local_path(location: str | Path) -> Path:
    """The path of a folder on this machine, also if it is written as ``file://…``."""
    return Path(str(location).removeprefix("file://"))


@dataclass(frozen=True)
class Listed:
    """An object as its store lists it. ``version`` differs if the content does."""

    name: str
    bytes: int
    version: str
    modified: datetime | None = None


@dataclass(frozen=True)
class Objects:
    """The objects below a URL. Names are relative to it, with slashes.

    Methods raise OSError if the store refuses or cannot be reached, after a few tries; FileNotFoundError if the bucket
    or the object does not exist. Raises UsageError for a URL that cannot be used.
    """

    url: str

    def __post_init__(self) -> None:
        found = _URL.fullmatch(self.url)
        if found is None or not found[2].strip("/"):
            raise UsageError(f"{shown(self.url)}: not a URL of a folder, such as s3://bucket/results")
        if _LOGIN.match(found[2]):
            raise UsageError(
                f"{found[1]}://…: the URL holds a login; give credentials as the library reads them (AWS_PROFILE, "
                "AWS_ACCESS_KEY_ID …), so that they get into no message and no record"
            )
        object.__setattr__(self, "url", f"{found[1].lower()}://{found[2]}".rstrip("/"))

    def list(self, folder: str = "") -> Mapping[str, Listed]:
        """Every object below a folder, by its name; none if there is no such folder."""
        self._system.invalidate_cache()
        root = self._path(folder)
        found = self._try("list", folder, lambda: self._system.find(root, detail=True))
        cut = len(self._path("")) + 1
        return {
            info["name"][cut:]: Listed(info["name"][cut:], info["size"] or 0, _version(info), _modified(info))
            for info in found.values()
            if info["type"] == "file" and info["name"].startswith(f"{root}/")
        }

    def names(self, folder: str) -> tuple[str, ...]:
        """The names of the objects and folders directly in a folder."""
        self._system.invalidate_cache()
        root = self._path(folder)
        try:
            found = self._try("list", folder, lambda: self._system.ls(root, detail=False))
        except FileNotFoundError:
            return ()
        below = (each.rstrip("/") for each in found)
        return tuple(each.rpartition("/")[2] for each in below if each != root)

    def stat(self, name: str) -> Listed:
        """One object as it is now. Raises FileNotFoundError."""
        self._system.invalidate_cache()
        info = self._try("read", name, lambda: self._system.info(self._path(name)))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", self.at(name))
        return Listed(name, info["size"] or 0, _version(info), _modified(info))

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The content of an object. Raises FileNotFoundError; ResultsError if it is larger than ``limit_bytes``.

        It is the content of one moment, also of an object that is being replaced: the store gives it out whole, where
        the bytes that were just listed may be fewer or more than there are by now.
        """
        largest = self.stat(name).bytes
        if largest <= limit_bytes:
            content: bytes = self._try("read", name, lambda: self._system.cat_file(self._path(name)))
            largest = len(content)
        if largest > limit_bytes:
            raise ResultsError(f"{self.at(name)}: larger than {limit_bytes} bytes, the most that it may have")
        return content

    def read_all(self, wanted: Sequence[Listed]) -> Iterator[tuple[Listed, bytes]]:
        """The objects with their content, many at the same time, never more bytes of each than were listed.

        Raises OSError for one that is now shorter, or gone: a reader that lists again will see that.
        """
        for batch in _batches(wanted):
            done: dict[str, bytes] = {each.name: b"" for each in batch if each.bytes == 0}  # S3 has no range of nothing
            self._try("read", batch[0].name, lambda batch=batch, done=done: self._read_missing(batch, done))  # type: ignore[misc]
            for each in batch:
                yield each, done[each.name]

    def _read_missing(self, batch: Sequence[Listed], done: dict[str, bytes]) -> None:
        """Adds what is not yet in ``done``, and raises the first error when all others were read."""
        left = [each for each in batch if each.name not in done]
        if not left:
            return
        paths = [self._path(each.name) for each in left]
        found = self._system.cat_ranges(paths, [0] * len(left), [each.bytes for each in left], on_error="return")
        first: BaseException | None = None
        for each, content in zip(left, found, strict=True):
            if isinstance(content, BaseException):
                first = first or content
            elif len(content) != each.bytes:
                cut = f"{self.at(each.name)}: {len(content)} of {each.bytes} bytes were read"
                first = first or OSError(errno.EIO, cut)
            else:
                done[each.name] = bytes(content)
        if first is not None:
            raise first

    def fetch(self, listed: Listed, target: Path) -> None:
        """Writes an object of any size to a file, whole. That its content is right is for the caller to check."""

        def fetch() -> None:
            self._system.get_file(self._path(listed.name), str(target))
            if (size := target.stat().st_size) != listed.bytes:
                raise OSError(errno.EIO, f"{size} of {listed.bytes} bytes were read")

        self._try("read", listed.name, fetch)

    def write(self, name: str, content: bytes) -> None:
        """Creates or replaces an object."""
        self._try("write", name, lambda: self._system.pipe_file(self._path(name), content))

    def send(self, source: Path, name: str) -> None:
        """Creates or replaces an object by the content of a file of any size."""
        self._try("write", name, lambda: self._system.put_file(str(source), self._path(name)))

    def create(self, name: str, content: bytes) -> bool:
        """Creates an object if there is none; returns whether the object is now this content.

        A write may succeed and its answer be lost, so an object with this very content counts as the one written.
        """

        def write() -> bool:
            try:
                self._system.pipe_file(self._path(name), content, mode="create")
            except FileExistsError:
                return self._holds(name, content)
            return True

        return self._try("write", name, write)

    def swap(self, name: str, content: bytes, version: str) -> bool:
        """Replaces an object if it is still of this version; returns whether the object is now this content.

        Only S3 makes sure of it: elsewhere somebody may write between the comparison and the write.
        """

        def write() -> bool:
            try:
                now = self.stat(name)
            except FileNotFoundError:
                return False
            if now.version != version:
                return self._holds(name, content)
            condition = {"IfMatch": version} if self._protocol == "s3" else {}
            self._system.pipe_file(self._path(name), content, **condition)
            return True

        return self._try("write", name, write)

    def copy(self, source: str, target: str) -> None:
        """Copies an object within the store."""
        self._try("copy", source, lambda: self._system.copy(self._path(source), self._path(target)))

    def now(self, probe: str) -> datetime | None:
        """The store's own time: that of an object ``probe``, written now and deleted; None if it lists no times."""
        self.write(probe, b"")
        now = self.stat(probe).modified
        self.delete([probe])
        return now

    def delete(self, names: Sequence[str]) -> None:
        """Deletes objects; what does not exist is left alone."""
        if names:
            with_missing = [self._path(name) for name in names]
            self._try("delete", names[0], lambda: self._delete(with_missing))

    def _delete(self, paths: Sequence[str]) -> None:
        try:
            self._system.rm(list(paths))
        except FileNotFoundError:
            for path in paths:
                if self._system.exists(path):
                    self._system.rm([path])

    def at(self, name: str) -> str:
        """The URL of an object or a folder, for messages."""
        return shown(f"{self.url}/{name}" if name else self.url)

    def _holds(self, name: str, content: bytes) -> bool:
        return self.stat(name).bytes == len(content) and self.read(name, len(content)) == content

    def _try(self, action: str, name: str, operation: Callable[[], T]) -> T:
        """What an operation returns. Any of many libraries is behind it, so any exception is an error of the store."""
        pause_s = FIRST_PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                return operation()
            except (ResultsError, UsageError):
                raise
            except Exception as error:  # noqa: BLE001 - of botocore, aiohttp, gcsfs …, which have no common base
                if left == 0 or isinstance(error, _FINAL) or not _may_pass(error):
                    raise self._error(action, name, error) from None
            time.sleep(pause_s)
            pause_s *= 3
        raise AssertionError("the last try returns or raises")

    def _error(self, action: str, name: str, error: Exception) -> OSError:
        """The error with the URL and the reason, without what may be secret in it."""
        words = " ".join(str(error).split()) or type(error).__name__
        reason = shortened(Anonymizer.here().message(words), MAX_REASON)
        kind = type(error) if isinstance(error, _FINAL) else OSError
        number = getattr(error, "errno", None) or (errno.ENOENT if kind is FileNotFoundError else errno.EIO)
        return kind(number, f"{self.at(name)}: cannot {action}: {reason}")

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @property
    def _protocol(self) -> str:
        protocol = self.url.partition("://")[0]
        return "s3" if protocol == "s3a" else protocol

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from fsspec.config import conf
        from fsspec.core import url_to_fs

        settings: dict[str, Any] = {"use_listings_cache": False}
        if self._protocol == "s3":
            settings["config_kwargs"] = {**_S3_CONFIGURATION, **conf.get("s3", {}).get("config_kwargs", {})}
        try:
            system, path = url_to_fs(self.url, **settings)
        except ImportError as error:
            extra = "; pip install 'qharness[s3]'" if self._protocol == "s3" else ""
            raise UsageError(f"{self.at('')}: {error}{extra}") from None
        except (TypeError, ValueError) as error:  # TypeError: a kind of URL that needs more than a URL
            raise UsageError(f"{self.at('')}: {shortened(str(error), MAX_REASON)}") from None
        if self._protocol == "s3":
            system.retries = 1
        return system, path.rstrip("/")

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @property
    def _root(self) -> str:
        return self._opened[1]


def _may_pass(error: Exception) -> bool:
    """Whether another try may help. Missing credentials, and requests that the store does not understand, stay."""
    if type(error).__name__ in ("NoCredentialsError", "ParamValidationError", "ProfileNotFound"):
        return False
    return not isinstance(error, TypeError | ValueError | NotImplementedError)


def _version(info: Mapping[str, Any]) -> str:
    """What changes with an object's content: S3 and GCS, Azure, the hub; or else when it was written."""
    keys = ("ETag", "etag", "generation", "blob_id", "LastModified", "mtime", "modified", "created")
    return next((str(info[key]) for key in keys if info.get(key)), "")


def _modified(info: Mapping[str, Any]) -> datetime | None:
    """When an object was written, listed as a date, as seconds since 1970 or in ISO 8601; None if it is not listed."""
    keys = ("LastModified", "mtime", "modified", "updated", "created")
    found = next((info[key] for key in keys if info.get(key)), None)
    if isinstance(found, str):
        with suppress(ValueError):
            found = datetime.fromisoformat(found)
    elif isinstance(found, int | float):
        found = datetime.fromtimestamp(found, UTC)
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _batches(wanted: Sequence[Listed]) -> Iterator[list[Listed]]:
    batch: list[Listed] = []
    for each in wanted:
        if batch and (len(batch) == BATCH_OBJECTS or sum(one.bytes for one in batch) + each.bytes > BATCH_BYTES):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
