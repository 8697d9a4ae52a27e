"""A site that is not this machine: its hardware, libraries and stacks exist in this file alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.core.record import Outcome
from harness.core.run import RunSpec
from harness.core.site import MAIN, Machine
from harness.errors import UsageError

LIBRARIES = {"torch": "2.10.0", "transformers": "5.10.0", "bitsandbytes": "0.50.2", "torchao": "0.18.0"}
LIBRARIES |= {"gptqmodel": "7.6.0", "optimum": "2.3.0"}
AUTOAWQ = {"autoawq": "0.2.9", "transformers": "4.51.3", "torch": "2.10.0"}


@dataclass(frozen=True)
class Nothing:
    """A site at which no run has been made."""

    def outcome(self, spec: RunSpec) -> Outcome | None:
        return None

    def remove(self, spec: RunSpec) -> bool:
        raise AssertionError("planning deletes nothing")


CPU = Machine("cpu", "a rented CPU")
NOTHING = Nothing()


@dataclass(frozen=True)
class Elsewhere:
    """A site that exists in this file alone. ``stacks`` maps those that are ready to what is installed in them."""

    hardware: Machine = CPU
    stacks: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: {MAIN: LIBRARIES, "autoawq": AUTOAWQ})
    artifacts: Nothing = NOTHING

    def machine(self, device: str) -> Machine:
        if device not in ("auto", self.hardware.device):
            raise UsageError(f"this site has no {device}")
        return self.hardware

    def version(self, package: str, stack: str = MAIN) -> str | None:
        return self.stacks.get(stack, {}).get(package)

    def obstacle(self, stack: str) -> str | None:
        return None if stack in self.stacks else f"stack {stack!r} is not made there"

    def having(self, stack: str, **versions: str | None) -> Elsewhere:
        """The same site with other versions of some packages; None uninstalls one."""
        held = {name: found for name, found in {**self.stacks[stack], **versions}.items() if found is not None}
        return replace(self, stacks={**self.stacks, stack: held})
