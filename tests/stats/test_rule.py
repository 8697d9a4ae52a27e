"""The rule that compares a variant with a baseline: what it pairs, which test it takes, what it concludes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar

from harness.core.identity import Scalar
from harness.core.record import Measurement
from harness.stats.comparison import Comparison, holm
from harness.stats.paired import Flips, flips, pair
from harness.stats.rule import above_noise_floor, compare, compare_speeds

GPTQ: dict[str, Scalar] = {"protocol": "gptq", "stride": 512, "windows": 8, "text": "demo"}
PAGES: dict[str, Scalar] = {"protocol": "lm-eval", "stride": 512, "documents": 8}
RNG = np.random.default_rng(7)


def nats(values: Sequence[float], **changes: object) -> Measurement:
    """Independent items in nats."""
    items = tuple(map(str, range(len(values))))
    made = Measurement("task_score", 1, "nat", "lower", "paired", tuple(map(float, values)), item_ids=items)
    return replace(made, **changes)  # type: ignore[arg-type]


def answers(values: Sequence[float], **changes: object) -> Measurement:
    return replace(nats(values, unit="score", direction="higher"), **changes)  # type: ignore[arg-type]


def windows(values: Sequence[float], **changes: object) -> Measurement:
    return replace(nats(values, metric="nll", unit="nat/token", protocol=GPTQ), **changes)  # type: ignore[arg-type]


def kl(values: Sequence[float], per_window: int) -> Measurement:
    items = tuple(f"{index // per_window}:{1 + index % per_window}" for index in range(len(values)))
    clusters = tuple(item.partition(":")[0] for item in items)
    return nats(values, metric="kl", protocol=GPTQ, item_ids=items, cluster_ids=clusters)


class TestWhichTest:
    def test_few_independent_items_have_their_signs_flipped(self) -> None:
        ours, theirs = RNG.normal(size=(2, 9))
        found = compare(nats(ours), nats(theirs), 0.1, "lower")
        expected = scipy_stats.permutation_test(
            (ours - theirs,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert (found.test, found.units) == ("exact sign-flip test", "items")
        assert found.p == pytest.approx(expected.pvalue)

    def test_more_of_them_make_a_t_test(self) -> None:
        ours, theirs = RNG.normal(size=(2, 30))
        found = compare(nats(ours), nats(theirs), 0.1, "lower")
        assert found.test == "clustered t-test"
        assert found.p == pytest.approx(scipy_stats.ttest_rel(ours, theirs).pvalue, rel=0.1)
        assert (found.effect.low, found.effect.high) == pytest.approx(
            tuple(scipy_stats.ttest_rel(ours, theirs).confidence_interval(0.95))
        )

    def test_independent_answers_make_mcnemars(self) -> None:
        ours, theirs = [1.0] * 30 + [0.0] * 10 + [1.0] * 20, [1.0] * 30 + [1.0] * 10 + [0.0] * 20
        found = compare(answers(ours), answers(theirs), 0.01, "higher")
        assert found.test == "McNemar's exact test"
        assert found.p == pytest.approx(mcnemar([[30, 20], [10, 0]], exact=True).pvalue)

    @pytest.mark.parametrize(
        "changes", [{"cluster_ids": ("a", "b") * 20}, {"weights": (1.0, 2.0) * 20}], ids=["clusters", "weights"]
    )
    def test_answers_that_hang_together_or_weigh_unlike_do_not(self, changes: dict[str, object]) -> None:
        ours, theirs = RNG.integers(0, 2, (2, 40)).astype(float)
        found = compare(answers(ours, **changes), answers(theirs, **changes), 0.01, "higher")
        assert found.test != "McNemar's exact test"

    def test_whole_numbers_of_nats_are_no_answers(self) -> None:
        ours, theirs = RNG.integers(0, 2, (2, 40)).astype(float)
        assert compare(nats(ours), nats(theirs), 0.01, "lower").test != "McNemar's exact test"

    def test_questions_on_one_passage_are_one_unit(self) -> None:
        """A hundred copies of each of eight differences say no more than the eight."""
        difference = RNG.normal(0.4, 0.5, 8)
        once = compare(nats(difference), nats([0.0] * 8), 0.1, "lower")
        clusters = tuple(str(index % 8) for index in range(800))
        copied = nats(np.tile(difference, 100), cluster_ids=clusters)
        many = compare(copied, nats([0.0] * 800, cluster_ids=clusters), 0.1, "lower")
        assert (many.units, many.effect.n, many.p) == ("clusters", 8, once.p)

    def test_windows_of_one_text_may_depend_on_their_neighbours(self) -> None:
        found = compare(windows(RNG.normal(size=20)), windows(RNG.normal(size=20)), 0.01, "lower")
        assert (found.test, found.units, found.effect.n) == ("t-test for dependent neighbours", "windows", 20)

    def test_tokens_count_by_their_windows_in_the_order_of_the_text(self) -> None:
        """Twelve windows, of which '10' and '11' come last and not after '1'."""
        drift = np.repeat(np.arange(12.0), 3)
        found = compare(kl(drift + 1, 3), kl(np.ones(36), 3), 0.1, "lower")
        expected = compare(windows(np.arange(12.0) + 1), windows(np.ones(12)), 0.1, "lower")
        assert (found.units, found.effect.n) == ("windows", 12)
        assert found.effect.high == pytest.approx(expected.effect.high)

    def test_documents_are_independent_of_one_another(self) -> None:
        documents = tuple(str(index // 2) for index in range(16))
        sides = [windows(RNG.normal(size=16), cluster_ids=documents) for _ in range(2)]
        found = compare(*(replace(side, protocol=PAGES) for side in sides), 0.01, "lower")
        assert (found.test, found.units, found.effect.n) == ("exact sign-flip test", "documents", 8)

    def test_one_document_is_one_running_text(self) -> None:
        sides = [windows(RNG.normal(size=16), protocol={**PAGES, "documents": 1}) for _ in range(2)]
        assert compare(*sides, 0.01, "lower").units == "windows"

    def test_where_few_clusters_change_the_interval_tells_of_those_that_might(self) -> None:
        """Two of thirty passages changed by one question of four: observed scatter would say within 3.5%."""
        clusters = tuple(str(index // 4) for index in range(120))
        ours = np.ones(120)
        ours[[0, 4]] = 0
        found = compare(
            answers(ours, cluster_ids=clusters), answers(np.ones(120), cluster_ids=clusters), 0.05, "higher"
        )
        assert found.notes == ("only 2 of 30 clusters differ",)
        assert found.effect.low is not None
        assert found.effect.low < -0.05
        assert found.verdict == "inconclusive"

    def test_where_few_values_that_have_no_limit_change_nothing_is_equivalent(self) -> None:
        ours = np.zeros(40)
        ours[:3] = 0.001
        found = compare(nats(ours), nats(np.zeros(40)), 1.0, "lower")
        assert (found.verdict, found.effect.low, found.equivalence_p) == ("inconclusive", None, None)


class TestVerdicts:
    def test_a_small_change_shows_in_pairs_and_not_beside_one_another(self) -> None:
        """Items differ by nats, the variant by a hundredth: an unpaired test would see nothing."""
        hardness = RNG.normal(3, 2, 40)
        ours = hardness + 0.01 + 0.002 * RNG.standard_normal(40)
        found = compare(nats(ours), nats(hardness), 1e-4, "lower")
        assert scipy_stats.ttest_ind(ours, hardness).pvalue > 0.5
        assert found.verdict == "worse"
        assert found.effect.value == pytest.approx(0.01, abs=0.002)

    @pytest.mark.parametrize(("better", "word"), [("lower", "worse"), ("higher", "better")])
    def test_which_way_is_better_is_for_the_metric_to_say(self, better: str, word: str) -> None:
        ours = 1 + 0.1 * RNG.standard_normal(12)
        assert compare(nats(ours), nats(np.zeros(12)), 0.1, better).verdict == word  # type: ignore[arg-type]

    def test_a_difference_within_the_margin_is_none_that_matters(self) -> None:
        ours = 0.5 + 0.1 * RNG.standard_normal(12)
        found = compare(nats(ours), nats(np.zeros(12)), 1.0, "lower")
        assert (found.different, found.verdict) == (True, "equivalent")
        low, high = found.equivalence_interval or (math.nan, math.nan)
        assert -1 < low < high < 1

    def test_no_difference_found_is_not_equivalence(self) -> None:
        ours = RNG.standard_normal(12)
        found = compare(nats(ours - ours.mean()), nats(np.zeros(12)), 0.01, "lower")
        assert found.verdict == "inconclusive"
        assert found.units_needed is not None
        assert found.units_needed > 12

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_too_few_units_are_inconclusive_and_say_how_many_it_takes(self, count: int) -> None:
        found = compare(nats([100.0 + index for index in range(count)]), nats([0.0] * count), 0.1, "lower")
        assert (found.verdict, found.p, found.equivalence_p) == ("inconclusive", None, None)
        assert found.finding == f"no test is valid at n = {count} items: it takes at least 6"
        assert (found.effect.low is None) == (count == 1)

    def test_six_units_suffice_for_what_is_plain(self) -> None:
        assert compare(nats([100.0 + index for index in range(6)]), nats([0.0] * 6), 0.1, "lower").verdict == "worse"

    def test_a_sharper_level_takes_more_units(self) -> None:
        found = compare(nats([9.0] * 7), nats([0.0] * 7), 0.1, "lower", alpha=0.01)
        assert (found.verdict, found.units_needed) == ("inconclusive", 8)

    def test_equal_outputs_are_equivalent(self) -> None:
        values = RNG.normal(size=8)
        found = compare(windows(values), windows(values), 1e-6, "lower")
        assert (found.verdict, found.p, found.effect.value) == ("equivalent", 1.0, 0.0)
        assert found.notes == ("all values are equal",)

    def test_equal_answers_to_few_questions_are_not(self) -> None:
        right = answers([1.0] * 20)
        assert compare(right, right, 0.01, "higher").verdict == "inconclusive"
        many = answers([1.0] * 1000)
        assert compare(many, many, 0.01, "higher").verdict == "equivalent"

    def test_what_is_detectable_is_found_four_times_in_five(self) -> None:
        generator = np.random.default_rng(0)
        reach = np.mean([compare(*_apart(generator, 0.0), 0.1, "lower").detectable for _ in range(200)])
        found = [compare(*_apart(generator, float(reach)), 1e-9, "lower").different for _ in range(600)]
        assert np.mean(found) == pytest.approx(0.8, abs=0.06)

    def test_among_eight_comparisons_more_is_needed_and_what_is_detectable_is_found_four_times_in_five(self) -> None:
        generator = np.random.default_rng(0)
        alone = [compare(*_apart(generator, 0.0), 0.1, "lower") for _ in range(200)]
        reach = float(np.mean([holm([found] * 8)[0].detectable for found in alone]))
        assert reach > 1.2 * float(np.mean([found.detectable for found in alone]))
        found = [compare(*_apart(generator, reach), 1e-9, "lower").p <= 0.05 / 8 for _ in range(600)]
        assert np.mean(found) == pytest.approx(0.8, abs=0.06)

    def test_an_exact_test_of_few_units_finds_nothing_among_many_whatever_the_difference(self) -> None:
        """Flipping eight signs has 256 results: p is 1/128 at least, and Holm asks for 0.05/8 of the smallest."""
        eight = compare(nats(np.arange(1.0, 9.0)), nats(np.zeros(8)), 0.1, "lower")
        assert eight.p == pytest.approx(1 / 128)
        assert [holm([eight] * tests)[0].can_find for tests in (6, 7)] == [True, False]
        assert [holm([eight] * tests)[0].different for tests in (6, 7)] == [True, False]
        assert holm([eight] * 6)[0].detectable > eight.detectable
        assert holm([eight] * 7)[0].detectable is None

    @pytest.mark.parametrize(("questions", "tests", "detectable"), [(6, 1, 1), (7, 1, 1), (7, 8, None), (10, 8, 1)])
    def test_no_more_than_all_answers_change(self, questions: int, tests: int, detectable: int | None) -> None:
        """Among eight tests, nine answers must change alike: of seven questions no difference shows that."""
        alike = compare(answers([1.0] * questions), answers([1.0] * questions), 0.01, "higher")
        every = compare(answers([1.0] * questions), answers([0.0] * questions), 0.01, "higher")
        assert holm([alike] * tests)[0].detectable == detectable
        assert holm([every] * tests)[0].different == holm([every] * tests)[0].can_find == (detectable is not None)

    def test_answers_that_never_changed_still_have_a_detectable_difference(self) -> None:
        """Six must change alike to be found: of 100 questions no difference below that many is found often."""
        found = compare(answers([1.0] * 100), answers([1.0] * 100), 0.01, "higher")
        assert found.detectable is not None
        assert found.detectable * 100 == pytest.approx(7.9, abs=0.05)
        assert scipy_stats.poisson.sf(5, found.detectable * 100) == pytest.approx(0.8)


def _apart(generator: np.random.Generator, shift: float) -> tuple[Measurement, Measurement]:
    ours, theirs = generator.standard_normal((2, 24))
    return nats(ours + shift), nats(theirs)


CASES = st.sampled_from(["items", "answers", "windows", "clusters"])


def _sides(case: str, seed: int, count: int, scale: float = 1.0) -> tuple[Measurement, Measurement]:
    generator = np.random.default_rng(seed)
    ours, theirs = generator.normal([[0.3], [0.0]], 1, (2, count)) * scale
    if case == "answers":
        return answers(np.where(ours > 0, 1.0, 0.0)), answers(np.where(theirs > 0, 1.0, 0.0))
    if case == "windows":
        return windows(ours), windows(theirs)
    clusters = tuple(str(index // 2) for index in range(count)) if case == "clusters" else ()
    return nats(ours, cluster_ids=clusters), nats(theirs, cluster_ids=clusters)


class TestProperties:
    @given(CASES, st.integers(0, 10_000), st.integers(1, 80))
    def test_swapping_sides_turns_the_effect_and_the_verdict_round(self, case: str, seed: int, count: int) -> None:
        ours, theirs = _sides(case, seed, count)
        one, other = compare(ours, theirs, 0.2, "lower"), compare(theirs, ours, 0.2, "lower")
        assert other.effect.value == pytest.approx(-one.effect.value)
        _same([other.effect.low, other.effect.high], [_minus(one.effect.high), _minus(one.effect.low)])
        _same([other.p, other.equivalence_p], [one.p, one.equivalence_p])
        assert other.verdict == {"better": "worse", "worse": "better"}.get(one.verdict, one.verdict)

    @given(st.sampled_from(["items", "windows", "clusters"]), st.integers(0, 10_000), st.integers(2, 80))
    def test_another_unit_of_measurement_changes_no_verdict(self, case: str, seed: int, count: int) -> None:
        one = compare(*_sides(case, seed, count), 0.2, "lower")
        other = compare(*_sides(case, seed, count, scale=1000.0), 200.0, "lower")
        _same([other.p, other.equivalence_p], [one.p, one.equivalence_p])
        assert (other.verdict, other.units_needed) == (one.verdict, one.units_needed)
        _same([other.effect.low, other.detectable], [_times(one.effect.low), _times(one.detectable)])

    @given(CASES, st.integers(0, 10_000), st.integers(2, 80))
    def test_the_order_of_the_items_is_of_no_matter(self, case: str, seed: int, count: int) -> None:
        ours, theirs = _sides(case, seed, count)
        order = np.random.default_rng(seed).permutation(count)
        mixed = replace(
            ours,
            values=tuple(ours.values[index] for index in order),
            item_ids=tuple(ours.item_ids[index] for index in order),
            cluster_ids=tuple(ours.cluster_ids[index] for index in order) if ours.cluster_ids else (),
        )
        one, other = compare(ours, theirs, 0.2, "lower"), compare(mixed, theirs, 0.2, "lower")
        _same([other.p, other.equivalence_p, other.effect.low], [one.p, one.equivalence_p, one.effect.low])

    @given(CASES, st.integers(0, 10_000), st.integers(12, 80))
    def test_a_wider_margin_never_takes_equivalence_back(self, case: str, seed: int, count: int) -> None:
        ours, theirs = _sides(case, seed, count)
        margins = (0.1, 0.4, 0.9, 3.0)
        p = [compare(ours, theirs, margin, "lower").equivalence_p for margin in margins]
        assert all(value is not None for value in p)
        assert sorted(p, reverse=True) == p  # type: ignore[type-var]


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


def _times(value: float | None) -> float | None:
    return None if value is None else 1000 * value


def _same(found: Sequence[float | None], expected: Sequence[float | None]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


class TestDivergence:
    def test_two_variants_are_compared_with_each_other(self) -> None:
        ours, theirs = RNG.exponential(0.3, 160), RNG.exponential(0.1, 160)
        found = compare(kl(ours, 8), kl(theirs, 8), 0.001, "lower")
        assert (found.verdict, found.units, found.effect.n) == ("worse", "windows", 20)

    def test_a_variant_is_never_compared_with_zero(self) -> None:
        """Whatever it diverges by, it is above: the test would always find it."""
        for sides in ((kl([1e-9] * 80, 8), kl([0.0] * 80, 8)), (kl([0.0] * 80, 8), kl([1e-9] * 80, 8))):
            with pytest.raises(ValueError, match="zero throughout on one side: compare two variants, or one with the"):
                compare(*sides, 0.001, "lower")

    def test_above_the_noise_floor(self) -> None:
        noise, damage = RNG.exponential(1e-6, 96), RNG.exponential(0.1, 160)
        floor = replace(
            kl(noise, 8), metric="kl_noise_floor", protocol={**GPTQ, "windows": 12, "changed": "batch size"}
        )
        found = above_noise_floor(kl(damage, 8), floor, 0.001)
        assert (found.verdict, found.effect.n) == ("worse", 12)
        again = kl(RNG.exponential(1e-6, 160), 8)
        assert above_noise_floor(again, floor, 0.001).verdict == "equivalent"

    def test_a_floor_of_two_windows_decides_nothing(self) -> None:
        floor = replace(kl([1e-7] * 16, 8), metric="kl_noise_floor", protocol={**GPTQ, "windows": 2})
        found = above_noise_floor(kl([0.1] * 160, 8), floor, 0.001)
        assert (found.verdict, found.effect.n, found.p) == ("inconclusive", 2, None)

    def test_a_floor_of_another_text_is_refused(self) -> None:
        floor = replace(kl([1e-7] * 16, 8), metric="kl_noise_floor", protocol={**GPTQ, "text": "other"})
        with pytest.raises(ValueError, match="two protocols: text 'demo' and 'other'"):
            above_noise_floor(kl([0.1] * 160, 8), floor, 0.001)


class TestSpeeds:
    def test_four_processes_a_side_are_the_least(self) -> None:
        slow, fast = [10.0, 10.1, 10.2, 10.05], [20.0, 20.3, 20.1, 20.2]
        found = compare_speeds(fast, slow, 0.02)
        assert (found.verdict, found.test, found.p) == ("better", "exact permutation test", pytest.approx(2 / 70))
        assert found.effect.value == pytest.approx(math.log(2), abs=0.01)
        few = compare_speeds(fast[:3], slow[:3], 0.02)
        assert (few.verdict, few.p) == ("inconclusive", None)
        assert few.finding == "no test is valid at n = 3 processes: it takes at least 4"

    @pytest.mark.parametrize(("few", "many"), [(4, 4), (3, 5), (3, 10), (5, 10)])
    @pytest.mark.parametrize("swap", [False, True])
    def test_with_unequal_numbers_of_processes_it_finds_what_the_exact_test_can(
        self, few: int, many: int, swap: bool
    ) -> None:
        """Two sides that do not overlap have the smallest p-value that there is: Holm may ask for that and no less."""
        sides = [[20 + 0.1 * each for each in range(few)], [10 + 0.1 * each for each in range(many)]]
        one, other = reversed(sides) if swap else sides
        found = compare_speeds(one, other, 0.05)
        exact = scipy_stats.permutation_test(
            (np.log(one), np.log(other)), lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=np.inf
        )
        assert found.p == found.least_p == pytest.approx(exact.pvalue)
        tests = int(0.05 / exact.pvalue)
        judged = [holm([found] * count)[0] for count in (tests, tests + 1)]
        assert [each.can_find for each in judged] == [each.different for each in judged] == [True, False]

    def test_a_t_test_has_no_smallest_p_value(self) -> None:
        ours, theirs = np.exp(RNG.normal(3, 0.02, (2, 15)))
        assert holm([compare_speeds(ours.tolist(), theirs.tolist(), 0.05)] * 10**3)[0].can_find

    def test_swapping_sides_turns_the_verdict_round(self) -> None:
        slow, fast = [10.0, 10.1, 10.2, 10.05], [20.0, 20.3, 20.1, 20.2]
        one, other = compare_speeds(fast, slow, 0.02), compare_speeds(slow, fast, 0.02)
        assert (one.verdict, other.verdict) == ("better", "worse")
        assert other.effect.low == pytest.approx(-(one.effect.high or math.nan))

    def test_many_processes_make_welchs_test(self) -> None:
        ours, theirs = np.exp(RNG.normal(3, 0.02, (2, 15)))
        found = compare_speeds(ours.tolist(), theirs.tolist(), 0.05)
        expected = scipy_stats.ttest_ind(np.log(ours), np.log(theirs), equal_var=False)
        assert (found.test, found.p) == ("Welch's t-test", pytest.approx(expected.pvalue))
        assert found.verdict == "equivalent"

    @pytest.mark.parametrize("speeds", [[], [-1.0, 2.0], [math.nan]])
    def test_what_is_no_speed_is_refused(self, speeds: list[float]) -> None:
        with pytest.raises(ValueError, match="needs positive ones"):
            compare_speeds(speeds, [1.0], 0.02)

    def test_a_time_of_zero_is_no_measurement(self) -> None:
        with pytest.raises(ValueError, match="needs positive ones"):
            compare_speeds([0.0] * 4, [1.0] * 4, 0.02, better="lower")

    def test_a_rate_of_zero_is_the_worst(self) -> None:
        """Of the 70 ways to divide eight processes, two are as extreme as zero in all of one side."""
        none, some = [0.0] * 4, [3.0, 2.0, 5.0, 4.0]
        lost, won = compare_speeds(none, some, 0.05), compare_speeds(some, none, 0.05)
        assert (lost.verdict, won.verdict) == ("worse", "better")
        assert (lost.p, lost.effect.value, won.effect.value) == (pytest.approx(2 / 70), -math.inf, math.inf)
        few = compare_speeds(none[:3], some[:3], 0.05)
        assert (few.verdict, few.p) == ("inconclusive", None)

    def test_an_infinite_time_is_the_worst(self) -> None:
        endless, some = [math.inf] * 4, [0.3, 0.2, 0.5, 0.4]
        lost, won = (compare_speeds(*sides, 0.05, better="lower") for sides in ((endless, some), (some, endless)))
        assert (lost.verdict, won.verdict) == ("worse", "better")
        assert (lost.p, lost.effect.value, won.effect.value) == (pytest.approx(2 / 70), math.inf, -math.inf)
        assert lost.notes == ("infinite in a process, so that processes are compared by rank",)
        with pytest.raises(ValueError, match="needs positive ones"):
            compare_speeds(endless, some, 0.05, better="higher")

    @pytest.mark.parametrize("count", [5, 12])
    def test_a_zero_among_others_is_tested_by_rank(self, count: int) -> None:
        ours, theirs = [0.0, *RNG.uniform(1, 2, count - 1)], RNG.uniform(3, 4, count)
        found = compare_speeds(ours, theirs.tolist(), 0.05)
        exact = scipy_stats.mannwhitneyu(ours, theirs, method="exact")
        assert found.verdict == "worse"
        assert found.effect.value == pytest.approx(math.log(np.median(ours) / np.median(theirs)))
        if count == 5:
            assert found.p == pytest.approx(exact.pvalue)

    def test_a_figure_and_ranks_that_disagree_decide_nothing(self) -> None:
        """The median of both sides is zero, though one of them has the higher rates."""
        ours, theirs = [0.0] * 12, [0.0] * 7 + [5.0] * 5
        found = compare_speeds(ours, theirs, 0.05)
        assert (found.different, found.verdict, found.effect.value) == (True, "inconclusive", 0.0)


class TestFlips:
    def test_both_directions_are_counted(self) -> None:
        assert flips(answers([1, 0, 0, 1, 1]), answers([1, 1, 1, 0, 1])) == Flips(2, 1, 5)

    def test_they_are_found_by_item(self) -> None:
        mixed = replace(answers([0.0, 1.0]), item_ids=("1", "0"))
        assert flips(mixed, answers([1.0, 0.0])) == Flips(0, 0, 2)

    def test_other_scores_do_not_flip(self) -> None:
        with pytest.raises(ValueError, match="0 or 1 only"):
            flips(answers([0.5, 1.0]), answers([1.0, 1.0]))


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"metric": "nll_per_word"}, "metric differs: nll_per_word and nll"),
            ({"version": 2}, "version differs: 2 and 1"),
            ({"unit": "bit"}, "unit differs: bit and nat/token"),
            ({"protocol": {**GPTQ, "stride": 64}}, "nll: measured by two protocols: stride 64 and 512"),
            ({"item_ids": tuple("abcdefgh")}, "no item is common"),
            ({"item_ids": ("0",) * 8}, "two values belong to one item"),
            ({"item_ids": ()}, "each belong to an item"),
            ({"evidence": "samples"}, "each belong to an item"),
            ({"values": (math.nan,) * 8}, "not finite"),
            ({"weights": (2.0,) * 8}, "must weigh the same"),
            ({"cluster_ids": tuple("abcdefgh")}, "another cluster"),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_paired(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            compare(replace(windows([1.0] * 8), **changes), windows([2.0] * 8), 0.1, "lower")  # type: ignore[arg-type]

    @pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
    def test_margins_that_cannot_be(self, margin: float) -> None:
        with pytest.raises(ValueError, match="a margin must be a positive number"):
            compare(nats([1.0] * 8), nats([2.0] * 8), margin, "lower")

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_levels_that_cannot_be(self, alpha: float) -> None:
        with pytest.raises(ValueError, match="alpha must lie between"):
            compare(nats([1.0] * 8), nats([2.0] * 8), 0.1, "lower", alpha)

    def test_a_direction_that_is_none(self) -> None:
        with pytest.raises(ValueError, match="'lower' or 'higher'"):
            compare(nats([1.0] * 8), nats([2.0] * 8), 0.1, "neither")  # type: ignore[arg-type]

    def test_a_text_whose_items_have_no_window(self) -> None:
        odd = windows([1.0] * 3, item_ids=("a", "b", "c"))
        with pytest.raises(ValueError, match="does not begin with the number of its window"):
            compare(odd, odd, 0.1, "lower")

    def test_what_only_one_side_has_is_left_out_and_said(self) -> None:
        found: Comparison = compare(windows(np.arange(9.0)), windows(np.arange(8.0)), 0.1, "lower")
        assert found.effect.n == 8
        assert found.notes[0] == "1 values have no partner and are left out"
        assert pair(windows(np.arange(9.0)), windows(np.arange(8.0))).left_out == 1
