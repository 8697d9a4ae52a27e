"""Memory: the peak belongs to its phase, and to no earlier one."""

from __future__ import annotations

import sys

import pytest

from harness.contracts import StoredTensor
from harness.metrics.memory import PeakMemory, weights


@pytest.mark.skipif(sys.platform != "linux", reason="peaks per phase need Linux's clear_refs")
def test_a_phase_is_not_charged_for_the_one_before() -> None:
    import numpy as np

    peaks = PeakMemory("cpu")
    with peaks.phase("large"):
        np.ones(200_000_000, dtype=np.uint8).sum()
    with peaks.phase("small"):
        np.ones(1_000_000, dtype=np.uint8).sum()
    found = {m.protocol["phase"]: m.values[0] for m in peaks.finish()}
    assert 150e6 < found["large"] - found["small"] < 250e6


def test_a_phase_that_fails_still_has_a_peak() -> None:
    peaks = PeakMemory("cpu")
    with pytest.raises(ValueError, match="oh"), peaks.phase("broken"):
        raise ValueError("oh")
    assert [m.protocol["phase"] for m in peaks.finish()] == ["broken"]


def test_stored_bytes_are_summed_by_role_and_tied_ones_counted_once() -> None:
    ledger = [
        StoredTensor("e", "embedding", "float32", 100, 400, 0, False),
        StoredTensor("a", "linear", "PackedLinear", 64, 32, 8, True),
        StoredTensor("b", "linear", "PackedLinear", 64, 32, 8, True),
        StoredTensor("h", "head", "float32", 100, 0, 0, False, tied=True),
    ]
    found = {(m.metric, m.protocol["role"], m.protocol.get("part")): m.values[0] for m in weights(ledger)}
    assert found["stored_bytes", "linear", "values"] == 64
    assert found["stored_bytes", "linear", "scales"] == 16
    assert found["parameters", "head", None] == 0
    assert found["parameters", "embedding", None] == 100
