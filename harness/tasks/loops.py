"""Loops: a sequence of tokens that a model writes again and again without anything between. Pure.

An answer loops if some stretch of it consists of one sequence of at most ``LONGEST`` tokens, repeated at least
``REPEATS`` times in a row, and the stretch has at least ``LEAST`` tokens. The last repetition may be cut short. Text
that people write does not do that: see ``tests/tasks/test_loops.py``. A loop that changes a word in every round,
such as one that counts, is not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

LONGEST = 512
REPEATS = 4
LEAST = 64


def loop_tokens(tokens: Sequence[int]) -> int:
    """The tokens of the first stretch that loops, by the length of what it repeats; 0 if there is none."""
    written = np.asarray(tokens, dtype=np.int64)
    for period in range(1, min(LONGEST, len(written) // REPEATS) + 1):
        stretch = period + _longest_run(written[period:] == written[:-period])
        if stretch >= max(REPEATS * period, LEAST):
            return stretch
    return 0


def _longest_run(same: npt.NDArray[np.bool_]) -> int:
    """The most neighbours that are all true."""
    breaks = np.flatnonzero(~same)
    return int(np.diff(breaks, prepend=-1, append=len(same)).max()) - 1
