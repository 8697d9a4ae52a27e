"""Queries against tables whose answers are known, and what must hold for any table."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.analysis.choice import Check, Recommendation
from harness.analysis.query import Limit, Query, default_limits, parse_limits, parse_objective
from harness.analysis.recommend import leader, pick
from harness.analysis.ties import Tie
from harness.api.recommend import recommend
from harness.core import label
from harness.core.label import Form, Label
from harness.core.model import MethodRef
from harness.core.run import HourlyPrice
from harness.errors import UsageError
from harness.figures.ask import Reading, Use
from harness.figures.derived.footprint import Footprint, Workspace
from harness.figures.table import (
    EnergyUse,
    GridPoint,
    Peak,
    Speed,
    StoredPart,
    Table,
    TaskKey,
    TaskScore,
    VariantRow,
)
from harness.figures.tasks import ACCURACY_DROP
from harness.plugins import objectives
from harness.stats.estimate import Estimate, IntervalKind, with_range
from harness.stats.influence import Influence
from harness.stats.pareto import front

Bench = Any

LEAKED = Label("leaked", {"shared": 0.03, "run_tokens": 16})

SMALL, LARGE = GridPoint(1, 128, 32), GridPoint(8, 512, 32)
ARC = TaskKey("arc", "acc", "none", 0, False, True)
BOOL = TaskKey("boolq", "acc", "none", 0, False, True)


def interval(value: float, half: float = 0.0, n: int = 100, kind: IntervalKind = "units") -> Estimate:
    return Estimate(value, value - half, value + half, n, "an interval", kind)


def variant(
    label: str, size: int, change: Estimate | None = None, kl: float | None = None, decode: Estimate | None = None
) -> VariantRow:
    return VariantRow(
        label,
        label,
        "transformers",
        is_baseline=False,
        status="ok",
        perplexity=None if change is None else interval(10 * (1 + change.value)),
        perplexity_change=change,
        kl_mean=None if kl is None else interval(kl, kl / 10),
        stored=(StoredPart("linear", "values", size),),
        speeds=(Speed(SMALL, None, decode, None, None),) if decode else (),
    )


BASELINE = replace(variant("none", 1600, decode=interval(20, 1, 3, "range")), is_baseline=True, perplexity=interval(10))


def table(*rows: VariantRow, **fields: Any) -> Table:
    grid = tuple(dict.fromkeys(speed.point for row in (BASELINE, *rows) for speed in row.speeds))
    return Table("model", None, "protocol", "machine", (BASELINE, *rows), **{"grid": grid, **fields})


ASKED = {**objectives("lower"), **objectives("higher"), "accuracy_drop": ACCURACY_DROP}
"""Figures by what a recommendation calls them."""


def limited(name: str, bound: float) -> Limit:
    return Limit(ASKED[name], bound)


def answered(of: Table, *limits: Limit, objective: str = "bytes", **query: Any) -> Recommendation:
    return pick(of, Query(limits, ASKED[objective], **query))


def labels(candidates: Any) -> list[str]:
    return [each.row.label for each in candidates]


EIGHT = variant("eight", 800, interval(0.002, 0.001), 0.001, interval(30, 1, 3, "range"))
FOUR = variant("four", 400, interval(0.008, 0.004), 0.01, interval(50, 2, 3, "range"))
THREE = variant("three", 300, interval(0.05, 0.01), 0.05, interval(60, 2, 3, "range"))
THREE_ROWS = table(EIGHT, FOUR, THREE)


def test_the_smallest_within_one_per_cent() -> None:
    found = answered(THREE_ROWS, limited("perplexity", 0.01))
    assert labels(found.admissible) == ["four", "eight", "none"]
    assert labels(found.rejected) == ["three"]
    assert [check.standing for each in found.admissible for check in each.checks] == ["probably met", "met", "met"]
    assert found.certain_pick is not None
    assert found.certain_pick.row.label == "eight"
    assert not found.holds


def test_the_probability_of_the_pick_is_that_of_keeping_its_limit() -> None:
    """Four keeps 1% where its error, Student's t with 99 degrees of freedom, is below half of its interval's half."""
    from scipy.stats import t

    found = answered(THREE_ROWS, limited("perplexity", 0.01))
    expected = t.cdf(t.ppf(0.975, 99) * 0.5, 99)
    chances = {each.row.label: each.pick_probability for each in (*found.admissible, *found.rejected)}
    assert chances["four"] == pytest.approx(expected, abs=0.03)
    assert chances["eight"] == pytest.approx(1 - expected, abs=0.03)
    assert chances["none"] == chances["three"] == 0
    assert sum(chances.values()) == pytest.approx(1)  # type: ignore[arg-type]


def led(of: Table, objective: str = "decode", bound: float = 0.05) -> tuple[str, list[str], int] | None:
    """The leader of those within the bound, its rivals, and how many more there are."""
    found = leader(of, Query((limited("perplexity", bound),), ASKED[objective]))
    return None if found is None else (found.row.label, [row.label for row in found.rivals], found.more)


def timed(
    label: str, speed: float, half: float, kl: float = 0.01, change: float = 0.002, error: float = 0.001
) -> VariantRow:
    return variant(label, 400, interval(change, error), kl, interval(speed, half, 3, "range"))


@pytest.mark.parametrize(("bound", "expected"), [(0.0005, None), (0.01, "eight"), (0.07, "three"), (0.05, "four")])
def test_what_leads_meets_the_limit_with_its_whole_interval(bound: float, expected: str | None) -> None:
    for objective in ("bytes", "decode"):
        assert led(THREE_ROWS, objective, bound) == (expected and (expected, [], 0))


def test_a_speed_whose_interval_reaches_that_of_the_fastest_is_its_rival() -> None:
    fast, apart, touching = timed("fast", 50, 2, 0.2), timed("apart", 45, 2.9), timed("touching", 45, 3.1)
    assert led(table(fast, apart)) == ("fast", [], 0)
    assert led(table(fast, touching)) == ("fast", ["touching"], 0)
    closer = timed("closer", 49, 2, 0.01)  # by KL, which decides between equals
    assert led(table(fast, closer, touching)) == ("closer", ["fast", "touching"], 0)
    many = [timed(f"{number}", 40 + number, 6, 0.2) for number in range(5)]
    assert led(table(closer, *many)) == ("closer", ["4", "3"], 2)


def test_what_meets_the_limit_perhaps_makes_no_slower_variant_the_leader() -> None:
    """The slower one cannot be told from it, but from one that certainly meets the limit."""
    perhaps = timed("perhaps", 50, 10, change=0.049, error=0.01)
    fast, closer = timed("fast", 48, 1, 0.2), timed("closer", 41, 10, 0.001)
    assert led(table(fast, closer)) == led(table(perhaps, fast, closer)) == ("fast", ["closer"], 0)


@pytest.mark.parametrize(
    ("speed", "half", "expected"),
    [
        (25, 1, ("eight", [])),
        (21, 1, ("eight", ["none"])),
        (19, 1, ("none", ["eight"])),
        (15, 1, ("none", [])),
    ],
)
def test_no_variant_leads_that_is_slower_than_the_baseline(
    speed: float, half: float, expected: tuple[str, list[str]]
) -> None:
    """The baseline decodes 19 to 21 tokens per second; its KL, which decides between equals, is zero."""
    assert led(table(timed("eight", speed, half))) == (*expected, 0)
    slower = timed("slower", 19.5, 1, 0.001)
    with_both = led(table(timed("eight", speed, half), slower))
    assert with_both is not None
    assert with_both[0] == expected[0], "not even one that cannot be told from the leader, and is closer"


def test_no_variant_is_the_smallest_that_is_as_large_as_the_baseline() -> None:
    dense, slim = variant("dense", 1600, interval(0, 0.001), 0.01), variant("slim", 1590, interval(0, 0.001), 0.02)
    assert led(table(dense), "bytes") == ("none", ["dense"], 0)
    assert led(table(dense, slim), "bytes") == ("slim", ["dense", "none"], 0), "within 1%"


def test_the_baseline_is_not_the_closest_to_itself() -> None:
    assert led(THREE_ROWS, "kl", 0.1) == ("eight", [], 0)


def test_windows_in_common_tell_a_leader_from_its_rivals() -> None:
    shared = Influence(tuple(map(str, range(40))), tuple(0.001 * (-1) ** number for number in range(40)))
    better, worse = (
        replace(variant(name, 400, interval(0.002, 0.001)), kl_mean=interval(kl, 0.02, 40), kl_influence=shared)
        for name, kl in (("better", 0.100), ("worse", 0.110))
    )
    assert led(table(better, worse), "kl") == ("better", [], 0)
    alone = [replace(row, kl_influence=None) for row in (better, worse)]
    assert led(table(*alone), "kl") == ("better", ["worse"], 0)


def test_the_unquantized_baseline_may_be_the_best() -> None:
    found = answered(THREE_ROWS, limited("perplexity", 0.0005))
    assert labels(found.admissible) == ["none"]
    assert found.holds
    assert found.certain_pick is found.pick


@pytest.mark.parametrize(
    ("value", "low", "high", "standing"),
    [
        (0.5, 0.4, 0.6, "met"),
        (0.5, 0.4, 1.2, "probably met"),
        (1.5, 0.9, 2.0, "probably missed"),
        (1.5, 1.1, 2.0, "missed"),
        (0.5, None, None, "probably met"),
        (1.5, None, None, "probably missed"),
        (1.0, 1.0, 1.0, "met"),
    ],
)
def test_a_limit_is_kept_for_certain_by_a_whole_interval(
    value: float, low: float | None, high: float | None, standing: str
) -> None:
    row = replace(FOUR, kl_mean=Estimate(value, low, high, 5, "made up"))
    use = Use(THREE_ROWS, None, 1, 1)
    assert Check(limited("kl", 1.0), ASKED["kl"].read(row, use)).standing == standing


def test_nobody_meets_it_the_nearest_and_what_binds() -> None:
    found = answered(THREE_ROWS, limited("bytes", 350), limited("perplexity", 0.01))
    assert found.pick is None
    assert found.nearest is not None
    assert found.nearest.row.label == "four"  # 400 for 350 is a factor of 1.14, 5% for 1% one of 5
    assert {limit.option for limit in found.binding} == {"max-size", "max-perplexity-increase"}
    assert [check.limit.option for check in found.nearest.missed] == ["max-size"]
    assert not found.unmeasured


def test_what_was_not_measured_is_not_admissible_and_not_a_no() -> None:
    untimed = replace(FOUR, speeds=())
    found = answered(table(EIGHT, untimed), limited("bytes", 500), limited("decode", 10))
    assert found.pick is None
    assert found.unmeasured
    found = answered(table(EIGHT, untimed), limited("bytes", 300), limited("decode", 10))
    assert not found.unmeasured  # 400 bytes are too many, however fast


def test_what_failed_leaked_or_is_invalid_is_not_admissible() -> None:
    leaked = replace(FOUR, labels=(LEAKED,))
    failed = replace(EIGHT, status="timeout", reason="performance: took too long")
    invalid = replace(THREE, status="invalid", reason="quality: not finite")
    rows = table(leaked, failed, invalid)
    found = answered(rows)
    assert labels(found.admissible) == ["none"]
    assert {each.row.label: each.barred.sentence for each in found.rejected if each.barred} == {
        "four": LEAKED.sentence,
        "eight": "timeout: performance: took too long",
        "three": "invalid: quality: not finite",
    }
    assert labels(answered(rows, allow_labelled=True).admissible) == ["three", "four", "none"]


def test_a_reworded_sentence_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What bars a variant is the label's code: its sentence is for people."""
    rows = table(replace(FOUR, labels=(LEAKED,)))
    before = answered(rows)
    reworded = Form(lambda shared, run_tokens: "it has seen the answers", "")
    monkeypatch.setattr(label, "LABELS", {**label.LABELS, "leaked": reworded})
    after = answered(rows)
    assert LEAKED.sentence == "it has seen the answers"
    assert labels(after.admissible) == labels(before.admissible) == ["none"]
    assert [each.barred.code for each in after.rejected if each.barred] == ["leaked"]


def test_a_leak_that_is_said_of_the_whole_table_counts() -> None:
    found = answered(table(FOUR, labels=(LEAKED,)))
    assert labels(found.admissible) == ["none"]


def test_speed_is_looked_at_where_the_query_says() -> None:
    both = replace(FOUR, speeds=(*FOUR.speeds, Speed(LARGE, None, interval(200, 1, 3, "range"), None, None)))
    rows = table(both, EIGHT, grid=(SMALL, LARGE))
    limit = limited("decode", 100)
    assert answered(rows, limit).pick is None
    assert labels(answered(rows, limit, at="prompt 512, batch 8").admissible) == ["four"]


def test_memory_is_the_whole_of_generating_at_the_context_and_batch() -> None:
    footprint = Footprint(1000, 2.0, Workspace(10, 1), Workspace(5, 0), 160, 4096, on_gpu=False)
    rows = table(replace(FOUR, footprint=footprint), replace(EIGHT, footprint=replace(footprint, base_bytes=2000)))
    found = answered(rows, limited("memory", 1600), context=100, batch=2)
    figure = {each.row.label: each.checks[0].reading.estimate for each in (*found.admissible, *found.rejected)}
    expected = 1000 + 1.05 * (2 * 200 + 10 + 200)
    assert figure["four"] == Estimate(expected, expected, expected, 1, "exact")
    assert {each.row.label: each.checks[0].standing for each in (*found.admissible, *found.rejected)} == {
        "none": "probably met",  # 1600 bytes of weights alone
        "four": "missed",
        "eight": "missed",
    }
    beyond = answered(rows, limited("memory", 1e9), context=5000)
    assert [each.checks[0].reading.basis for each in beyond.rejected] == ["the model reads at most 4096 tokens"] * 2


def test_weights_alone_never_prove_that_memory_suffices() -> None:
    found = answered(table(FOUR), limited("memory", 500))
    (check,) = found.admissible[0].checks
    assert check.standing == "probably met"
    assert check.reading.basis.startswith("its weights alone")
    assert check.reading.estimate is not None
    assert math.isinf(check.reading.estimate.high or 0)
    assert [each.checks[0].standing for each in found.rejected] == ["missed"]  # the baseline: more weights than memory


def test_a_peak_stands_in_where_the_parts_were_not_measured() -> None:
    peaks = (
        Peak("performance", "load", "VmHWM", 9000, None),
        Peak("performance", "prefill", "VmHWM", 700, SMALL),
        Peak("performance", "decode", "VmHWM", 650, SMALL),
        Peak("quality", "forward", "VmHWM", 5000, None),
    )
    rows = table(replace(FOUR, peaks=peaks))
    here, longer = (ASKED["memory"].read(rows.rows[1], Use(rows, SMALL, 1, tokens)).estimate for tokens in (160, 161))
    assert here is not None
    assert longer is not None
    assert (here.value, here.high) == (700, 700)
    assert (longer.value, longer.high) == (700, math.inf)
    never_set_back = Peak("performance", "prefill", "ru_maxrss since the start", 9000, SMALL)
    on_gpu = replace(
        rows, rows=(BASELINE, replace(FOUR, peaks=(never_set_back, replace(peaks[1], source="cuda reserved"))))
    )
    assert ASKED["memory"].read(on_gpu.rows[1], Use(on_gpu, SMALL, 1, 160)).estimate == here
    cpu_alone = replace(FOUR, peaks=(never_set_back, peaks[2]))
    found = ASKED["memory"].read(cpu_alone, Use(rows, SMALL, 1, 160)).estimate
    assert found is not None
    assert found.value == 9000


def used(source: str, joule: float) -> EnergyUse:
    return EnergyUse(SMALL, source, None, interval(joule, 0.1), None, interval(2 * joule, 0.1), None)


def test_energy_is_the_gpus_for_all_variants_where_any_ran_on_one() -> None:
    both = replace(FOUR, energies=(used("RAPL", 1.0), used("NVML", 3.0)))
    on_cpu = replace(EIGHT, energies=(used("RAPL", 2.0),))

    def read(row: VariantRow, *rows: VariantRow) -> Reading:
        return ASKED["energy"].read(row, Use(table(*rows), SMALL, 1, 160))

    assert read(both, both, on_cpu).basis == "NVML"
    assert read(both, both, on_cpu).estimate == interval(3.0, 0.1)
    assert read(on_cpu, both, on_cpu).estimate is None
    assert read(on_cpu, on_cpu).estimate == interval(2.0, 0.1)


def score(key: TaskKey, change: Estimate | None) -> TaskScore:
    return TaskScore(key, True, interval(0.5, 0.1), change, None, None, None)


def test_every_task_must_keep_its_accuracy() -> None:
    one = replace(FOUR, tasks=(score(ARC, interval(-0.005, 0.001)), score(BOOL, interval(-0.03, 0.01))))
    two = replace(EIGHT, tasks=(score(ARC, interval(0.002, 0.001)), score(BOOL, interval(-0.004, 0.008))))
    part = replace(THREE, tasks=(score(ARC, interval(0.0, 0.001)),))
    base = replace(BASELINE, tasks=(score(ARC, None), score(BOOL, None)))
    rows = Table("model", None, "protocol", "machine", (base, one, two, part))
    found = answered(rows, limited("accuracy_drop", 0.01))
    assert labels(found.admissible) == ["eight", "none"]
    checks = {each.row.label: each.checks[0] for each in (*found.admissible, *found.rejected)}
    assert checks["eight"].standing == "probably met"  # boolq may have lost 1.2 points
    assert checks["four"].reading.basis == BOOL.label
    assert checks["four"].reading.estimate is not None
    assert checks["four"].reading.estimate.value == pytest.approx(0.03)
    assert checks["three"].reading.basis == f"{BOOL.label} not measured"
    best = answered(rows, objective="accuracy").admissible
    assert labels(best) == ["none", "eight", "four"]
    mean = best[1].objective.estimate
    assert mean is not None
    assert mean.value == pytest.approx(-0.001)
    assert mean.high == pytest.approx(-0.001 + math.hypot(0.001, 0.008) / 2)


def test_the_cheapest_is_the_fastest() -> None:
    priced = replace(THREE_ROWS, price=HourlyPrice(3.6, "EUR"))
    found = answered(priced, objective="cost")
    assert labels(found.admissible) == ["three", "four", "eight", "none"]
    assert found.admissible[0].objective.estimate is not None
    assert found.admissible[0].objective.estimate.value == pytest.approx(1e6 * 3.6 / 3600 / 60)
    assert answered(THREE_ROWS, objective="cost").pick is None


def test_equal_objectives_go_by_divergence() -> None:
    twin = replace(FOUR, label="a twin", kl_mean=interval(0.02))
    assert labels(answered(table(twin, FOUR)).admissible)[:2] == ["four", "a twin"]


def test_first_and_second_are_told_apart_by_their_intervals() -> None:
    near = replace(FOUR, label="near", speeds=(Speed(SMALL, None, interval(49, 2, 3, "range"), None, None),))
    found = answered(table(FOUR, near), objective="decode")
    assert found.lead is not None
    assert 0.5 < found.lead < 0.975
    assert answered(table(FOUR, near)).lead == 0  # as large as one another: neither is smaller
    assert answered(table(FOUR, EIGHT)).lead == 1


def test_what_was_measured_once_is_no_certain_choice() -> None:
    once = replace(FOUR, speeds=(Speed(SMALL, None, with_range(50, [50]), None, None),))
    found = answered(table(once, EIGHT), objective="decode")
    assert found.pick is not None
    assert found.pick.row.label == "four"
    assert not found.holds


def test_the_interval_of_one_process_makes_nothing_certain() -> None:
    """It is that of its iterations; what the next process would do is not in it."""
    one = replace(FOUR, speeds=(Speed(SMALL, None, Estimate(50, 49, 51, 1, "of one process"), None, None),))
    found = answered(table(one), limited("decode", 40))
    assert [check.standing for check in found.admissible[0].checks] == ["probably met"]
    assert not found.holds


def test_the_default_question() -> None:
    assert default_limits(THREE_ROWS) == (limited("perplexity", 0.01),)
    assert default_limits(replace(THREE_ROWS, budget_bytes=2**30))[0] == limited("memory", 2**30)
    assert default_limits(table(variant("plain", 5))) == ()


def test_limits_are_read_as_users_write_them() -> None:
    found = parse_limits(
        {"max_memory": "8GiB", "max_size": "4GB", "max_perplexity_increase": "1%", "max_kl": 0.01, "min_decode": None}
    )
    assert found == (
        limited("memory", 8 * 2**30),
        limited("bytes", 4 * 10**9),
        limited("perplexity", 0.01),
        limited("kl", 0.01),
    )
    assert parse_limits({"max_accuracy_drop": "0.5%"})[0].bound == pytest.approx(0.005)
    assert parse_limits({"min_agreement": 0.95})[0].bound == 0.95


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_memory", "0GiB"),
        ("max_memory", "-1GB"),
        ("max_memory", "8"),
        ("max_perplexity_increase", "0%"),
        ("max_perplexity_increase", "-1%"),
        ("max_perplexity_increase", "1"),
        ("max_perplexity_increase", "nan"),
        ("min_agreement", "101%"),
        ("max_kl", "inf"),
        ("min_decode", 0),
        ("min_decode", "1_000"),
        ("min_decode", True),
        ("max_speed", 1),
    ],
)
def test_what_is_no_limit_is_refused_in_one_message(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as raised:
        parse_limits({name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("minimize", "maximize"), [("decode", None), (None, "bytes"), ("bytes", "decode")])
def test_an_objective_that_means_nothing_is_refused(minimize: str | None, maximize: str | None) -> None:
    with pytest.raises(UsageError):
        parse_objective(minimize, maximize)


def test_from_records_as_from_a_folder(bench: Bench, none: MethodRef, rtn: MethodRef) -> None:
    records = [bench.quality(none), bench.quality(rtn, 4.5, 0.005)]
    (found,) = recommend(records, max_perplexity_increase="1%", max_size="1GB")
    assert labels(found.admissible) == ["rtn 4-bit", "unquantized"]
    with pytest.raises(UsageError, match="no such point"):
        recommend(records, at="batch 1")
    with pytest.raises(UsageError, match="nothing to choose from"):
        recommend([bench.prepare()])
    with pytest.raises(UsageError, match="did you mean 'max_memory'"):
        recommend(records, max_memroy="8GiB")


@st.composite
def tables(draw: st.DrawFn) -> Table:
    figure = st.floats(0.001, 1, allow_nan=False)
    rows = [
        variant(
            str(number),
            draw(st.integers(100, 2000)),
            interval(draw(figure), draw(figure) / 3) if draw(st.booleans()) else None,
            draw(figure) if draw(st.booleans()) else None,
            interval(100 * draw(figure), 0.05, 3, "range") if draw(st.booleans()) else None,
        )
        for number in range(draw(st.integers(1, 6)))
    ]
    return table(*rows)


BOUNDS = st.tuples(st.floats(0.001, 1), st.integers(100, 2000), st.floats(1, 60))


@given(tables(), BOUNDS, BOUNDS)
def test_a_looser_limit_never_removes_anybody(of: Table, one: Any, other: Any) -> None:
    def keeping(change: float, size: int, speed: float) -> set[str]:
        limits = (limited("perplexity", change), limited("bytes", size), limited("decode", speed))
        return set(labels(answered(of, *limits).admissible))

    tight = keeping(min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]))
    loose = keeping(max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]))
    assert tight <= loose


@given(tables(), st.sampled_from(["bytes", "decode", "perplexity"]), st.floats(0.001, 1))
def test_the_pick_is_on_the_front_of_objective_and_divergence(of: Table, objective: Any, bound: float) -> None:
    found = answered(of, limited("kl", bound), objective=objective)
    everybody = (*found.admissible, *found.rejected)
    assert sorted(labels(everybody)) == sorted(row.label for row in of.rows)
    if not found.admissible:
        return
    higher = ASKED[objective].direction == "higher"
    estimates = [each.objective.estimate for each in found.admissible]
    best = (max if higher else min)(estimates, key=lambda each: each.value)  # type: ignore[union-attr]
    equal = [each for each in estimates if _alike(best, each, objective)]
    assert estimates[0] in equal
    if len(equal) == 1:
        points = [
            (each.objective.estimate.value, each.checks[0].reading.estimate.value)  # type: ignore[union-attr]
            for each in found.admissible
        ]
        assert 0 in front(points, (ASKED[objective].direction, "lower"))


def _alike(best: Any, other: Any, objective: str) -> bool:
    """As docs/how-to/recommend.md says it, but for the draws, which can only tell more of them apart."""
    if best.value == other.value:
        return True
    if objective == "bytes":
        return bool(other.value <= 1.01 * best.value)
    return bool(best.low <= other.value <= best.high and other.low <= best.value <= other.high)


@given(tables(), st.sampled_from(["bytes", "decode", "kl"]), st.randoms())
def test_the_order_does_not_depend_on_the_tables(of: Table, objective: Any, random: Any) -> None:
    rows = list(of.rows)
    random.shuffle(rows)
    one, other = (answered(each, objective=objective) for each in (of, replace(of, rows=tuple(rows))))
    if objective == "bytes":  # what is measured is told apart by draws, which differ from order to order
        assert labels(one.admissible) == labels(other.admissible)
    assert sorted(labels(one.admissible)) == sorted(labels(other.admissible))


def test_a_slow_variant_is_not_the_smallest_by_a_thousandth() -> None:
    """As it was filed: fp8 at a twenty-fifth of the speed stood before int8 of the same size."""
    int8 = replace(variant("int8", 801, interval(0.004, 0.003), decode=interval(50, 2, 3, "range")))
    fp8 = replace(variant("fp8", 800, interval(0.003, 0.003), decode=interval(2, 0.1, 3, "range")))
    for rows in (table(int8, fp8), table(fp8, int8)):
        found = answered(rows, limited("perplexity", 0.01))
        assert labels(found.admissible)[:2] == ["int8", "fp8"]
        assert [(tie.row.label, tie.decided_by.ask.objective.name) for tie in found.ties] == [("fp8", "decode")]
        assert found.admissible[0].pick_probability == pytest.approx(1)
        assert found.holds
    same = replace(fp8, stored=int8.stored)
    assert labels(answered(table(int8, same)).admissible)[:2] == ["int8", "fp8"]
    smaller = replace(fp8, stored=(StoredPart("linear", "values", 792),))  # by 1.1%
    found = answered(table(int8, smaller))
    assert labels(found.admissible)[:2] == ["fp8", "int8"]
    assert found.ties == ()


def test_quality_goes_before_speed_where_its_difference_matters() -> None:
    near = variant("near", 400, interval(0.05, 0.01), 0.010, interval(26, 1, 3, "range"))
    far = variant("far", 400, interval(0.05, 0.01), 0.012, interval(50, 2, 3, "range"))
    assert labels(answered(table(near, far)).admissible)[:2] == ["near", "far"]
    alike = replace(far, kl_mean=interval(0.0109, 0.0001))  # 0.9 thousandths of a nat further away
    assert labels(answered(table(near, alike)).admissible)[:2] == ["far", "near"]


def test_a_slow_variant_is_not_picked_for_two_thousandths_of_a_nat() -> None:
    """A factor of two in speed goes before a small difference of quality, and a large one before any speed."""
    slow = variant("slow", 400, interval(0.002, 0.001), 0.010, interval(2, 0.1, 3, "range"))
    fast = variant("fast", 400, interval(0.002, 0.001), 0.012, interval(50, 2, 3, "range"))
    for rows in (table(slow, fast), table(fast, slow)):
        found = answered(rows, limited("perplexity", 0.01))
        assert labels(found.admissible)[:2] == ["fast", "slow"]
        assert [(tie.row.label, tie.decided_by.ask.objective.name) for tie in found.ties] == [("slow", "decode")]
    broken = replace(fast, kl_mean=interval(0.07, 0.001))
    assert labels(answered(table(slow, broken)).admissible)[:2] == ["slow", "fast"]


def test_speeds_that_intervals_do_not_tell_apart_are_equal() -> None:
    close = variant("close", 400, kl=0.01, decode=interval(49, 4, 3, "range"))
    fast = variant("fast", 400, kl=0.2, decode=interval(50, 4, 3, "range"))
    found = answered(table(close, fast), objective="decode")
    assert labels(found.admissible)[:2] == ["close", "fast"]
    assert [(tie.row.label, tie.decided_by.ask.objective.name) for tie in found.ties] == [("fast", "kl")]
    slow = replace(close, speeds=(Speed(SMALL, None, interval(44, 4, 3, "range"), None, None),))
    assert labels(answered(table(slow, fast), objective="decode").admissible)[:2] == ["fast", "close"]
    two = Estimate(49, None, None, 2, "2 processes: no interval")
    unbounded = replace(close, speeds=(Speed(SMALL, None, two, None, None),))
    assert labels(answered(table(unbounded, fast), objective="decode").admissible)[:2] == ["fast", "close"]


def test_windows_in_common_tell_variants_apart_that_their_own_intervals_do_not() -> None:
    """Each KL's interval holds the other's value, but every window is worse for the second by a tenth."""
    windows = tuple(map(str, range(40)))
    parts = tuple(0.001 * (-1) ** number for number in range(40))
    shared = Influence(windows, parts)
    better = replace(variant("better", 400, kl=0.1), kl_mean=interval(0.100, 0.02, 40), kl_influence=shared)
    worse = replace(variant("worse", 300, kl=0.1), kl_mean=interval(0.110, 0.022, 40), kl_influence=shared)
    found = answered(table(better, worse), limited("bytes", 500), objective="kl")
    assert labels(found.admissible)[:2] == ["better", "worse"]
    assert found.ties == ()
    alone = [replace(row, kl_influence=None) for row in (better, worse)]
    found = answered(table(*alone), limited("bytes", 500), objective="kl")
    assert labels(found.admissible)[:2] == ["worse", "better"]  # not told apart: the smaller one
    assert [(tie.row.label, tie.decided_by.ask.objective.name) for tie in found.ties] == [("better", "bytes")]


@given(tables(), st.floats(0.001, 1))
def test_probabilities_add_up(of: Table, bound: float) -> None:
    found = answered(of, limited("perplexity", bound), objective="bytes")
    chances = [each.pick_probability or 0 for each in (*found.admissible, *found.rejected)]
    assert sum(chances) + found.none_probability == pytest.approx(1)


def test_what_decides_among_equals_must_be_certain_too() -> None:
    """A speed without an interval, or two intervals that overlap, may decide otherwise the next time."""

    def speed(value: float, low: float | None, high: float | None) -> Reading:
        return Reading(Estimate(value, low, high, 3, "made up"))

    other = variant("other", 1)
    apart, overlapping, alone = speed(10, 9, 11), speed(18, 10, 26), speed(18, None, None)
    assert Tie(other, ASKED["decode"], speed(20, 19, 21), apart).sure
    assert not Tie(other, ASKED["decode"], speed(20, 19, 21), overlapping).sure
    assert not Tie(other, ASKED["decode"], speed(20, 19, 21), alone).sure
    assert Tie(other, None).sure
