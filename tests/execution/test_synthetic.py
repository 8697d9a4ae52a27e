"""Random weights in a given shape: speed and memory without a download, and the experts of a mixture."""

from __future__ import annotations

import pytest

from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord

pytestmark = [pytest.mark.heavy, pytest.mark.thorough]

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, sweep_type) -> dict[tuple[str, str], RunRecord]:
    sweeps = sweep_type(tmp_path_factory.mktemp("synthetic"))
    made = sweeps.run(
        {
            "models": [
                {"id": "synthetic:llama", "label": "dense", "config": SHAPE},
                {"id": "synthetic:mixtral", "label": "mixture", "config": {**SHAPE, **EXPERTS}},
            ],
            "methods": ["none", "int8"],
            "measure": {
                "perplexity": {"context": 64, "windows": 2},
                "divergence": {},
                "memory": {},
                "throughput": {"prompt_tokens": 8, "new_tokens": 2, "iterations": 1},
            },
        }
    )
    assert {record.spec.kind for record in made} == {"machine", "prepare", "performance"}
    return {(r.spec.model.label, r.spec.method.label): r for r in made if r.spec.kind == "performance"}


def stored(record: RunRecord, role: str, part: str) -> float:
    found = record.find("stored_bytes", role=role, part=part)
    assert found is not None
    return found.values[0]


def test_bytes_follow_from_the_shape(records) -> None:
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert stored(records["dense", "none"], "linear", "values") == 4 * matrices
    assert stored(records["dense", "int8"], "linear", "values") == matrices
    assert stored(records["dense", "none"], "embedding", "values") == 4 * 128 * 64


def test_speed_is_measured_and_quality_is_blank(records) -> None:
    (table,) = [t for t in tradeoff(list(records.values())) if t.model == "dense"]
    for row in table.rows:
        assert row.perplexity is None
        assert row.kl_mean is None
        assert row.speeds


def test_a_library_quantizes_the_experts_of_a_mixture(records) -> None:
    """transformers stacks them in 3-D parameters, which a library that looks for nn.Linear does not see."""
    record = records["mixture", "int8"]
    assert record.status == "ok"
    experts = 2 * 4 * 3 * 64 * 128
    attention = 2 * (2 * 64 * 64 + 2 * 32 * 64)
    routers_bytes = 2 * 4 * 64 * 4  # they stay in float32
    assert stored(record, "linear", "values") == attention + experts + routers_bytes
    covered = record.find("coverage")
    assert covered is not None
    assert covered.values[0] == 1
    assert records["mixture", "none"].status == "ok"
