"""The probe: what counts as the same model, and what is told with both figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness.errors import InvalidRunError
from harness.execution.checks import reload as probe

pytestmark = pytest.mark.heavy

IDS = torch.arange(8).unsqueeze(0)
LOGITS = torch.randn((1, 8, 32), generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    class Model:
        device = torch.device("cpu")

        def __call__(self, input_ids: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=LOGITS)

    probe.save(probe.evaluate(Model(), IDS), tmp_path)
    return tmp_path


def test_rounding_is_no_difference(kept: Path) -> None:
    found = probe.compare(kept, lambda ids: LOGITS * (1 + 1e-6), "it differs")
    assert found.rounding
    assert found.loss_kept == pytest.approx(
        float(torch.nn.functional.cross_entropy(LOGITS[0, :-1].double(), IDS[0, 1:])), rel=1e-9
    )


def test_a_shift_that_changes_nothing_but_logits_is_told_and_let_pass(kept: Path) -> None:
    """Adding a constant to all logits of a token leaves every probability as it was."""
    found = probe.compare(kept, lambda ids: LOGITS + 1, "it differs")
    assert not found.rounding
    assert found.kl == pytest.approx(0, abs=1e-9)


def test_another_model_is_invalid_with_both_figures(kept: Path) -> None:
    with pytest.raises(InvalidRunError, match=r"reloaded: logits by .* of the largest, KL .* before and .* now"):
        probe.compare(kept, lambda ids: LOGITS.flip(-1), "reloaded")


def test_not_a_number_is_invalid(kept: Path) -> None:
    with pytest.raises(InvalidRunError, match="nan"):
        probe.compare(kept, lambda ids: LOGITS * torch.nan, "reloaded")


def test_the_text_is_read_by_the_checkpoints_own_tokenizer_and_random_ids_repeat(tiny: Path, tmp_path: Path) -> None:
    assert probe.tokens(tiny, 512).shape == (1, probe.TOKENS)
    first, again = probe.tokens(tmp_path, 100), probe.tokens(tmp_path, 100)
    assert torch.equal(first, again)
    assert int(first.max()) < 100
