"""Environments that hold the wheel of this checkout, and of other packages only what it declares that it needs.

The others are links to those that run the tests, so that nothing is downloaded: whether a package index has them, only
an installation from there shows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
Command = Callable[..., subprocess.CompletedProcess[str]]


def build_wheel(folder: Path) -> Path:
    """The wheel of this checkout, in that folder."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def new_environment(folder: Path) -> Path:
    """The interpreter of a new environment without packages, ``folder/env``."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    return folder / "env" / "bin" / "python"


def site_packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))


def pip_install(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def install_wheel(folder: Path, *extras: str) -> None:
    """Puts the wheel into a new environment, and links to what it needs with these extras, directly or not."""
    python = new_environment(folder)
    pip_install(python, "--no-deps", str(build_wheel(folder)))
    site = site_packages(folder)
    (own,) = Distribution.discover(name="qharness", path=[str(site)])
    found: dict[str, Distribution] = {}
    left = list(_needed(own, frozenset(extras)))
    while left:
        wanted = left.pop()
        known = found.setdefault(wanted.name.lower(), distribution(wanted.name))
        left += [each for each in _needed(known, frozenset(wanted.extras)) if each.name.lower() not in found]
    for each in found.values():
        add_distribution(site, each)


def _needed(package: Distribution, extras: frozenset[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, package.requires or ()):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in (extras or {""})):
            yield requirement


def add_distribution(site: Path, package: Distribution) -> None:
    """Links to each file or package that a distribution installed into its own folder; .pth files are left out."""
    files = [path for path in package.files or () if path.parts[0] != ".." and path.suffix != ".pth"]
    assert files, package.name
    for parts in sorted({path.parts for path in files}):
        _link(site, Path(package.locate_file("")), parts)


def _link(site: Path, source: Path, parts: tuple[str, ...]) -> None:
    """A link to the file's package or, in a folder that several distributions may share, to the file's own place."""
    for depth in range(1, len(parts) + 1):
        place, target = site.joinpath(*parts[:depth]), source.joinpath(*parts[:depth])
        if place.is_symlink():
            return
        if depth == len(parts) or (target / "__init__.py").exists() or target.suffix in (".dist-info", ".libs"):
            place.symlink_to(target)
            return
        place.mkdir(exist_ok=True)


def command(folder: Path) -> Command:
    """``qharness`` of the environment, run in an empty folder of its own, ``folder/work``."""
    work = folder / "work"
    work.mkdir()
    environment = variables(folder)

    def run(*arguments: str, program: str = "qharness", **more: str) -> subprocess.CompletedProcess[str]:
        words = [str(folder / "env" / "bin" / program), *arguments]
        return subprocess.run(words, cwd=work, env={**environment, **more}, capture_output=True, text=True, check=False)

    return run


def variables(folder: Path) -> dict[str, str]:
    """Those of a shell in which the environment is the active one, with a cache of its own."""
    others = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    path = f"{folder / 'env' / 'bin'}:{os.environ['PATH']}"
    return {**others, "PATH": path, "QHARNESS_CACHE": str(folder / "cache")}
