"""The one rule by which a variant is compared with a baseline: the data determine which test is valid.

Simulation checks the level of every choice here: benchmarks/stats_calibration.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from harness.core.record import Measurement
from harness.stats.bounds import Bound, Outer, StudentT, two_sided
from harness.stats.comparison import Better, Comparison, Design, Test, fewest_units
from harness.stats.estimate import Estimate, Floats
from harness.stats.paired import Pairs, pair, refuse_protocols
from harness.stats.repeats import FEWEST_PROCESSES, no_interval, over_processes
from harness.stats.significance import (
    bca,
    clustered_t,
    continuous,
    cosine_t,
    mcnemar_p,
    permutation,
    score,
    sign_flip,
    welch_t,
)

FEW_UNITS = 16
"""Up to this many nonzero differences, all sign flips are enumerated; beyond, their sum is close enough to normal."""
BOOTSTRAP_UNITS = 50
"""From this many units, the bootstrap may widen, but never narrow, a t-interval of skewed differences."""
FEW_REARRANGEMENTS = 200_000
"""Up to this many ways to divide processes between two samples, all are enumerated: ten and ten."""
ONE_SIGMA = 0.158655
"""The share of a normal distribution that lies at least one standard deviation above its mean."""
FLOOR_KEYS = ("windows", "tokens_scored")
"""Fields in which the protocols of a divergence and its noise floor differ: the floor is measured on fewer windows."""


@dataclass(frozen=True)
class _Evidence:
    """The p-value of no difference, and what the data say about other differences, if that is known.

    ``normal`` is used for planning: it holds the standard error of the mean. ``step`` is Comparison's.
    """

    test: Test
    p: float
    bound: Bound | None
    normal: StudentT
    step: float = 0.0
    notes: tuple[str, ...] = ()


def compare(
    variant: Measurement, baseline: Measurement, margin: float, better: Better, alpha: float = 0.05
) -> Comparison:
    """The paired comparison of two measurements of one metric.

    ``margin`` is the largest difference that does not matter, in the metric's unit; for a perplexity, whose
    differences are in nats, the logarithm of the largest ratio. ``better`` is the desired direction.
    Raises ValueError if the two cannot be paired, if margin or alpha are impossible, and if a divergence is compared
    with one that is zero throughout: it can only be above, so a test would always find a difference.
    """
    if "kl" in variant.metric.split("_") and any(variant.values) != any(baseline.values):
        raise ValueError(
            f"{variant.metric} is zero throughout on one side: compare two variants, or one with the noise floor"
        )
    return _paired(variant, baseline, margin, better, alpha)


def compare_speeds(
    variant: Sequence[float],
    baseline: Sequence[float],
    margin: float,
    alpha: float = 0.05,
    better: Better = "higher",
    over: Callable[[Sequence[float]], float] = over_processes,
) -> Comparison:
    """The comparison of two speeds, energies or peaks: one positive value per process of each side.

    Processes are the units: timings within one process are not independent. The effect is the logarithm of the ratio
    of the two figures in reports, which ``over`` computes from those of the processes. The tests compare the means of
    the processes' logarithms: a shift of all processes shifts mean and median alike, and only a test of means can find
    anything with five processes. If the two disagree so far that the effect lies outside the test's interval, the
    interval is widened to include it, and no effect beyond the margin is called equivalent.
    ``margin`` is the logarithm of the largest ratio that does not matter.
    A rate may be zero, a goodput at which no request met the SLO, and a time infinite, of requests without an answer:
    each is the worst there is. It has no logarithm, so where a process has it the test compares the ranks of the
    processes, and shows no equivalence; the effect is infinite if one of the two figures is. A time or an energy of
    zero is no measurement.
    Raises ValueError if a side has no process, a value is neither positive nor the worst, or margin or alpha are
    impossible.
    """
    worst = 0.0 if better == "higher" else math.inf
    ours, theirs = (_usable(side, worst) for side in (variant, baseline))
    ranked = worst in ours or worst in theirs
    count = min(len(ours), len(theirs))
    effect = _log_ratio(over(variant), over(baseline))
    timing = Measurement("speed", 1, "nat", better, "samples", tuple(variant))
    blank = _blank(timing, margin, better, alpha, effect, count, "processes", "two samples")
    blank = replace(blank, larger=max(len(ours), len(theirs)))
    if count < FEWEST_PROCESSES:
        return replace(blank, notes=(no_interval(count),))
    ours, theirs = _ranks(ours, theirs) if ranked else (np.log(ours), np.log(theirs))
    welch = welch_t(ours, theirs)
    ways = math.comb(len(ours) + len(theirs), count)
    if ways <= FEW_REARRANGEMENTS:
        exact = permutation(ours, theirs)
        evidence = _Evidence("exact permutation test", two_sided(exact), exact, welch)
    else:
        evidence = _Evidence("Welch's t-test", two_sided(welch), welch, welch)
    if ranked:
        return _by_rank(blank, evidence, 2 / ways <= alpha)
    return _holding_effect(_untested(blank, evidence) if 2 / ways > alpha else _filled(blank, evidence))


def _by_rank(blank: Comparison, evidence: _Evidence, testable: bool) -> Comparison:
    """With the p-value of a test of ranks, which gives no interval; if the two point in different directions, any."""
    worst = "zero" if blank.better == "higher" else "infinite"
    blank = replace(blank, notes=(f"{worst} in a process, so that processes are compared by rank",))
    if evidence.normal.mean * blank.effect.value <= 0:
        blank = replace(blank, effect=replace(blank.effect, low=-math.inf, high=math.inf))
    return replace(blank, test=evidence.test, p=evidence.p, adjusted_p=evidence.p) if testable else blank


def _ranks(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """The ranks of both sides among all values; equal ones share the mean of theirs (Wilcoxon, 1945)."""
    from scipy.stats import rankdata  # few comparisons need it

    ranks = rankdata(np.concatenate([ours, theirs]))
    return ranks[: len(ours)], ranks[len(ours) :]


def _holding_effect(found: Comparison) -> Comparison:
    """The same with intervals that include the effect, and no proof that an effect beyond the margin is within it."""
    effect, within = found.effect, found.equivalence_interval
    if effect.low is not None and effect.high is not None:
        effect = replace(effect, low=min(effect.low, effect.value), high=max(effect.high, effect.value))
    if within is not None:
        within = min(within[0], effect.value), max(within[1], effect.value)
    beyond = found.equivalence_p is not None and abs(effect.value) > found.margin
    return replace(
        found,
        effect=effect,
        equivalence_interval=within,
        equivalence_p=1.0 if beyond else found.equivalence_p,
        adjusted_equivalence_p=1.0 if beyond else found.adjusted_equivalence_p,
    )


def above_noise_floor(divergence: Measurement, floor: Measurement, margin: float, alpha: float = 0.05) -> Comparison:
    """A variant's divergence compared with the baseline's from itself, token by token: ``worse`` is above the floor.

    The floor's protocol may have more fields than the divergence's and count other windows. Raises ValueError as
    ``compare`` does.
    """
    shared = divergence.protocol.keys() & floor.protocol.keys() - set(FLOOR_KEYS)
    refuse_protocols(divergence.protocol, floor.protocol, sorted(shared), divergence.metric)
    like = replace(floor, metric=divergence.metric, protocol=divergence.protocol)
    return _paired(divergence, like, margin, "lower", alpha)


def excess(divergence: Measurement, control: Measurement, margin: float, alpha: float = 0.05) -> Comparison:
    """How much more a variant diverges from the baseline than the unquantized model on the same engine, per token.

    The effect is the difference of the two means, so both must score the same tokens. It may be negative. Raises
    ValueError if they do not, and as ``compare`` does.
    """
    if set(divergence.item_ids) != set(control.item_ids):
        raise ValueError(f"{divergence.metric}: the two sides score different tokens")
    return _paired(divergence, control, margin, "lower", alpha)


def _paired(variant: Measurement, baseline: Measurement, margin: float, better: Better, alpha: float) -> Comparison:
    pairs = pair(variant, baseline)
    count = len(pairs.sums)
    blank = _blank(variant, margin, better, alpha, pairs.effect, count, pairs.unit, "paired")
    if pairs.left_out:
        blank = replace(blank, notes=(f"{pairs.left_out} values have no partner and are left out",))
    if count < 2:
        return blank
    evidence = _evidence(pairs)
    if count < fewest_units(alpha, "paired"):
        return _untested(blank, evidence)
    return _filled(blank, evidence)


def _evidence(pairs: Pairs) -> _Evidence:
    """Chooses the valid test by what a unit is, its possible values, and how many units differ at all."""
    sums, sizes = pairs.sums, pairs.sizes
    changed = np.flatnonzero(sums)
    normal = cosine_t(sums, sizes) if pairs.unit == "windows" else clustered_t(sums, sizes)
    if not len(changed) and not pairs.bounded:
        return _Evidence("identity", 1.0, normal, normal, notes=("all values are equal",))
    if pairs.binary:
        return _of_shares("McNemar's exact test", mcnemar_p(sums), pairs)
    if pairs.unit == "windows":
        found = _Evidence("t-test for dependent neighbours", two_sided(normal), normal, normal)
    elif len(changed) <= FEW_UNITS:
        p = two_sided(sign_flip(sums[changed], sizes[changed]))
        bound = sign_flip(sums, sizes) if len(sums) <= FEW_UNITS else _with_bootstrap(normal, sums, sizes)
        found = _Evidence("exact sign-flip test", p, bound, normal)
    else:
        p = two_sided(continuous(normal, sums, sizes))
        found = _Evidence("clustered t-test", p, _with_bootstrap(normal, sums, sizes), normal)
    if len(changed) <= FEW_UNITS and 2 * len(changed) < len(sums):
        few = f"only {len(changed)} of {len(sums)} {pairs.unit} differ"
        found = _of_shares(found.test, found.p, pairs) if pairs.bounded else replace(found, bound=None)
        return replace(found, notes=(few,))
    return found


def _of_shares(test: Test, p: float, pairs: Pairs) -> _Evidence:
    """With the score interval, for units that change by at most 1: observed changes alone understate how many might."""
    bound = score(pairs.sums, pairs.sizes)
    low, high = bound.ends(ONE_SIGMA)
    normal = StudentT(pairs.effect, (high - low) / 2, len(pairs.sums) - 1)
    return _Evidence(test, p, bound, normal, bound.scale / bound.count)


def _with_bootstrap(normal: StudentT, sums: Floats, sizes: Floats) -> Bound:
    """If the bootstrap is valid, the wider of both: it accounts for skewed differences, which t ignores."""
    return Outer(normal, bca(sums, sizes)) if len(sums) >= BOOTSTRAP_UNITS else normal


def _blank(
    metric: Measurement,
    margin: float,
    better: Better,
    alpha: float,
    effect: float,
    count: int,
    units: str,
    design: Design,
) -> Comparison:
    """A comparison without any test."""
    if not (math.isfinite(margin) and margin > 0):
        raise ValueError(f"a margin must be a positive number, not {margin}")
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5, not be {alpha}")
    if better not in ("lower", "higher"):
        raise ValueError(f"better is 'lower' or 'higher', not {better!r}")
    return Comparison(
        metric=metric.metric,
        unit=metric.unit,
        better=better,
        margin=margin,
        alpha=alpha,
        effect=Estimate(effect, None, None, count, "none"),
        units=units,
        design=design,
        test="none",
        p=None,
        equivalence_p=None,
        equivalence_interval=None,
        scatter=None,
    )


def _untested(blank: Comparison, evidence: _Evidence) -> Comparison:
    """Too few units for a test. If its interval has no ends, shows that of normal differences instead."""
    bound, normal = evidence.bound, evidence.normal
    found = _estimate(blank, bound) if bound else blank.effect
    if not bound or math.isinf(bound.ends(blank.alpha / 2)[0]):
        found = _estimate(blank, normal, ", were differences normal")
    return replace(blank, effect=found, scatter=_scatter(blank, normal))


def _filled(blank: Comparison, evidence: _Evidence) -> Comparison:
    bound, normal = evidence.bound, evidence.normal
    q = max(bound.tails(blank.margin)[1], bound.tails(-blank.margin)[0]) if bound else None
    return replace(
        blank,
        effect=_estimate(blank, bound) if bound else blank.effect,
        test=evidence.test,
        p=evidence.p,
        adjusted_p=evidence.p,
        equivalence_p=q,
        adjusted_equivalence_p=q,
        equivalence_interval=bound.ends(blank.alpha) if bound else None,
        scatter=_scatter(blank, normal),
        degrees=normal.degrees,
        step=evidence.step,
        notes=(*blank.notes, *evidence.notes),
    )


def _estimate(blank: Comparison, bound: Bound, condition: str = "") -> Estimate:
    low, high = bound.ends(blank.alpha / 2)
    return replace(blank.effect, low=low, high=high, method=f"{1 - blank.alpha:.0%} {bound.name}{condition}")


def _scatter(blank: Comparison, normal: StudentT) -> float:
    """Of one unit: the error of n units is this over √n, of two samples of n over √(n/2)."""
    return normal.error * math.sqrt(blank.effect.n / (1 if blank.design == "paired" else 2))


def _log_ratio(variant: float, baseline: float) -> float:
    """Infinite if one of them is zero or infinite, and 0 if both are."""
    if variant == baseline:
        return 0.0
    if 0 in (variant, baseline) or math.inf in (variant, baseline):
        return math.copysign(math.inf, variant - baseline)
    return math.log(variant) - math.log(baseline)


def _usable(figures: Sequence[float], worst: float) -> Floats:
    found = np.asarray(figures, dtype=np.float64)
    if not len(found) or not ((found == worst) | (np.isfinite(found) & (found > 0))).all():
        raise ValueError("a comparison of processes needs positive ones, at least one of each side")
    return found
