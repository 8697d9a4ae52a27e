"""A run that nearly filled a GPU under WSL2 is labelled: what does not fit goes to the host, and nothing fails."""

from __future__ import annotations

import platform

import pytest

from harness.core.label import Label
from harness.core.record import Fingerprint, Measurement
from harness.execution.checks.spill import spill

GIB = 2**30
LINUX, WSL = "6.8.0-45-generic", "5.15.167.4-microsoft-standard-WSL2"


def used(size: float, metric: str = "memory_after_bytes", source: str = "NVML device") -> Measurement:
    return Measurement(metric, 2, "byte", "lower", "exact", (size,), {"phase": "prefill", "source": source})


def card(**hardware: int) -> Fingerprint:
    return Fingerprint({"gpu": "a laptop's GPU", **hardware}, {}, {})


@pytest.mark.parametrize(
    ("release", "measured", "fraction"),
    [
        (WSL, [used(2 * GIB), used(7.2 * GIB), used(3 * GIB)], 0.9),  # the highest of its phases
        (WSL, [used(2 * GIB), used(12 * GIB, "peak_memory_bytes", "cuda reserved")], 1.5),  # torch has more than fits
        (WSL, [used(7.1 * GIB)], None),
        (WSL, [used(8 * GIB, source="RssAnon"), used(8 * GIB, "peak_memory_bytes", "VmHWM")], None),  # the host's own
        (WSL, [], None),
        (LINUX, [used(7.9 * GIB)], None),  # there, what does not fit is out of memory
    ],
)
def test_a_nearly_full_gpu_under_wsl_is_labelled(
    monkeypatch: pytest.MonkeyPatch, release: str, measured: list[Measurement], fraction: float | None
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    expected = () if fraction is None else (Label("may_have_spilled", {"fraction": fraction}),)
    assert spill(card(gpu_memory_bytes=8 * GIB), measured) == expected


def test_a_machine_without_a_gpu_or_its_size_is_not_labelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: WSL)
    assert spill(card(), [used(8 * GIB)]) == ()
    assert spill(Fingerprint({"cpu": "a CPU"}, {}, {}), []) == ()
