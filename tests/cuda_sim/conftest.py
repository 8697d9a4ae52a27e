"""A machine with simulated GPUs for the sweeps of a module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml_stub import install
from simulated_machine import Simulated

from harness.execution import local


@pytest.fixture(scope="module")
def simulated_machine(sweep_type, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulated]:
    """One results folder and one cache for a module's sweeps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "WORKER", "cuda_worker")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        nvml = install(tmp_path_factory.mktemp("nvml"), patch)
        yield Simulated(sweep_type(tmp_path_factory.mktemp("simulated")), nvml, patch)
