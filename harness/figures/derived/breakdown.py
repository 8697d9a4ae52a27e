"""Where a variant diverges: its mean KL by position in the window and by the baseline's confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from harness.core.record import Measurement
from harness.stats.estimate import Estimate, Floats, clustered_mean

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


def by_position(kl: Measurement) -> tuple[Bin, ...]:
    """By the number of tokens before the scored one in its window; edges are powers of two.

    ``kl`` has items ``window:position``. Empty bins are left out.
    """
    positions = np.array([int(item.rpartition(":")[2]) for item in kl.item_ids])
    top = math.ceil(math.log2(positions.max() + 1))
    powers = 2.0 ** np.arange(max(0, top - POSITION_BINS + 1), top + 1)
    return _bins(kl, positions, np.concatenate([[0.0], powers]))


def by_confidence(kl: Measurement, confidence: Measurement) -> tuple[Bin, ...]:
    """By the baseline's highest probability, in tenths. Empty bins are left out.

    Raises ValueError if the two measurements have different tokens.
    """
    if kl.item_ids != confidence.item_ids:
        raise ValueError("KL and the baseline's confidence are not of the same tokens")
    return _bins(kl, np.array(confidence.values), np.array(CONFIDENCE_EDGES))


def _bins(kl: Measurement, keys: npt.NDArray[np.int64] | Floats, edges: Floats) -> tuple[Bin, ...]:
    owner = np.searchsorted(edges, keys, side="right").clip(max=len(edges) - 1) - 1
    values, clusters = np.array(kl.values), np.array(kl.cluster_ids)
    made = []
    for index in np.unique(owner):
        inside = owner == index
        part = replace(
            kl, values=tuple(values[inside].tolist()), cluster_ids=tuple(clusters[inside].tolist()), item_ids=()
        )
        mean = clustered_mean(part).within(0, math.inf)
        made.append(Bin(float(edges[index]), float(edges[index + 1]), int(inside.sum()), mean))
    return tuple(made)
