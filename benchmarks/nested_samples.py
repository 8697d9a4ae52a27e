"""Verdicts on answers sampled several times per question: ``python benchmarks/nested_samples.py [PAIRS]``.

Simulates pairs of variants whose true difference is known, applies the harness's own rule to their samples, and prints
Markdown tables, which docs/measurements/nested-samples.md records: false alarms beside those of two usual ways to test
the same answers, false equivalence, power by questions and samples, and the coverage of intervals of pass@k.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.core.record import Measurement
from harness.stats.rule import compare
from harness.stats.shares import mean_share, pass_at

Floats = npt.NDArray[np.float64]
Generator = np.random.Generator

ALPHA = 0.05
PAIRS = 1000
SAMPLES = 8
QUESTIONS = (8, 16, 30, 60, 100, 198, 500)
MARGIN = 0.05
DIFFERENCES = (0.01, 0.02, 0.03, 0.05, 0.08)


@dataclass(frozen=True)
class Family:
    """Two variants of equal mean score.

    A question is answered right with a chance p drawn from a Beta distribution with both parameters ``beta``: below 1,
    most questions are nearly always or nearly never solved. ``unlike`` is the standard deviation of what each variant
    adds to a question's log-odds for itself. ``alike`` is the share of samples in which both variants have the same
    luck, as variants have that draw by the same noise.
    """

    beta: float = 0.5
    unlike: float = 0.0
    alike: float = 0.0

    def chances(self, generator: Generator, questions: int) -> tuple[Floats, Floats]:
        odds = np.clip(generator.beta(self.beta, self.beta, questions), 1e-9, 1 - 1e-9)
        own = self.unlike * generator.standard_normal((2, questions))
        both = 1 / (1 + np.exp(-(np.log(odds / (1 - odds)) + own)))
        return both[0], both[1]

    def draw(
        self, generator: Generator, questions: int, samples: int, lost: float = 0.0
    ) -> tuple[Measurement, Measurement]:
        """Both variants' samples; ``lost`` is the true loss of the first one's mean score, which is 0.5 without it."""
        ours, theirs = self.chances(generator, questions)
        luck = generator.random((2, questions, samples))
        same = generator.random((questions, samples)) < self.alike
        luck[0][same] = luck[1][same]
        right = (luck[0] < (ours * (1 - 2 * lost))[:, None], luck[1] < theirs[:, None])
        items = tuple(f"q:{question}#{sample}" for question in range(questions) for sample in range(samples))
        clusters = tuple(item.partition("#")[0] for item in items)
        first = Measurement(
            "task_score", 1, "score", "higher", "paired", tuple(right[0].ravel().astype(float).tolist()), {}, (), items
        )
        first = replace(first, cluster_ids=clusters)
        return first, replace(first, values=tuple(right[1].ravel().astype(float).tolist()))


FAMILIES = {
    "one model twice": Family(),
    "one model twice, shared noise": Family(alike=0.7),
    "unlike on single questions": Family(unlike=1.0),
    "unlike, shared noise": Family(unlike=1.0, alike=0.7),
}


def by_seeds(ours: Measurement, theirs: Measurement, samples: int) -> float:
    """The p-value of a paired t-test over the seeds' mean scores: one usual way to report several seeds."""
    gaps = (np.asarray(ours.values) - np.asarray(theirs.values)).reshape(-1, samples).mean(axis=0)
    return float(stats.ttest_1samp(gaps, 0).pvalue) if gaps.std() else 1.0


def by_samples(ours: Measurement, theirs: Measurement) -> float:
    """The p-value of McNemar's test over all samples, as if each were a question of its own: another usual way."""
    gaps = np.asarray(ours.values) - np.asarray(theirs.values)
    up, down = int((gaps > 0).sum()), int((gaps < 0).sum())
    return float(stats.binomtest(up, up + down).pvalue) if up + down else 1.0


def false_alarms(pairs: int) -> Iterable[str]:
    yield "| family | n | the rule | t-test over seeds | McNemar over samples |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for number, (name, family) in enumerate(FAMILIES.items()):
        for questions in QUESTIONS:
            generator = np.random.default_rng([1, questions, number])
            found = np.zeros(3)
            for _ in range(pairs):
                both = family.draw(generator, questions, SAMPLES)
                verdict = compare(*both, MARGIN, "higher", ALPHA)
                p = verdict.p if verdict.p is not None else 1.0
                found += [p <= ALPHA, by_seeds(*both, SAMPLES) <= ALPHA, by_samples(*both) <= ALPHA]
            yield f"| {name} | {questions} | {' | '.join(f'{share:.1%}' for share in found / pairs)} |"


def false_equivalence(pairs: int) -> Iterable[str]:
    yield f"| n | {' | '.join(FAMILIES)} |"
    yield "| ---: |" + " ---: |" * len(FAMILIES)
    for questions in QUESTIONS:
        cells = []
        for number, family in enumerate(FAMILIES.values()):
            generator = np.random.default_rng([2, questions, number])
            drawn = (family.draw(generator, questions, SAMPLES, lost=MARGIN) for _ in range(pairs))
            called = [compare(*both, MARGIN, "higher", ALPHA).equivalence_p for both in drawn]
            cells.append(f"{np.mean([q is not None and q <= ALPHA for q in called]):.1%}")
        yield f"| {questions} | {' | '.join(cells)} |"


def power(pairs: int) -> Iterable[str]:
    family = FAMILIES["unlike, shared noise"]
    yield f"| questions | samples | {' | '.join(f'{100 * lost:.0f} points' for lost in DIFFERENCES)} | detectable |"
    yield "| ---: | ---: |" + " ---: |" * (len(DIFFERENCES) + 1)
    for questions in (30, 100, 198, 500, 1319):
        for samples in (1, 4, 8, 32) if questions < 1000 else (1, 4, 8):
            shares, reach = [], []
            for lost in DIFFERENCES:
                generator = np.random.default_rng([3, questions, samples, round(1000 * lost)])
                found = [
                    compare(*family.draw(generator, questions, samples, lost), MARGIN, "higher", ALPHA)
                    for _ in range(pairs)
                ]
                shares.append(
                    np.mean([each.p is not None and each.p <= ALPHA and each.effect.value < 0 for each in found])
                )
                reach += [each.detectable for each in found if each.detectable is not None]
            cells = " | ".join(f"{share:.0%}" for share in shares)
            yield f"| {questions} | {samples} | {cells} | {100 * np.median(reach):.1f} |"


def coverage(pairs: int) -> Iterable[str]:
    yield "| n | pass@1 | pass@2 | pass@4 | pass@8 |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    for questions in QUESTIONS:
        generator = np.random.default_rng([4, questions])
        held = np.zeros(4)
        family = Family()
        for _ in range(pairs):
            score, _ = family.draw(generator, questions, SAMPLES)
            for place, k in enumerate((1, 2, 4, 8)):
                passed = pass_at(score, k)
                assert passed is not None
                found = mean_share(passed)
                truth = 1 - float(np.exp(_log_beta_moment(family.beta, k)))
                held[place] += found.low is not None and found.high is not None and found.low <= truth <= found.high
        yield f"| {questions} | {' | '.join(f'{share:.1%}' for share in held / pairs)} |"


def _log_beta_moment(beta: float, k: int) -> float:
    """The logarithm of E (1 − p)^k under the Beta distribution."""
    steps = np.arange(k)
    return float(np.log((beta + steps) / (2 * beta + steps)).sum())


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    for title, lines in (
        ("False alarms", false_alarms(pairs)),
        ("False equivalence", false_equivalence(pairs)),
        ("Power", power(max(1, pairs // 5))),
        ("Coverage", coverage(pairs)),
    ):
        print(f"\n## {title}\n", flush=True)
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
