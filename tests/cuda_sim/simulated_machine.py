"""Sweeps whose workers have simulated GPUs, on a machine whose NVML is the stub."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import pytest
from nvml_stub import H200, Gpu, NvmlStub, Process
from simulated_gpu import VARIABLE, Plan

from harness.core.record import RunRecord
from harness.core.site import Machine
from harness.execution.local import LocalExecutor, LocalSite, local_site
from harness.execution.sweep import sweep
from harness.planning.plan import plan
from harness.recipe import load_recipe

PROCESS_BYTES = 300 * 2**20
"""What NVML attributes to a worker."""
DEFAULT = Plan()


@dataclass(frozen=True)
class Simulated:
    """Runs recipes on a simulated machine. ``holds`` are the GPUs that NVML shows."""

    sweeps: object
    nvml: NvmlStub
    patch: pytest.MonkeyPatch

    def run(
        self, content: dict[str, object], simulation: Plan = DEFAULT, holds: Sequence[Gpu] = ()
    ) -> tuple[RunRecord, ...]:
        """The records of a recipe, in the order in which they were made."""
        gpus = holds or [H200.running(Process(None, PROCESS_BYTES))]
        self.nvml.holds(*gpus)
        self.patch.setenv(VARIABLE, simulation.to_json())
        recipe = self.sweeps.recipe({"device": "cuda", **content})
        with closing(LocalExecutor(self.site(simulation, gpus))) as executor:
            return sweep(plan(load_recipe(recipe), executor.site), self.sweeps.store, executor, lambda event: None)

    def site(self, simulation: Plan, gpus: Sequence[Gpu]) -> LocalSite:
        uuids = tuple(gpu.uuid for gpu in gpus)
        hardware = Machine("cuda", simulation.name, simulation.capability, uuids, simulation.memory_bytes)
        return replace(local_site(self.sweeps.cache.root), hardware=hardware)
