"""An estimate from the header alone is what a loaded model stores, role by role."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from thorough import all_thorough_but

from harness.core.capability import StoredTensor
from harness.models.memory import DTYPE_BITS, weights
from harness.models.shapes import read

pytestmark = pytest.mark.heavy

QUICK: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    ("rtn", {"bits": 8, "group_size": "channel"}),
    ("rtn", {"bits": 3, "group_size": 32}),
    ("rtn", {"bits": 4, "group_size": "tensor"}),
    ("int8", {}),
    ("fp8", {}),
    ("bnb-int8", {}),
    ("bnb-nf4", {}),
    ("bnb-nf4", {"double_quant": True}),
    ("torchao-int8-dynamic", {}),
    ("torchao-intx", {"bits": 2, "group_size": 32}),
    ("torchao-int4", {"group_size": 32}),
    ("torchao-nvfp4", {}),
    ("torchao-mxfp8", {}),
    ("torchao-mxfp4", {}),
    ("hqq", {"bits": 3, "group_size": 32}),
    ("quanto", {"weights": "int4"}),
]


def by_role(ledger: list[StoredTensor]) -> Counter[str]:
    stored: Counter[str] = Counter()
    for entry in ledger:
        stored[entry.role] += entry.value_bytes + entry.scale_bytes
    return stored


@pytest.mark.parametrize(("name", "given"), QUICK, ids=lambda part: part if isinstance(part, str) else str(part))
@pytest.mark.parametrize("dtype", all_thorough_but(["bfloat16"], ["float32", "bfloat16"]))
def test_stored_bytes_by_role(
    make: Callable[..., Any], tiny: Path, name: str, given: dict[str, Any], dtype: str
) -> None:
    if name.startswith("torchao-mx"):
        dtype = "bfloat16"  # whatever a recipe asks for
    made = make(name, dtype=dtype, **given)
    expected = weights(read(str(tiny)), made.method, made.params, DTYPE_BITS[dtype])
    stored = by_role(made.model.weight_ledger())
    assert expected.linear == pytest.approx(stored["linear"], rel=0.01)
    assert expected.embedding == stored["embedding"]
    assert expected.head == stored["head"] == 0, "tied"
    assert expected.other == pytest.approx(stored["other"], rel=0.01)
    assert expected.total == pytest.approx(sum(stored.values()), rel=0.01)
