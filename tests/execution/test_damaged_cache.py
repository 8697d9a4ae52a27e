"""A checkpoint that changed in the cache, in real sweeps with real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.execution.events import ArtifactDamaged, Ended

pytestmark = pytest.mark.heavy(minutes=0.5)


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_never_reaches_a_figure(sweeps, tiny: Path) -> None:
    def content(windows: int) -> dict[str, object]:
        return {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "methods": [{"rtn": {"group_size": 32}}],
            "exclude": [{"method": "none"}],
            "measure": {"perplexity": {"context": 64, "windows": windows}},
            "threads": 1,
        }

    def made() -> list[str]:
        return [event.record.spec.kind for event in sweeps.events if isinstance(event, Ended) and not event.reused]

    first = {record.spec.kind: record for record in sweeps.run(content(2))}
    quality = first["quality"]
    assert quality.outcome.phases[0].name == "verify"
    assert "verify" not in [phase.name for phase in first["quantize"].outcome.phases]  # it needs nothing of the cache
    folder = sweeps.cache.folder("quantize", first["quantize"].spec.run_id)
    weights = next(folder.glob("*.safetensors"))

    flip(weights, -100)  # before a sweep that needs it
    healed = {record.spec.kind: record for record in sweeps.run(content(3))}
    (damaged,) = [event for event in sweeps.events if isinstance(event, ArtifactDamaged)]
    assert weights.name in damaged.reason
    assert [each.status for each in healed.values()] == ["ok"] * len(healed)
    assert healed["quantize"].attempt == first["quantize"].attempt + 1

    flip(weights, -100)  # after the sweep had looked: the worker hashes it itself
    outcome, _ = sweeps.executor().run(quality.spec, (), lambda phase: None)
    assert (outcome.status, outcome.failure.phase, outcome.failure.type) == ("failed", "verify", "DamagedError")
    assert weights.name in outcome.failure.message
    assert not folder.exists()

    records = sweeps.run(content(2))
    assert made() == []  # every figure is there, and nothing needs the artifact
    assert records[-1].outcome == quality.outcome
