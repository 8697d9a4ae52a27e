"""Whether a calibration set contains evaluation text, and whether that text repeats itself: shared runs of tokens.

The search is the one for contamination of training sets (Brown et al., arXiv:2005.14165, appendix C), with runs of
tokens instead of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.label import overlap_words
from harness.core.method import CalibrationSet
from harness.core.metric import Windows
from harness.errors import InvalidRunError

Runs = npt.NDArray[np.uint64]

RUN_TOKENS = 16
"""Texts rarely share a run this long by chance: GPT-3's 13 words are about as many tokens."""
TOLERATED = 1e-3
"""The fraction of runs that even unrelated texts share: quotations, licences, tables."""


@dataclass(frozen=True)
class Leak:
    """How much of an evaluation text a calibration set contains: a fraction of its runs of RUN_TOKENS tokens."""

    shared: float

    @classmethod
    def between(cls, calibration: CalibrationSet, windows: Windows) -> Leak:
        return cls(overlap(calibration.tokens, windows.tokens))

    @property
    def is_leak(self) -> bool:
        return self.shared > TOLERATED

    def reject(self) -> None:
        """Raises InvalidRunError if this is a leak."""
        if self.is_leak:
            raise InvalidRunError(
                f"{self}; use another calibration text, or admit it and have every row labelled: --allow-leak"
            )

    @property
    def figures(self) -> dict[str, float]:
        """As arguments of labels and facts."""
        return {"shared": self.shared, "run_tokens": RUN_TOKENS}

    def __str__(self) -> str:
        return overlap_words(self.shared, RUN_TOKENS)


def overlap(calibration: Sequence[Sequence[int]], evaluation: Sequence[Sequence[int]], run: int = RUN_TOKENS) -> float:
    """The fraction of the evaluation's runs of ``run`` tokens that the calibration samples contain too."""
    return _shared(_runs(calibration, run), _runs(evaluation, run))


def halves_overlap(windows: Windows, run: int = RUN_TOKENS) -> float:
    """How much an evaluation text repeats itself: the fraction of its second half's runs that its first half contains.

    Every scored token with enough others before it ends one run, so no run counts twice if windows overlap. A text that
    repeats itself holds less evidence than its length suggests.
    """
    scored = [row[max(0, first - run + 1) :] for row, first in zip(windows.tokens, windows.firsts, strict=True)]
    runs = _runs(scored, run)
    middle = len(runs) // 2
    return _shared(runs[:middle], runs[middle:])


def _shared(known: Runs, runs: Runs) -> float:
    return float(np.isin(runs, known).mean()) if len(runs) else 0.0


def _runs(rows: Sequence[Sequence[int]], length: int) -> Runs:
    """A 64-bit hash of every run of every row: its tokens times random odd factors, summed modulo 2⁶⁴.

    Two different runs of token ids below 2¹⁸ collide with a probability of at most 2⁻⁴⁶.
    """
    factors = np.random.default_rng(0).integers(0, 2**63, length, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    arrays = [np.asarray(row, dtype=np.uint64) for row in rows if len(row) >= length]
    runs = [np.lib.stride_tricks.sliding_window_view(array, length) @ factors for array in arrays]
    return np.concatenate(runs) if runs else np.zeros(0, dtype=np.uint64)
