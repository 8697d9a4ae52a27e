"""Calibration samples are seen where they enter the model; what is left out is known."""

from __future__ import annotations

import pytest
import torch

from harness.core.method import CalibrationSet
from harness.errors import InvalidRunError
from harness.execution.consumption import Consumption
from harness.text.calibration import digest

pytestmark = pytest.mark.heavy

TOKENS = [[1, 2, 3, 4], [5, 6, 7, 0], [8, 9, 1, 1]]
LENGTHS = [4, 3, 4]
GIVEN = CalibrationSet(TOKENS, LENGTHS, digest(TOKENS, LENGTHS))


def consumed(*batches: list[list[int]]) -> CalibrationSet:
    embedding = torch.nn.Embedding(10, 4)
    watcher = Consumption(GIVEN)
    with watcher.watching():
        for batch in batches:
            embedding(torch.tensor(batch))
    embedding(torch.tensor([[8, 9, 1, 1]]))  # after the quantization: not calibration
    return watcher.consumed()


def test_all_samples_in_any_order_are_the_set_itself() -> None:
    assert consumed([[8, 9, 1, 1]], [[1, 2, 3, 4], [5, 6, 7, 0]]) == GIVEN


def test_a_library_may_strip_the_padding() -> None:
    assert consumed([[5, 6, 7]]).tokens == [[5, 6, 7, 0]]


def test_what_was_left_out_and_what_was_added_is_not_counted() -> None:
    found = consumed([[1, 2, 3, 4], [1, 2, 3, 5]])
    assert found.tokens == [[1, 2, 3, 4]]
    assert found.sha256 != GIVEN.sha256


def test_a_library_that_uses_something_else_is_told() -> None:
    with pytest.raises(InvalidRunError, match="none of the calibration samples"):
        consumed([[3, 3, 3, 3]])
