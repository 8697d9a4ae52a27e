"""Means of values between 0 and 1 with intervals that hold near the ends too, and what several answers tell.

A unit is a question with all of its answers, or the cluster that questions belong to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from harness.core.record import Measurement
from harness.stats.bounds import StudentT
from harness.stats.estimate import CONFIDENCE, Estimate, Floats, numbered
from harness.stats.significance import clustered_t

TAIL = (1 - CONFIDENCE) / 2
ALIKE = 1e-12
"""Units whose means differ by less are alike."""


def mean_share(measurement: Measurement) -> Estimate:
    """The mean of values between 0 and 1, with its 95% interval.

    Exact (Clopper and Pearson, Biometrika 26, 1934) if each unit is one value of 0 or 1, and if all units are alike:
    then the units' number alone says how far the mean may be off. Otherwise the exact interval of as many independent
    values of 0 or 1 as have the units' error (Korn and Graubard, Survey Methodology 24, 1998), which a t-interval of
    few or skewed units is too short for. Raises ValueError for values outside 0 to 1, and without any.
    """
    values = np.asarray(measurement.values, dtype=np.float64)
    if not len(values) or values.min() < 0 or values.max() > 1:
        raise ValueError(f"{measurement.metric}: expected values between 0 and 1")
    names = measurement.cluster_ids or tuple(map(str, range(len(values))))
    count, members = numbered(names)
    sums = np.bincount(members, weights=values).astype(np.float64)
    sizes = np.bincount(members).astype(np.float64)
    mean = float(sums.sum() / sizes.sum())
    if np.ptp(sums / sizes) < ALIKE or (count == len(values) and np.isin(values, (0, 1)).all()):
        independent, name = float(count), "exact interval (Clopper and Pearson)"
    else:
        independent, name = _independent(mean, clustered_t(sums, sizes)), "interval over units (Korn and Graubard)"
    low, high = exact_ends(mean * independent, independent)
    return Estimate(mean, min(low, mean), max(high, mean), count, f"95% {name}")


def _independent(mean: float, found: StudentT) -> float:
    """How many independent values of 0 or 1 have a mean with that error; fewer if the error itself is uncertain."""
    return mean * (1 - mean) / found.error**2 * (_quantile(math.inf) / _quantile(found.degrees)) ** 2


def exact_ends(successes: float, count: float) -> tuple[float, float]:
    """The exact 95% interval of a share (Clopper and Pearson, 1934), also of numbers that are not whole."""
    from scipy.special import betaincinv

    low = 0.0 if successes <= 0 else float(betaincinv(successes, count - successes + 1, TAIL))
    high = 1.0 if successes >= count else float(betaincinv(successes + 1, count - successes, 1 - TAIL))
    return low, high


def question_of(item: str) -> str:
    """The question that an answer belongs to: ``gsm8k:3`` of ``gsm8k:3#2``."""
    return item.partition("#")[0]


def pass_at(score: Measurement, k: int) -> Measurement | None:
    """Of each question, the chance that one of ``k`` answers is right, from n of them of which c are right.

    1 − C(n − c, k) / C(n, k), which is unbiased (Chen et al., arXiv:2107.03374). None if a question has fewer than
    ``k`` answers, or a score is neither 0 nor 1.
    """
    right: dict[str, list[float]] = {}
    for item, value in zip(score.item_ids, score.values, strict=True):
        right.setdefault(question_of(item), []).append(value)
    clusters = dict(zip(map(question_of, score.item_ids), score.cluster_ids, strict=True)) if score.cluster_ids else {}
    if not set(score.values) <= {0.0, 1.0} or any(len(each) < k for each in right.values()):
        return None
    nested = any(cluster != question for question, cluster in clusters.items())
    return replace(
        score,
        metric=f"task_pass_at_{k}",
        values=tuple(unbiased_pass(len(each), int(sum(each)), k) for each in right.values()),
        weights=(),
        item_ids=tuple(right),
        cluster_ids=tuple(clusters[question] for question in right) if nested else (),
    )


def unbiased_pass(answers: int, right: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k)."""
    return 1 - math.comb(answers - right, k) / math.comb(answers, k)


def by_sample(score: Measurement) -> tuple[float, ...]:
    """The mean score of each sample, in order: what each seed alone would have shown."""
    weights = score.weights or (1.0,) * len(score.values)
    found: dict[str, list[tuple[float, float]]] = {}
    for item, value, weight in zip(score.item_ids, score.values, weights, strict=True):
        found.setdefault(item.partition("#")[2], []).append((value * weight, weight))
    return tuple(
        math.fsum(own) / math.fsum(sizes) for own, sizes in (zip(*each, strict=True) for each in found.values())
    )


def spread(means: Sequence[float]) -> float:
    """The standard deviation of what each of several seeds shows. Raises ValueError for fewer than two."""
    if len(means) < 2:
        raise ValueError("one seed has no spread")
    return float(np.std(means, ddof=1))


def per_unit(measurement: Measurement) -> tuple[tuple[str, ...], Floats]:
    """The names of the units and the sum of each one's values."""
    names = measurement.cluster_ids or measurement.item_ids
    count, members = numbered(names)
    sums = np.bincount(members, weights=np.asarray(measurement.values), minlength=count)
    return tuple(sorted(set(names))), sums.astype(np.float64)


def ratio(top: Measurement, bottom: Measurement) -> Estimate | None:
    """Σ top / Σ bottom of the same items, such as tokens per right answer; None if the bottom is zero throughout.

    The interval is that of the ratio estimator over units (Cochran, Sampling Techniques, chapter 6).
    """
    sums, sizes = per_unit(top)[1], per_unit(bottom)[1]
    if sizes.sum() <= 0:
        return None
    value = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Estimate(value, None, None, len(sums), "one unit has no interval")
    error = _relative_error(sums / sums.sum() - sizes / sizes.sum()) * value
    half = _quantile(len(sums) - 1) * error
    return Estimate(value, max(0.0, value - half), value + half, len(sums), "95% t-interval over units")


def ratio_change(
    top: Measurement, bottom: Measurement, base_top: Measurement, base_bottom: Measurement
) -> Estimate | None:
    """How much a ratio differs from the baseline's, as a fraction of that, over the same units.

    The error of the logarithm is linear in the four sums of each unit (the delta method). None if a side has no ratio
    or the units differ.
    """
    columns = [per_unit(each) for each in (top, bottom, base_top, base_bottom)]
    if len({names for names, _ in columns}) > 1 or any(sums.sum() <= 0 for _, sums in columns):
        return None
    (a, b, c, d) = (sums / sums.sum() for _, sums in columns)
    logarithm = math.log(_ratio(columns[0][1], columns[1][1]) / _ratio(columns[2][1], columns[3][1]))
    count = len(a)
    if count < 2:
        return Estimate(math.expm1(logarithm), None, None, count, "one unit has no interval")
    half = _quantile(count - 1) * _relative_error(a - b - c + d)
    low, high = math.expm1(logarithm - half), math.expm1(logarithm + half)
    return Estimate(math.expm1(logarithm), low, high, count, "95% t-interval over units, of the logarithm")


def _ratio(top: Floats, bottom: Floats) -> float:
    return float(top.sum() / bottom.sum())


def _relative_error(pulls: Floats) -> float:
    """The standard error of a sum of units' pulls, which sum to zero."""
    count = len(pulls)
    return math.sqrt(count / (count - 1) * float(pulls @ pulls))


def _quantile(degrees: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 1 - TAIL))
