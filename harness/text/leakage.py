"""Whether calibration has seen what is evaluated, and whether what is evaluated repeats itself: shared runs of tokens.

As contamination is looked for in training sets (Brown et al., arXiv:2005.14165, appendix C), with runs of
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
"""A run this long that stands in both texts was hardly written twice: GPT-3's 13 words are about as many tokens."""
TOLERATED = 1e-3
"""The part of the evaluation's runs that quotations, licences and tables share even between unrelated texts."""


@dataclass(frozen=True)
class Leak:
    """How much of an evaluation text stands in a calibration set: a fraction of its runs of RUN_TOKENS."""

    shared: float

    @classmethod
    def between(cls, calibration: CalibrationSet, windows: Windows) -> Leak:
        return cls(overlap(calibration.tokens, windows.tokens))

    @property
    def found(self) -> bool:
        return self.shared > TOLERATED

    def refuse(self) -> None:
        """Raises InvalidRunError where there is one."""
        if self.found:
            raise InvalidRunError(f"{self}; name another calibration text, or have every row marked: --allow-leak")

    @property
    def figures(self) -> dict[str, float]:
        """As arguments of labels and facts."""
        return {"shared": self.shared, "run_tokens": RUN_TOKENS}

    def __str__(self) -> str:
        return overlap_words(self.shared, RUN_TOKENS)


def overlap(calibration: Sequence[Sequence[int]], evaluation: Sequence[Sequence[int]], run: int = RUN_TOKENS) -> float:
    """The fraction of the evaluation's runs of ``run`` tokens that stand in the calibration samples too."""
    return _shared(_runs(calibration, run), _runs(evaluation, run))


def halves(windows: Windows, run: int = RUN_TOKENS) -> float:
    """How far an evaluation repeats itself: the fraction of its second half's runs that stand in its first half.

    Every scored token that has enough others before it ends one run, so that no run counts twice where windows
    overlap. A text that repeats itself holds less evidence than its length says.
    """
    scored = [row[max(0, first - run + 1) :] for row, first in zip(windows.tokens, windows.firsts, strict=True)]
    runs = _runs(scored, run)
    middle = len(runs) // 2
    return _shared(runs[:middle], runs[middle:])


def _shared(seen: Runs, asked: Runs) -> float:
    return float(np.isin(asked, seen).mean()) if len(asked) else 0.0


def _runs(rows: Sequence[Sequence[int]], length: int) -> Runs:
    """Every run of every row as a number of 64 bits: its tokens times random odd factors, summed modulo 2⁶⁴.

    Two different runs of token ids below 2¹⁸ get one number with a probability of 2⁻⁴⁶ at the most.
    """
    factors = np.random.default_rng(0).integers(0, 2**63, length, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    arrays = [np.asarray(row, dtype=np.uint64) for row in rows if len(row) >= length]
    found = [np.lib.stride_tricks.sliding_window_view(array, length) @ factors for array in arrays]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)
