"""Whether torch can use this machine's GPU, and if not, why and what to run: what torch itself says, in one process.

Draft: not wired into ``choose``, no cache yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from harness.host.architecture import runs_on


@dataclass(frozen=True)
class Product:
    """A small product of two matrices on the GPU: torch's message if it ``raised``, and whether it was ``correct``."""

    raised: str | None
    correct: bool


@dataclass(frozen=True)
class Preflight:
    """What torch says of cuda:0.

    ``cuda`` is the CUDA version that torch was built for, None for a build without it. ``builds`` maps the CUDA versions
    that this release of torch is published for to their architectures. ``driver_cuda`` is the newest CUDA that the
    driver supports, by NVML. ``free_bytes`` is the free memory when torch was asked. ``error`` is torch's message.
    """

    torch: str | None
    cuda: str | None = None
    available: bool = False
    architectures: tuple[str, ...] = ()
    builds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    name: str = ""
    capability: tuple[int, int] | None = None
    uuid: str | None = None
    free_bytes: int | None = None
    total_bytes: int | None = None
    driver_cuda: tuple[int, int] | None = None
    error: str | None = None
    products: Mapping[str, Product] = field(default_factory=dict)

    @property
    def problem(self) -> str | None:
        """Why torch cannot use the GPU, in one sentence with what to run; None if it can."""
        if self.torch is None:
            return f"torch cannot be imported: {self.error}"
        if self.cuda is None:
            return f"the installed torch {self.torch} was built without CUDA; {self._install}"
        if self.driver_cuda is not None and self.driver_cuda[0] < int(self.cuda.partition(".")[0]) and not self.available:
            newest = ".".join(map(str, self.driver_cuda))
            return (
                f"the NVIDIA driver supports CUDA up to {newest}, and the installed torch {self.torch} needs "
                f"{self.cuda}; update the driver, or {self._install}"
            )
        if self.error is not None:
            return f"torch {self.torch} cannot use the GPU: {self.error}"
        plain = self.products.get("float32")
        if plain is None or plain.raised is not None:
            if self.capability is not None and not runs_on(self.architectures, self.capability):
                return (
                    f"the installed torch {self.torch} has no code for {self.name}, compute capability "
                    f"{self.capability[0]}.{self.capability[1]} (only {', '.join(self.architectures)}); {self._install}"
                )
            return f"torch cannot multiply on the GPU: {plain.raised if plain else 'it was not tried'}"
        wrong = [dtype for dtype, tried in self.products.items() if tried.raised is None and not tried.correct]
        if wrong:
            return f"products of {', '.join(wrong)} matrices are wrong on this GPU: it, its driver or torch is faulty"
        return None

    @property
    def _install(self) -> str:
        release = (self.torch or "").partition("+")[0]
        return f"run: uv pip install --torch-backend {self._backend} --reinstall-package torch torch=={release}"

    @property
    def _backend(self) -> str:
        """uv's name of the newest published build that the driver supports and the GPU runs; else uv chooses."""
        fitting = [
            version
            for version, architectures in self.builds.items()
            if (self.capability is None or runs_on(architectures, self.capability))
            and (self.driver_cuda is None or int(version.partition(".")[0]) <= self.driver_cuda[0])
        ]
        newest = max(fitting, key=lambda version: [int(part) for part in version.split(".")], default=None)
        return "auto" if newest is None else f"cu{newest.replace('.', '')}"
