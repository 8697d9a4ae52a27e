"""Where a variant diverges: its mean KL by position in the window, how it grows, and by the baseline's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from harness.core.record import Measurement
from harness.core.workload import GENERATED
from harness.stats.estimate import Estimate, Floats, numbered, over_clusters, ratio_of_means, ratio_of_sums

POSITION_BINS = 8
CONFIDENCE_EDGES = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True)
class Bin:
    """The scored tokens with ``low`` ≤ x < ``high``: their number, and their mean in its own unit.

    The last bin of a probability includes 1.
    """

    low: float
    high: float
    tokens: int
    mean: Estimate


def by_position(kl: Measurement, least_end: float = 1.0) -> tuple[Bin, ...]:
    """By the number of tokens before the scored one in its window; edges are powers of two.

    ``kl`` has items ``window:position``. Empty bins are left out. The last bin ends at ``least_end``, a power of two,
    at least: bins of two measurements whose last ones end at the same place are the same.
    """
    positions = _positions(tuple(kl.item_ids))
    top = math.ceil(math.log2(max(positions.max() + 1, least_end)))
    powers = 2.0 ** np.arange(max(0, top - POSITION_BINS + 1), top + 1)
    return _bins(kl, positions, np.concatenate([[0.0], powers]))


def growth(kl: Measurement) -> Estimate | None:
    """How many times larger KL is in the later halves of answers than in the earlier ones; None if they show nothing.

    ``kl`` has items ``window:position``, and a cluster is a window, as on a generated text; None on any other.
    """
    if kl.protocol.get("protocol") != GENERATED or not kl.cluster_ids:
        return None
    windows, members = numbered(kl.cluster_ids)
    positions = _positions(tuple(kl.item_ids))
    first, last = np.full(windows, np.iinfo(np.int64).max), np.zeros(windows, dtype=np.int64)
    np.minimum.at(first, members, positions)
    np.maximum.at(last, members, positions)
    late = 2 * positions > (first + last)[members]
    values = np.asarray(kl.values, dtype=np.float64)
    sums, tokens = (
        [np.bincount(members[half], weights=what[half], minlength=windows) for half in (late, ~late)]
        for what in (values, np.ones(len(values)))
    )
    return ratio_of_means((sums[0], tokens[0]), (sums[1], tokens[1]), over_clusters(kl))


@lru_cache(maxsize=16)
def _positions(items: tuple[str, ...]) -> npt.NDArray[np.int64]:
    return np.array([int(item.rpartition(":")[2]) for item in items], dtype=np.int64)


def by_confidence(kl: Measurement, confidence: Measurement) -> tuple[Bin, ...]:
    """By the baseline's highest probability, in tenths. Empty bins are left out.

    Raises ValueError if the two measurements have different tokens.
    """
    if kl.item_ids != confidence.item_ids:
        raise ValueError("KL and the baseline's confidence are not of the same tokens")
    return _bins(kl, np.array(confidence.values), np.array(CONFIDENCE_EDGES))


def _bins(kl: Measurement, keys: npt.NDArray[np.int64] | Floats, edges: Floats) -> tuple[Bin, ...]:
    """The mean of each bin is clustered as that of the whole, by the clusters that have a token in the bin."""
    owner = np.searchsorted(edges, keys, side="right").clip(max=len(edges) - 1) - 1
    clusters, members = numbered(kl.cluster_ids)
    bins = len(edges) - 1
    cells = owner * clusters + members
    sums = np.bincount(cells, weights=np.asarray(kl.values, dtype=np.float64), minlength=bins * clusters)
    tokens = np.bincount(cells, minlength=bins * clusters).reshape(bins, clusters)
    made = []
    for index, (total, count) in enumerate(zip(sums.reshape(bins, clusters), tokens, strict=True)):
        held = count > 0
        if held.any():
            mean = ratio_of_sums(total[held], count[held], over_clusters(kl)).within(0, math.inf)
            made.append(Bin(float(edges[index]), float(edges[index + 1]), int(count.sum()), mean))
    return tuple(made)
