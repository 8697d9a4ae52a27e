"""Whether calibration has seen what is evaluated: shared runs of tokens.

As contamination is looked for in training sets (Brown et al., arXiv:2005.14165, appendix C), with runs of
tokens instead of words.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.contracts import CalibrationSet, Windows
from harness.errors import InvalidRunError

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

    def __str__(self) -> str:
        return f"{self.shared:.3%} of the evaluation's runs of {RUN_TOKENS} tokens stand in the calibration"


def overlap(calibration: Sequence[Sequence[int]], evaluation: Sequence[Sequence[int]], run: int = RUN_TOKENS) -> float:
    """The fraction of the evaluation's runs of ``run`` tokens that stand in the calibration samples too."""
    seen = {each for row in calibration for each in _runs(row, run)}
    met = [each in seen for row in evaluation for each in _runs(row, run)]
    return sum(met) / len(met) if met else 0.0


def _runs(row: Sequence[int], length: int) -> Iterator[bytes]:
    packed = array("q", row).tobytes()
    width = array("q").itemsize
    for start in range(len(row) - length + 1):
        yield packed[start * width : (start + length) * width]
