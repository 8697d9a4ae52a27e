"""The pins of a stack: exact versions, and the SHA-256 of every file that may be installed for each.

A file of pins is a requirements file as pip and uv read it, one package to a line, continued with its hashes. Packages
below IF_REQUIRED are installed only where another package requires them (a CUDA build of torch requires NVIDIA's
libraries). Those below LOCAL are builds that pip is configured to find beside the index, such as ``2.13.0+cpu``; each
may stand for the version that it is a build of. The library that the stack is for is listed last; it is installed
after the others, without isolation, so that what builds it is pinned too. ``qharness stack lock`` writes such a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError

IF_REQUIRED = "# Installed only where another package requires them:"
LOCAL = "# Local builds that may stand for the versions above:"
LIBRARY = "# Installed last, against the packages above:"
_PACKAGE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_HASH = re.compile(r"--hash=(sha256:[0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """A package at a version, and the files that may be installed for it. Only local builds have a local version."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"

    @property
    def public(self) -> str:
        """The requirement that a local build may stand for."""
        return self.requirement.partition("+")[0]

    @property
    def text(self) -> str:
        """As pip and uv read it."""
        return " \\\n    ".join([self.requirement, *(f"--hash={each}" for each in self.hashes)])


@dataclass(frozen=True)
class Pins:
    """The pins of a stack in the order of installation; ``comment`` says what the stack is for."""

    comment: str
    packages: tuple[Pin, ...]
    if_required: tuple[Pin, ...]
    local: tuple[Pin, ...]
    library: Pin

    @property
    def text(self) -> str:
        parts = [
            (self.comment, self.packages),
            (IF_REQUIRED, self.if_required),
            (LOCAL, self.local),
            (LIBRARY, (self.library,)),
        ]
        return "".join(f"{comment}\n{requirements(pins)}" for comment, pins in parts if pins)


def requirements(pins: Iterable[Pin]) -> str:
    """A requirements file."""
    return "".join(f"{pin.text}\n" for pin in pins)


def has_hashes(path: Path) -> bool:
    """Whether a file of pins lists hashes at all; other people's need not."""
    return "--hash=" in path.read_text(encoding="utf-8")


def read_pins(path: Path, library: str) -> Pins:
    """The pins of a file with hashes, of which one is that of the library (``NAME==VERSION``).

    Raises UsageError, with the line, for a package without an exact version or without a hash, and for anything that a
    file of pins may not contain, such as the address of an index.
    """
    packages: list[Pin] = []
    if_required: list[Pin] = []
    local: list[Pin] = []
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    into = packages
    for line in map(str.strip, text.splitlines()):
        if line in (IF_REQUIRED, LOCAL, LIBRARY):
            into = {IF_REQUIRED: if_required, LOCAL: local, LIBRARY: packages}[line]
        elif line and not line.startswith("#"):
            into.append(_read_pin(line, path))
    libraries = [pin for pin in packages if pin.requirement == library]
    if len(libraries) != 1:
        raise UsageError(f"{path.name}: lists hashes, but those of {library} {len(libraries)} times; expected once")
    comment = next((line for line in text.splitlines() if line.startswith("#")), f"# The pins of {library}.")
    others = tuple(pin for pin in packages if pin is not libraries[0])
    return Pins(comment, others, tuple(if_required), tuple(local), libraries[0])


def missing(required: Mapping[str, Iterable[str]]) -> set[str]:
    """The packages that are required and not installed; ``required`` has what each installed package requires.

    Names are normalized. Markers are evaluated for this interpreter, which every stack's is made from.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    installed = {canonicalize_name(name): list(map(Requirement, lines)) for name, lines in required.items()}
    extras: dict[str, set[str]] = {name: {""} for name in installed}
    wanted: set[str] = set()
    while True:
        before = sum(map(len, extras.values()))
        for name, lines in installed.items():
            for each in lines:
                if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras[name]):
                    wanted.add(canonicalize_name(each.name))
                    extras.setdefault(canonicalize_name(each.name), {""}).update(each.extras)
        if sum(map(len, extras.values())) == before:
            return wanted - set(installed)


def _read_pin(line: str, path: Path) -> Pin:
    package, *options = line.split()
    matched = _PACKAGE.fullmatch(package)
    hashes = [_HASH.fullmatch(option) for option in options]
    if matched is None or not hashes or None in hashes:
        raise UsageError(
            f"{path.name}: {line[:80]!r} is not NAME==VERSION with --hash=sha256:…; a file of pins that lists hashes "
            "needs them for every package: qharness stack lock writes them"
        )
    return Pin(matched["name"], matched["version"], tuple(each[1] for each in hashes if each))
