"""A bundle: results and what follows from them in one zip file, with a manifest of the size and hash of every file.

The same files give the same bytes: entries are in the order of their names and carry no time, user or machine. A bundle
comes from a stranger: nothing of it is used before its names, kinds and sizes are checked, and no file before its hash.
"""

from __future__ import annotations

import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from harness.core.foreign import open_file, parse_json, quoted, shortened, shown
from harness.core.owner import current_owner
from harness.errors import ResultsError, StorageError, reason_of
from harness.storage.checksums import file_sha256
from harness.storage.disk import Disk
from harness.storage.json_codec import decode
from harness.storage.seal import MAX_BYTES, FileSeal, file_seal

SUFFIX = ".qh.zip"
RESULTS = "results"
"""The folder of a bundle with the attempts, as in a results folder."""
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
FORMAT = 1
MAX_FILES = 500_000
MAX_FILE_BYTES = max(MAX_BYTES.values())
MAX_BUNDLE_BYTES = 32 * 2**30
"""Of all files of a bundle together, as they are unpacked."""
_OLDEST = (1980, 1, 1, 0, 0, 0)
"""The earliest time that a zip file can give; every entry has it."""
_FAULTS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile raises for a file that is none, or a damaged one."""


@dataclass(frozen=True)
class Manifest:
    """``files`` are all others, by name. ``code`` identifies what derived those that follow from the records."""

    format: int
    made_by: str
    code: str
    files: Mapping[str, FileSeal]


@dataclass(frozen=True)
class Misfit:
    """A file of a bundle that is not as its manifest says, and how."""

    name: str
    reason: str


def write_bundle(
    file: BinaryIO,
    files: Iterable[tuple[str, bytes]],
    made_by: str,
    code: str,
    sign: Callable[[bytes], bytes] | None = None,
) -> Manifest:
    """Writes a bundle of files, which must come in the order of their names. ``sign`` makes a signature of a text.

    Raises ResultsError for a file that is larger than a reader takes.
    """
    sealed: dict[str, FileSeal] = {}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files:
            if len(content) > MAX_FILE_BYTES:
                raise ResultsError(f"{name}: {len(content)} bytes, and a file of a bundle has at most {MAX_FILE_BYTES}")
            assert not sealed or next(reversed(sealed)) < name, "files come in the order of their names"
            sealed[name] = file_seal(content)
            _add(archive, name, content)
        manifest = Manifest(FORMAT, made_by, code, sealed)
        text = (json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        _add(archive, MANIFEST, text)
        if sign is not None:
            _add(archive, SIGNATURE, sign(text))
    return manifest


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, _OLDEST)
    entry.create_system = 3  # Unix, wherever it is written
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    archive.writestr(entry, content, zipfile.ZIP_DEFLATED, compresslevel=6)


class Bundle:
    """An open bundle whose entries have safe names, kinds and sizes. Nothing else of it is checked yet."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> None:
        self.path = path
        self._archive, self._entries = archive, entries
        self.manifest_text = self._content(MANIFEST)
        raw = parse_json(self.manifest_text, self._at(MANIFEST), ResultsError, limit_values=8 * MAX_FILES)
        if isinstance(raw, dict) and isinstance(version := raw.get("format"), int) and version > FORMAT:
            raise ResultsError(f"{shown(path)}: a bundle of format {version}, and this qharness reads {FORMAT}; update")
        self.manifest = decode(Manifest, raw, self._at(MANIFEST))
        for name in self.manifest.files:
            _refuse_unsafe(path, name)

    @property
    def signature(self) -> bytes | None:
        return self._content(SIGNATURE) if SIGNATURE in self._entries else None

    def misfits(self) -> Iterator[Misfit]:
        """Every file that is missing, not what was written, or not in the manifest, in the order of their names."""
        beside = {MANIFEST, SIGNATURE}
        for name in sorted((self.manifest.files.keys() | self._entries.keys()) - beside):
            if name not in self.manifest.files:
                yield Misfit(name, "is not in the manifest: it was added later")
            elif name not in self._entries:
                yield Misfit(name, "is in the manifest, and missing")
            else:
                try:
                    self.read(name)
                except ResultsError as error:
                    yield Misfit(name, str(error).removeprefix(f"{self._at(name)}: "))

    def read(self, name: str) -> bytes:
        """A file as the manifest has it. Raises ResultsError if it is not."""
        expected = self.manifest.files.get(name)
        if expected is None or name not in self._entries:
            raise ResultsError(f"{self._at(name)}: no such file in the bundle")
        content = self._content(name)
        if file_seal(content) != expected:
            raise ResultsError(f"{self._at(name)}: its content is not what the manifest says")
        return content

    def names(self, folder: str) -> list[str]:
        """The files of the manifest that are in a folder, in order."""
        return sorted(name for name in self.manifest.files if name.startswith(f"{folder}/"))

    def unpack(self, folder: str, target: Path) -> None:
        """Writes the files of a folder below ``target``. Raises ResultsError for one that is not as it was written."""
        for name in self.names(folder):
            path = target / name.removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(name))

    def _content(self, name: str) -> bytes:
        entry = self._entries[name]
        try:
            with self._archive.open(entry) as file:
                return file.read(entry.file_size + 1)  # read() unpacks without a limit, whatever the entry says
        except _FAULTS as fault:
            raise ResultsError(f"{self._at(name)}: cannot be read: {shortened(str(fault))}") from None

    def _at(self, name: str) -> str:
        return f"{shown(self.path)}/{shortened(name)}"


def is_bundle(location: object) -> bool:
    """Whether a path of results names a bundle."""
    return str(location).endswith(SUFFIX)


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Opens a bundle. Raises ResultsError for what is no bundle, or may do harm: see ``_checked``."""
    with open_file(path, ResultsError) as (file, size):
        if size > MAX_BUNDLE_BYTES:
            raise ResultsError(f"{shown(path)}: larger than {MAX_BUNDLE_BYTES} bytes, the most that a bundle may have")
        try:
            archive = zipfile.ZipFile(file)
        except _FAULTS as fault:
            raise ResultsError(f"{shown(path)}: no zip file, or a damaged one: {shortened(str(fault))}") from None
        with archive:
            yield Bundle(path, archive, _checked(path, archive))


def unpacked(path: Path, folder: Path) -> Path:
    """The results of a bundle, in a folder below ``folder`` that has its hash for a name: it is unpacked once.

    Raises ResultsError, with the file, for a bundle that is not as its manifest says.
    """
    with open_bundle(path) as bundle:
        target = folder / file_sha256(path)
        if target.is_dir():
            return target
        if (misfit := next(bundle.misfits(), None)) is not None:
            raise ResultsError(f"{shown(path)}/{misfit.name}: {misfit.reason}; see 'qharness verify'")
        disk = Disk()
        part = folder / f".{target.name}.{current_owner()}.part"
        try:
            part.mkdir(parents=True)
            bundle.unpack(RESULTS, part)
            part.rename(target)
        except OSError as error:
            if target.is_dir():  # another process unpacked it meanwhile
                return target
            raise StorageError(f"{shown(folder)}: cannot unpack {shown(path)}: {reason_of(error)}") from None
        finally:
            disk.remove(part)
        return target


def _checked(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by name. Raises ResultsError for one that is no plain file inside the bundle, or is too large."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.orig_filename
        _refuse_unsafe(path, name)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = (
            "is there twice"
            if name in entries
            else "is a link or another special file, not a plain one"
            if kind not in (0, stat.S_IFREG)
            else "is encrypted"
            if entry.flag_bits & 1
            else "is compressed in a way that bundles do not use"
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            else f"unpacks to {entry.file_size} bytes, and a file of a bundle has at most {MAX_FILE_BYTES}"
            if entry.file_size > MAX_FILE_BYTES
            else None
        )
        if problem is not None:
            raise ResultsError(f"{shown(path)}: {quoted(name)} {problem}: no bundle of 'qharness bundle'")
        entries[name] = entry
    whole = sum(entry.file_size for entry in entries.values())
    if len(entries) > MAX_FILES or whole > MAX_BUNDLE_BYTES:
        most = f"{MAX_FILES} files and {MAX_BUNDLE_BYTES} bytes"
        raise ResultsError(f"{shown(path)}: unpacks to {len(entries)} files of {whole} bytes, and the most is {most}")
    if MANIFEST not in entries:
        raise ResultsError(f"{shown(path)}: a zip file without {MANIFEST}: no bundle of 'qharness bundle'")
    return entries


def _refuse_unsafe(path: Path, name: str) -> None:
    """Raises ResultsError for a name that would lead out of the folder that a bundle is unpacked to."""
    parts = name.split("/")
    if not name or {"", ".", ".."} & set(parts) or "\\" in name or ":" in name or not name.isprintable():
        raise ResultsError(
            f"{shown(path)}: names the file {quoted(name)}, which is no name of a file inside a bundle; nothing is read"
        )
