"""Writes the hashes into a stack's file of pins, as uv reads them from the package index."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from harness.core.owner import temporary_folder
from harness.errors import UsageError
from harness.stacks import StackDefinition
from harness.stacks.build import installer_settings, uv_command
from harness.stacks.pins import Pin, Pins, has_hashes, read_pins
from harness.storage.checksums import file_sha256

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
"""Where a stack may be installed: what is required in any of these places is pinned."""


def lock(definition: StackDefinition, say: Callable[[str], None]) -> None:
    """Rewrites the stack's file of pins with the hashes of every file that the index lists for each version.

    The versions stay as they are; a package that some platform or Python requires in addition is pinned too. Where pip
    is configured to find local builds (``2.13.0+cpu``), these are listed too. Those that the file lists already stay,
    because the builds of another machine cannot be seen on this one.
    Raises UsageError if uv is missing or reports an error.
    """
    path = definition.requirements
    old = _read(path, definition.library)
    more = tuple(Pin(name, version, ()) for name, version in _required_elsewhere(old, say).items())
    listed = _hashes([*old.packages, *more, old.library])

    def hashed(pin: Pin) -> Pin:
        return replace(pin, hashes=listed.get(pin.requirement, ()))

    packages, more, library = tuple(map(hashed, old.packages)), tuple(map(hashed, more)), hashed(old.library)
    whole = Pins(old.comment, packages, more, _local_builds(old), library)
    without = [pin.requirement for pin in (*packages, *more, library) if not pin.hashes]
    if without:
        raise UsageError(f"{path.name}: the index lists no file of {', '.join(without)}")
    path.write_text(whole.text, encoding="utf-8")
    say(f"{path}: {len(packages)} packages, {len(more)} more where required, and {library.requirement}")


def _read(path: Path, library: str) -> Pins:
    """The pins, also of a file without hashes, which does not list the library."""
    if has_hashes(path):
        return read_pins(path, library)
    comment, *rest = path.read_text(encoding="utf-8").splitlines()
    lines = [line for line in rest if line and not line.startswith("#")]
    packages = [Pin(name, version, ()) for name, _, version in (line.partition("==") for line in [*lines, library])]
    return Pins(comment, tuple(packages[:-1]), (), (), packages[-1])


def _required_elsewhere(pins: Pins, say: Callable[[str], None]) -> Mapping[str, str]:
    """What the pins require in addition on some platform or Python, with one version for all."""
    own = {pin.name for pin in pins.packages}
    found = {pin.name: pin.version for pin in pins.if_required}
    for platform in PLATFORMS:
        for python in PYTHONS:
            wanted = [pin.requirement for pin in pins.packages]
            try:
                resolved = _compile(wanted, found, "--python-platform", platform, "--python-version", python)
            except UsageError as error:
                say(f"not on {platform} with Python {python}: {str(error).splitlines()[-1].strip()}")
                continue
            packages = (line.split("==", 1) for line in resolved)
            found |= {name: version for name, version in packages if name not in own}
    return dict(sorted(found.items()))


def _hashes(pins: Iterable[Pin]) -> dict[str, tuple[str, ...]]:
    """The hashes of all files that the index lists for each package, by ``NAME==VERSION``."""
    lines = _compile([pin.requirement for pin in pins], {}, "--no-deps", "--generate-hashes")
    return {
        package: tuple(each.removeprefix("--hash=") for each in hashes) for package, *hashes in map(str.split, lines)
    }


def _local_builds(old: Pins) -> tuple[Pin, ...]:
    """The local builds that pip is configured to find here, and those of other machines that were listed already."""
    found = {pin.requirement: set(pin.hashes) for pin in old.local}
    for requirement in _compile([pin.requirement for pin in old.packages], {}, "--no-deps", local=True):
        if "+" in requirement:
            with temporary_folder() as folder:
                download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
                subprocess.run([*download, requirement], check=True)
                hashes = {f"sha256:{file_sha256(file)}" for file in folder.iterdir()}
            found.setdefault(requirement, set()).update(hashes)
    names = {requirement: requirement.split("==", 1) for requirement in sorted(found)}
    return tuple(Pin(name, version, tuple(sorted(found[each]))) for each, (name, version) in names.items())


def _compile(wanted: Iterable[str], bounds: Mapping[str, str], *options: str, local: bool = False) -> list[str]:
    """The lines of ``uv pip compile``, each with what continues it. Raises UsageError if it fails."""
    uv = uv_command()
    if not uv:
        raise UsageError("stack lock needs uv; install it with: pip install uv")
    settings = installer_settings()
    if not local:
        settings.pop("UV_FIND_LINKS", None)
    with temporary_folder() as folder:
        files = {
            "pins.txt": "".join(f"{each}\n" for each in wanted),
            "bounds.txt": "".join(f"{n}=={v}\n" for n, v in bounds.items()),
        }
        for name, content in files.items():
            (folder / name).write_text(content, encoding="utf-8")
        command = [*uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options]
        command += ["--constraints", str(folder / "bounds.txt"), str(folder / "pins.txt")]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    if ended.returncode:
        raise UsageError(f"uv could not resolve the pins:\n{ended.stderr.strip()}")
    return [line.strip() for line in ended.stdout.replace("\\\n", " ").splitlines() if line.strip()]
