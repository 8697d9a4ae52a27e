"""Whether torch can use this machine's GPU, and if not, why and what to run.

Torch itself is asked, in one process (``cuda_probe.py``) that sees what a worker sees. Its answer is kept in the cache
until torch, its CUDA libraries, the driver, the GPU or a variable that affects them is another. A failure is not kept.
NVML says what torch cannot.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from harness.core.foreign import read_file
from harness.core.identity import digest
from harness.core.owner import current_owner, temporary_folder
from harness.errors import UsageError
from harness.host import cuda_probe
from harness.host.architecture import runs_on
from harness.host.gpu import gpu
from harness.host.visible import NUMBERED_AS_NVML, VARIABLE

FOLDER = "preflight"
"""The folder of a cache with torch's answers, one JSON file each."""
MAX_ANSWER_BYTES = 2**16
PROBE_S = 180.0
"""How long torch may take: importing it from a slow disk takes a minute, PTX for a new GPU is compiled first."""
RETRY_S = 30.0
"""How long a failure counts in a process: a command needs the answer several times."""
_VARIABLES = re.compile(r"(CUDA|CUBLAS|CUBLASLT|NVIDIA|PYTORCH|TORCH)_\w+|LD_LIBRARY_PATH|LD_PRELOAD|PYTHON(PATH|HOME)")
"""The variables that decide which torch, driver and GPU a process gets."""

_SHORT = ("out of memory", "cublas_status_alloc_failed", "cublas_status_not_initialized")


@dataclass(frozen=True)
class TriedProduct:
    """A small product of two matrices on the GPU: torch's message if it ``raised``, and whether it was ``correct``."""

    raised: str | None
    correct: bool


@dataclass(frozen=True)
class TorchAnswer:
    """What torch says of cuda:0.

    ``version`` is None if torch cannot be imported, or its process ended without an answer. ``cuda`` is the CUDA
    version that it was built for, None for a build without it; ``architectures`` are those it has code for. ``builds``
    maps the CUDA versions that this release of torch is published for to their architectures. ``error`` is torch's
    message if it cannot use the GPU; then the values below are missing. ``products`` holds one small product per dtype.
    """

    version: str | None = None
    cuda: str | None = None
    available: bool = False
    architectures: tuple[str, ...] = ()
    builds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    error: str | None = None
    capability: tuple[int, int] | None = None
    uuid: str | None = None
    products: Mapping[str, TriedProduct] = field(default_factory=dict)

    @property
    def multiplies(self) -> bool:
        """Whether the GPU multiplies float32. Not every GPU multiplies all other dtypes."""
        plain = self.products.get("float32")
        return self.error is None and plain is not None and plain.correct

    @property
    def will_last(self) -> bool:
        """Whether torch will say the same later. Not after a failure: a GPU may have no memory only for now."""
        if self.cuda is None:
            return self.error is None
        tried = self.products.values()
        is_short = any(_is_short_of_memory(product.raised) for product in tried)
        is_wrong = any(product.raised is None and not product.correct for product in tried)
        return self.multiplies and not is_short and not is_wrong


@dataclass(frozen=True)
class Preflight:
    """The first visible GPU, by NVML, and what torch says of it.

    ``driver_cuda`` is the newest CUDA version that the driver supports. What NVML does not report is None.
    """

    name: str
    uuid: str
    torch: TorchAnswer
    capability: tuple[int, int] | None = None
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None

    @property
    def problem(self) -> str | None:
        """Why torch cannot use the GPU, in one sentence with what to run; None if it can."""
        torch = self.torch
        if torch.version is None:
            return f"torch cannot be used: {torch.error}"
        if torch.cuda is None:
            return f"the installed torch {torch.version} was built without CUDA{self._install('; ')}"
        if self._is_driver_too_old:
            return (
                f"the NVIDIA driver {self.driver} supports CUDA up to {_dotted(self.driver_cuda)} and the installed "
                f"torch {torch.version} needs {torch.cuda}; update the driver{self._install(', or ')}"
            )
        if torch.error is not None:
            return f"torch {torch.version} cannot use the GPU: {torch.error}{_advice(torch.error)}"
        if self.uuid.startswith("GPU-") and torch.uuid not in (self.uuid, self.uuid.removeprefix("GPU-")):
            return f"torch's GPU has the UUID {torch.uuid} and NVML's has {self.uuid}; name one in CUDA_VISIBLE_DEVICES"
        plain = torch.products.get("float32")
        if plain is None or plain.raised is not None:
            if not self._has_code:
                return (
                    f"the installed torch {torch.version} has no code for the {self.name}, which has compute "
                    f"capability {_dotted(self._capability)} (it has {', '.join(torch.architectures)})"
                    f"{self._install('; ')}"
                )
            reason = plain.raised if plain else None
            return f"torch {torch.version} cannot multiply on the GPU: {reason or 'it was not tried'}{_advice(reason)}"
        wrong = [dtype for dtype, product in torch.products.items() if product.raised is None and not product.correct]
        if wrong:
            return f"torch computes wrong {' and '.join(wrong)} products on this GPU: it, its driver or torch is faulty"
        return None

    @property
    def lacking(self) -> Mapping[str, str]:
        """The dtypes that torch cannot multiply on this GPU, with torch's message."""
        return {dtype: product.raised for dtype, product in self.torch.products.items() if product.raised is not None}

    @property
    def _capability(self) -> tuple[int, int] | None:
        return self.torch.capability or self.capability

    @property
    def _is_driver_too_old(self) -> bool:
        """A driver runs what was built for any CUDA version with its major number (minor version compatibility).

        Where NVIDIA's package for forward compatibility is installed, torch can use an older one too.
        """
        needed = self.torch.cuda
        return (
            not self.torch.available
            and self.driver_cuda is not None
            and needed is not None
            and self.driver_cuda[0] < _major(needed)
        )

    @property
    def _has_code(self) -> bool:
        return self._capability is None or runs_on(self.torch.architectures, self._capability)

    def _install(self, joint: str) -> str:
        """The command that installs a build that fits, after ``joint``; empty if this release has none."""
        backend = self._backend
        if backend is None:
            return ""
        release = (self.torch.version or "").partition("+")[0]
        return f"{joint}run: uv pip install --torch-backend {backend} --reinstall-package torch torch=={release}"

    @property
    def _backend(self) -> str | None:
        """uv's name of the newest published build that the driver and the GPU run; None if there is none.

        Where this torch does not know how it is published, uv chooses by the driver.
        """
        if not self.torch.builds:
            return "auto"
        fitting = [
            version
            for version, architectures in self.torch.builds.items()
            if (self._capability is None or runs_on(architectures, self._capability))
            and (self.driver_cuda is None or _major(version) <= self.driver_cuda[0])
        ]
        newest = max(fitting, key=lambda version: [int(part) for part in version.split(".")], default=None)
        return None if newest is None else f"cu{newest.replace('.', '')}"


def preflight(cache_root: Path) -> Preflight | None:
    """The first visible GPU and torch's answer, which is kept in a cache folder.

    None if NVML reports no visible GPU.
    """
    with gpu() as first:
        if first is None:
            return None
        uuid, found, driver_cuda = first.uuid, first.identity(), first.driver_cuda()
    question = [*_question(), found.driver, driver_cuda, uuid]
    place = cache_root.absolute() / FOLDER / f"{digest(question)}.json"
    return Preflight(found.name, uuid, _answer(place, uuid), found.capability, found.driver, driver_cuda)


def _question() -> Iterator[str]:
    """All on this side that the answer depends on: the interpreter, its torch, and the environment."""
    yield from (sys.executable, sys.prefix, Path(cuda_probe.__file__).read_text(encoding="utf-8"))
    torch = find_spec("torch")
    if torch is not None and torch.origin is not None:
        version = Path(torch.origin).with_name("version.py")
        yield str(version)
        if version.is_file():
            yield version.read_text(encoding="utf-8")
        yield from sorted(each.name for each in version.parents[1].glob("nvidia_*.dist-info"))  # its CUDA libraries
    for name in sorted(os.environ):
        if _VARIABLES.fullmatch(name):
            yield f"{name}={os.environ[name]}"


def _answer(place: Path, uuid: str) -> TorchAnswer:
    """What torch has answered this process, or what is kept in its place, or what torch says now.

    Only an answer that will last is kept, and a process asks again some time after a failure, as a notebook lives for
    days. It never asks again after a success: then its runs may have taken the GPU's memory.
    """
    at_s, known = _known.get(place, (0.0, None))
    if known is not None and (known.multiplies or time.monotonic() - at_s < RETRY_S):
        return known
    answer = _read(place)
    if answer is None:
        answer = _ask(uuid)
        if answer.will_last:
            with suppress(OSError):  # where nothing can be written, the next process asks again
                _keep(answer, place)
    _known[place] = time.monotonic(), answer
    return answer


def _ask(uuid: str) -> TorchAnswer:
    """Asks torch in a process that sees the GPU as a worker does, by its UUID."""
    variables = {**os.environ, **NUMBERED_AS_NVML, VARIABLE: uuid}
    with temporary_folder() as folder:
        written = folder / "answer.json"
        command = [sys.executable, "-P", cuda_probe.__file__, str(written)]
        try:
            ended = subprocess.run(
                command, env=variables, capture_output=True, text=True, errors="replace", check=False, timeout=PROBE_S
            )
        except subprocess.TimeoutExpired:
            return TorchAnswer(error=f"it gave no answer within {PROBE_S:.0f} s")
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        return _read(written) or TorchAnswer(error=f"its process ended with code {ended.returncode}: {last}")


def _read(place: Path) -> TorchAnswer | None:
    """The answer in a file; None if there is none, or it is no answer."""
    try:
        return _ANSWER.validate_json(read_file(place, MAX_ANSWER_BYTES, UsageError))
    except (UsageError, ValidationError):
        return None


def _keep(answer: TorchAnswer, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(f".{place.name}-{current_owner()}.part")
    part.write_bytes(_ANSWER.dump_json(answer))
    part.replace(place)


def _is_short_of_memory(message: str | None) -> bool:
    """Whether this is how torch, or cuBLAS through it, says that the GPU has no memory left."""
    return message is not None and any(words in message.lower() for words in _SHORT)


def _advice(message: str | None) -> str:
    return "; other programs may hold its memory: see nvidia-smi" if _is_short_of_memory(message) else ""


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _dotted(version: tuple[int, int] | None) -> str:
    return "unknown" if version is None else f"{version[0]}.{version[1]}"


_ANSWER = TypeAdapter(TorchAnswer)
_known: dict[Path, tuple[float, TorchAnswer]] = {}
"""Torch's answers to this process by their places, each with the moment by ``time.monotonic``."""
