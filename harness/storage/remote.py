"""Results in an object store: the place behind ``s3://…`` and its like.

A record is there once its ``record.json`` is, which is created last, and only if there is none. Before that, an object
``.claim`` gives its writer the attempt's number: so attempts never overwrite each other, whoever writes them. Readers
read a copy on this machine (``mirror.py``).

In place of a lock there is a lease, an object that its holder renews and that expires if it is not renewed. A second
sweep into the same recipe's folder is refused while it lasts. Times are the store's, so that no clocks need agree;
where a store lists none, those of the machines, with an allowance for clocks that differ.
"""

from __future__ import annotations

import errno
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from harness.core.owner import current_owner, owner_in
from harness.errors import ResultsError, reason_of
from harness.storage.anonymizer import Anonymizer
from harness.storage.mirror import CLAIM, Mirror
from harness.storage.objects import Objects, is_url, local_path
from harness.storage.pack import names_in_pack, packed, read_attempt_file
from harness.storage.seal import RECORD
from harness.storage.store import Store

LEASE = ".lease.json"
"""The object that a sweep holds, in the folder of its recipe."""
LEASE_S = 300.0
"""After this time without renewal a lease has expired."""
RENEWAL_S = 60.0
MAX_SKEW_S = 3600.0
"""By how much the clocks of two machines may differ; only where the store lists no times."""
MAX_LEASE_BYTES = 4096


@dataclass(frozen=True)
class RemotePlace:
    """A results folder below a URL, and its copy on this machine."""

    objects: Objects
    mirror: Mirror
    _leases: dict[str, Lease] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def title(self) -> str:
        return self.objects.url

    def at(self, name: str) -> str:
        return self.objects.at(name)

    def local(self, folder: str = "") -> Path:
        self.mirror.refresh(folder)
        return self.mirror.root / folder

    def names(self, folder: str) -> tuple[str, ...]:
        """Also what a pack that was copied there has, as it was when the results were last read."""
        return tuple({*self.objects.names(folder), *names_in_pack(self.mirror.root / folder)})

    def read(self, name: str, limit_bytes: int) -> bytes:
        copy = self.mirror.root / name
        if packed(copy.parent) is not None:
            return read_attempt_file(copy, limit_bytes, ResultsError)
        try:
            return self.objects.read(name, limit_bytes)
        except OSError as error:
            raise ResultsError(reason_of(error)) from None

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        self.refuse_lost(folder)
        claimed = self.objects.create(f"{folder}/{CLAIM}", uuid.uuid4().hex.encode())
        if not claimed or RECORD in self.objects.names(folder):  # a copy of a local folder has no claims
            raise FileExistsError(errno.EEXIST, f"{self.at(folder)}: is there already")
        *others, (last, content) = sorted(files.items(), key=lambda file: file[0] == RECORD)
        for name, each in others:
            self.objects.write(f"{folder}/{name}", each)
        if not self.objects.create(f"{folder}/{last}", content):
            raise FileExistsError(errno.EEXIST, f"{self.at(f'{folder}/{last}')}: is there already")

    def replace(self, name: str, content: bytes) -> None:
        self.refuse_lost(name)
        self._unpack(name.rpartition("/")[0])
        self.objects.write(name, content)

    def _unpack(self, folder: str) -> None:
        """Gives an attempt in a pack its folder, from which it is read then; the pack stays as it is."""
        found = packed(self.mirror.root / folder)
        if found is not None and not self.objects.names(folder):
            self.add(folder, {name: found[0].read(member) for name, member in found[1].items()})

    def move(self, source: str, target: str) -> None:
        """Copies before it deletes: what is interrupted leaves both, and can be moved again."""
        if self.names(target):
            raise FileExistsError(errno.EEXIST, f"{self.at(target)}: is there already")
        self._unpack(source)
        below = sorted(self.objects.list(source), key=lambda name: name.endswith(f"/{RECORD}"))
        for name in below or [source]:
            self.objects.copy(name, target + name.removeprefix(source))
        self.objects.delete(list(reversed(below)) or [source])

    def remove(self, name: str) -> None:
        self.objects.delete([*self.objects.list(name), name])

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        lease = Lease(self.objects, f"{folder}/{LEASE}".lstrip("/"))
        try:
            lease.acquire()
        except OSError as error:
            raise ResultsError(f"{self.at(folder)}: cannot write the results: {reason_of(error)}") from None
        self._leases[folder] = lease
        try:
            yield
        finally:
            del self._leases[folder]
            lease.release()

    def refuse_lost(self, name: str) -> None:
        """Raises OSError if this sweep no longer holds the lease of a recipe's folder."""
        held = (lease for folder, lease in self._leases.items() if not folder or f"{name}/".startswith(f"{folder}/"))
        if any(lease.is_lost for lease in held):
            raise OSError(
                errno.ESTALE,
                f"{self.at(name.partition('/')[0])}: this sweep could not renew its lease for {LEASE_S:.0f} seconds, "
                "and another may be writing there",
            )


class Lease:
    """The right to write into a recipe's folder, renewed by a thread until it is released."""

    def __init__(self, objects: Objects, name: str) -> None:
        self._lost = False
        self._objects, self._name = objects, name
        self._token = uuid.uuid4().hex
        self._renewals = 0
        self._version = ""
        self._renewed_s = time.monotonic()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Takes the lease, also that of a dead sweep. Raises ResultsError if another sweep holds it; OSError."""
        self._renewed_s = time.monotonic()
        if not self._objects.create(self._name, self._content()) and not self._take_over():
            folder = self._objects.at(self._name.rpartition("/")[0])
            raise ResultsError(
                f"{folder}: another 'qharness run' is writing here; wait for it, or use --results. The lease of one "
                f"that was killed on another machine expires after {LEASE_S / 60:.0f} minutes; where the store lists "
                f"no times, after {(LEASE_S + MAX_SKEW_S) / 60:.0f}"
            )
        self._version = self._objects.stat(self._name).version
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another sweep may hold it now, also if this process was stopped for a while."""
        return self._lost or time.monotonic() - self._renewed_s > LEASE_S

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        with suppress(OSError):  # it expires
            if not self.is_lost and self._objects.stat(self._name).version == self._version:
                self._objects.delete([self._name])

    def _content(self) -> bytes:
        fields = {"owner": str(current_owner()), "token": self._token, "renewals": self._renewals}
        return json.dumps({**fields, "renewed_unix_s": int(time.time())}).encode()

    def _take_over(self) -> bool:
        """Takes the lease of a sweep that ended without releasing it; only one of several that try gets it."""
        try:
            held = self._objects.stat(self._name)
            content = self._objects.read(self._name, MAX_LEASE_BYTES)
        except FileNotFoundError:  # released meanwhile
            return self._objects.create(self._name, self._content())
        owner = owner_in(content.decode("ascii", "replace"))
        dead = owner is not None and owner.state() == "dead"
        return (dead or self._has_expired(held.modified, content)) and self._objects.swap(
            self._name, self._content(), held.version
        )

    def _has_expired(self, renewed: datetime | None, content: bytes) -> bool:
        now = self._objects.now(f"{self._name}.{self._token}")
        if now is not None and renewed is not None:
            return (now - renewed).total_seconds() > LEASE_S
        try:
            renewed_s = float(json.loads(content)["renewed_unix_s"])
        except (ValueError, TypeError, KeyError):  # of an earlier version, or not a lease
            return False
        return time.time() - renewed_s > LEASE_S + MAX_SKEW_S

    def _keep(self) -> None:
        while not self._released.wait(RENEWAL_S):
            with suppress(OSError):  # the next try may work
                self._lost = not self._renew()
            if self.is_lost:
                self._lost = True
                return

    def _renew(self) -> bool:
        """Renews it; returns whether it is still this sweep's. Raises OSError if that is not known."""
        began_s = time.monotonic()  # the store may take it in long before it answers
        self._renewals += 1
        try:
            held = self._objects.stat(self._name)
            # not the version that was read last: a renewal may have succeeded though its answer was lost
            ours = self._token.encode() in self._objects.read(self._name, MAX_LEASE_BYTES)
            if not ours or not self._objects.swap(self._name, self._content(), held.version):
                return False
            self._version = self._objects.stat(self._name).version
        except FileNotFoundError:
            return False
        self._renewed_s = began_s
        return True


def open_store(location: str | Path, mirrors: Path, anonymizer: Anonymizer | None = None) -> Store:
    """The results in a folder or at a URL, whose copy is kept in ``mirrors``. Raises UsageError for a bad URL."""
    who = anonymizer or Anonymizer.here()
    if not is_url(location):
        return Store(local_path(location), who)
    objects = Objects(str(location))
    mirror = Mirror.of(objects, mirrors)
    return Store(mirror.root, who, remote=RemotePlace(objects, mirror))
