"""Figures of one process and of several: the same statistic for every figure that is repeated over processes.

Speeds, energies and memory peaks are measured again in each process. Reports, comparisons, histories and
recommendations all take their figures from here, so that one set of records gives one number.

Medians: a process slowed down by another program, or a step that waited for the kernel, moves a mean in proportion to
the delay, but a median hardly at all. A peak is the exception: the largest one must fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FEWEST_PROCESSES = 3
"""Minimum number of processes for an interval: with two, Student's t has one degree of freedom, and a 95% interval of 9
standard deviations on each side bounds nothing: 20 and 21 tok/s would give 15 to 28, 20 and 200 would give 0.00003 to
140 million."""


FEW_VALUES = 200
"""Up to this many, sorting them in Python takes less time than the call of NumPy."""


def of_process(values: Sequence[float]) -> float:
    """The figure of one process: the median of its values. Raises ValueError if there are none."""
    count = len(values)
    if not count:
        raise ValueError("nothing measured")
    if count > FEW_VALUES:
        return float(np.median(values))
    ordered = sorted(map(float, values))
    if any(map(math.isnan, ordered)):
        return math.nan
    middle = count // 2
    return ordered[middle] if count % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def tok_per_s(tokens: int, seconds: Sequence[float]) -> float:
    """The speed of one process: tokens over the median of its timings."""
    return tokens / of_process(seconds)


def over_processes(figures: Sequence[float]) -> float:
    """The figure of several processes: the median of theirs. Raises ValueError if there are none."""
    return of_process(figures)


def highest(peaks: Sequence[float]) -> float:
    """The highest peak: of a process over its phases, and of several processes over all of theirs."""
    return float(max(peaks))


def no_interval(processes: int) -> str:
    """Why there is no interval."""
    return f"{processes} process{'' if processes == 1 else 'es'}: no interval"
