"""Whether calibration has seen what is evaluated: shared runs of tokens.

As contamination is looked for in training sets (Brown et al., arXiv:2005.14165, appendix C), with runs of
tokens instead of words.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

RUN_TOKENS = 16
"""A run this long that stands in both texts was hardly written twice: GPT-3's 13 words are about as many tokens."""
TOLERATED = 1e-3
"""The part of the evaluation's runs that quotations, licences and tables share even between unrelated texts."""


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
