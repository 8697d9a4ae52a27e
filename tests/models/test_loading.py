"""What loading refuses of a checkpoint, in the terms of both generations of transformers."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import SourceError
from harness.models.completeness import refuse_reshaped


@pytest.mark.parametrize(
    ("mismatched", "message"),
    [
        ([("b.weight", (2, 4), (4, 4)), ("a.weight", (1, 4), (4, 4))], r"a.weight: .* \(1, 4\), and .* \(4, 4\)"),
        (["b.weight", "a.weight"], "a.weight: the checkpoint's shape is not"),
    ],
    ids=["transformers 5", "transformers 4.51"],
)
def test_a_tensor_of_another_shape_is_refused_by_its_name(mismatched: list[Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        refuse_reshaped(mismatched)


def test_a_checkpoint_of_the_right_shapes_is_not_refused() -> None:
    refuse_reshaped([])
