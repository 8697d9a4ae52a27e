"""Environments beside the main one: libraries whose pins do not live with the rest quantize in a stack of their own.

A stack is a pinned requirements file of this folder and the interpreter made from it. Only the standard
library is imported here: planning asks what a stack holds, and making one is ``harness.stacks.build``.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from harness.errors import UsageError, refuse_unknown

MANIFEST = "stack.json"
_LIST_VERSIONS = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps({x.metadata['Name'].lower().replace('_', '-'): x.version for x in d() if x.metadata['Name']}))"
)

State = Literal["ready", "missing", "half-made", "the user's own"]


@dataclass(frozen=True)
class Definition:
    """What a stack is for: ``library`` is built last, against what its requirements hold; ``module`` is imported."""

    library: str
    module: str
    summary: str


STACKS: Mapping[str, Definition] = MappingProxyType(
    {
        "autoawq": Definition("autoawq==0.2.9", "awq", "AutoAWQ, unmaintained; its checkpoints are everywhere"),
        "autoround": Definition(
            "auto-round==0.16.1",
            "auto_round",
            "a newer auto-round than lives in the main one, beside transformers 5.23",
        ),
        "llamacpp": Definition(
            "llama-cpp-python==0.3.36",
            "llama_cpp",
            "llama.cpp, compiled on this machine; GGUF is made and measured in it",
        ),
        "autogptq": Definition("auto-gptq==0.7.1", "auto_gptq", "AutoGPTQ, unmaintained; quantizes on CUDA only"),
    }
)


@dataclass(frozen=True)
class Stack:
    """A stack on this machine. ``folder`` names the hash of its requirements, so that other pins are another folder."""

    name: str
    folder: Path
    own_python: Path | None = None

    @property
    def definition(self) -> Definition:
        return STACKS[self.name]

    @property
    def requirements(self) -> Path:
        return Path(__file__).parent / f"{self.name}.txt"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.own_python or self.folder / "bin" / "python"

    def find_state(self) -> State:
        """What lies on disk of it."""
        if self.own_python is not None:
            return "the user's own"
        if (self.folder / MANIFEST).exists() and self.python.exists():
            return "ready"
        return "half-made" if self.folder.exists() else "missing"

    def find_obstacle(self) -> str | None:
        """Why nothing can run in it and what to do about that, or None."""
        state = self.find_state()
        if state in ("missing", "half-made"):
            return f"stack {self.name!r} is {state}: qharness stack create {self.name}, or run --create-stacks"
        return None

    def read_versions(self) -> Mapping[str, str]:
        """Its packages: a user's own interpreter is asked. Raises UsageError where they cannot be read."""
        if self.own_python is not None:
            return ask_versions(self.own_python)
        try:
            held: dict[str, str] = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))["versions"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"{self.folder / MANIFEST}: damaged; qharness stack remove {self.name}") from None
        return held


@dataclass(frozen=True)
class Stacks:
    """The stacks below one folder, and interpreters that the user named for some of them."""

    root: Path
    pythons: Mapping[str, Path] = field(default_factory=dict)

    def find(self, name: str) -> Stack:
        """The stack of that name, made or not; its pins are read. Raises UsageError for an unknown name."""
        if name not in STACKS:
            refuse_unknown("stack", name, STACKS)
        return Stack(name, self.root / f"{name}-{requirements_digest(name)}", self.pythons.get(name))


def requirements_digest(name: str) -> str:
    """What identifies a stack's pins, the library's own included."""
    pins = (Path(__file__).parent / f"{name}.txt").read_bytes() + STACKS[name].library.encode()
    return hashlib.sha256(pins).hexdigest()[:12]


def parse_pythons(given: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` of the command line. Raises UsageError for what is no such pair, or no interpreter."""
    pythons = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in STACKS:
            refuse_unknown("stack", name, STACKS)
        if not Path(path).is_file():
            raise UsageError(f"--python {pair}: no interpreter lies at {path!r}")
        pythons[name] = Path(path).absolute()  # not resolved: a virtual environment is known by its link
    return pythons


def ask_versions(python: Path) -> dict[str, str]:
    """The packages that an interpreter holds. Raises UsageError where it does not answer."""
    try:
        answer = subprocess.run([python, "-c", _LIST_VERSIONS], capture_output=True, text=True, check=True, timeout=60)
        versions: dict[str, str] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UsageError(f"{python}: does not answer as a Python interpreter: {error}") from None
    return versions
