"""What one process measured, and what several did: the one statistic of every figure that processes repeat.

Speeds, energies and peaks of memory are measured again in each process. Reports, comparisons, histories and
recommendations all take their figures from here, so that one set of records gives one number.

Medians: a process that another program slowed down, or a step that waited for the kernel, moves a mean as far as it
was slow, and a median hardly at all. A peak is the exception: the largest one is what has to fit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEWEST_PROCESSES = 3
"""Below, there is no interval: two processes give Student's t one degree of freedom, and a 95% interval that reaches 9
standard deviations to either side bounds nothing: 20 and 21 tok/s would give 15 to 28, 20 and 200 would give 0.00003 to
140 million."""


def of_process(values: Sequence[float]) -> float:
    """The figure of one process: the median of what it measured. Raises ValueError where it measured nothing."""
    if not len(values):
        raise ValueError("nothing measured")
    return float(np.median(values))


def tok_per_s(tokens: int, seconds: Sequence[float]) -> float:
    """The speed of one process: tokens over the median of its timings."""
    return tokens / of_process(seconds)


def over_processes(figures: Sequence[float]) -> float:
    """The figure of several processes: the median of theirs. Raises ValueError where there are none."""
    return of_process(figures)


def highest(peaks: Sequence[float]) -> float:
    """The peak of a process over its phases, and of several over all of theirs."""
    return float(max(peaks))


def too_few(processes: int) -> str:
    """Why there is no interval."""
    return f"{processes} process{'' if processes == 1 else 'es'}: no interval"
