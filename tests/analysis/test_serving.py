"""Servers under load in tables, comparisons and recommendations: planted times come back exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import product

import pytest
from run_specs import NONE
from served_records import RTN, WORKLOAD, Times, answers, baseline, ended_above, failed, measurements, served_record

import harness
from harness.analysis.history.trace import trace
from harness.analysis.query import Query, parse_limits, parse_objective
from harness.analysis.recommend import recommend
from harness.analysis.regression.baseline import by
from harness.analysis.regression.track import track
from harness.analysis.tradeoff import tradeoff
from harness.core.model import MethodRef
from harness.core.record import Outcome, RunRecord, Status
from harness.core.workload import Slo
from harness.errors import UsageError
from harness.figures.figure import Note
from harness.figures.serving import CAPACITY, E2E, FIGURES, GOODPUT, ITL, THROUGHPUT, TPOT, TTFT
from harness.figures.table import Load, Table, VariantRow
from harness.report.column import Cell, cell, columns, shown_columns
from harness.report.comparison import words
from harness.report.comparison.json_text import json_text
from harness.report.history import words as history_words
from harness.report.recommendation import json_line
from harness.stats.estimate import Estimate

BY_NAME = {each.name: each for each in FIGURES}


def slower_beyond(cross: float) -> list[RunRecord]:
    """A variant whose requests take (load / ``cross``)^0.1 times as long as the baseline's."""

    def theirs(level: float, number: int, repetition: int) -> tuple[float, float]:
        return 0.01 * level * (1 + number / 100), 0.002 * level

    def ours(level: float, number: int, repetition: int) -> tuple[float, float]:
        factor = (level / cross) ** 0.1
        return tuple(factor * each for each in theirs(level, number, repetition))  # type: ignore[return-value]

    return [
        made for repetition in range(3) for made in (baseline(repetition, theirs), served_record(RTN, repetition, ours))
    ]


def only(records: list[RunRecord]) -> tuple[Table, VariantRow, VariantRow]:
    (table,) = tradeoff(records)
    first, second = table.rows
    return table, first, second


def value(found: object) -> float:
    assert isinstance(found, Estimate)
    return found.value


def ratios(row: VariantRow) -> list[float | None]:
    """How many times as fast as the baseline, level by level."""
    found = [each.against_baseline for each in row.served]
    return [each.ratio.value if each and each.ratio else None for each in found]


def test_percentiles_throughput_and_goodput_are_those_planted() -> None:
    table, base, _ = only(slower_beyond(24.0))
    assert [load.level for load in table.loads] == [8.0, 16.0, 32.0]
    highest = table.loads[-1]
    assert value(TTFT[0].of(base, highest)) == pytest.approx(0.32 * 1.195)  # requests 19 and 20 of 40
    assert value(TTFT[1].of(base, highest)) == pytest.approx(0.32 * (1 + 0.95 * 39 / 100))
    assert [value(each.of(base, highest)) for each in (*TPOT, *ITL)] == pytest.approx([0.064] * 6)
    assert value(E2E[2].of(base, highest)) == pytest.approx(0.32 * (1 + 0.99 * 39 / 100) + 4 * 0.064)
    span = 39 + 0.32 * 1.39 + 4 * 0.064
    assert value(THROUGHPUT.of(base, highest)) == pytest.approx(40 * 5 / span)
    assert value(GOODPUT.of(base, highest)) == pytest.approx(40 / span)  # the slowest first token takes 0.4448 s
    assert value(BY_NAME["attainment"].of(base, highest)) == 1.0
    assert value(BY_NAME["failures"].of(base, highest)) == 0.0


def test_the_crossover_is_recovered_exactly() -> None:
    table, base, variant = only(slower_beyond(24.0))
    (ladder,) = variant.ladders
    assert ladder.crossover is not None
    assert (ladder.crossover.level, ladder.crossover.low, ladder.crossover.high) == pytest.approx((24, 24, 24))
    words = BY_NAME["crossover"].of(variant, ladder.load)
    assert words == "faster than the baseline up to 24.0 concurrent requests, slower beyond [24.0, 24.0]"
    assert ratios(variant) == pytest.approx([(24 / level) ** 0.1 for level in (8, 16, 32)])
    assert base.ladders[0].crossover is None
    assert any(column.name.startswith("crossover") and column.shown for column in columns(table))


def test_the_largest_load_at_the_slo_is_recovered_and_chosen_by() -> None:
    """First tokens take 0.01 s × load: up to 0.4448 s at 32, and 10% longer for a variant that is slower from 13 on."""
    _, base, variant = only(slower_beyond(3.0))
    held = [value(CAPACITY.of(row, row.ladders[0].load)) for row in (base, variant)]
    assert held == [32.0, 16.0]
    found = CAPACITY.of(variant, variant.ladders[0].load)
    assert isinstance(found, Estimate)
    assert (found.low, found.high) == (16.0, 32.0)
    assert math.isinf(CAPACITY.of(base, base.ladders[0].load).high)  # type: ignore[union-attr, arg-type]


def test_recommend_chooses_by_load_goodput_and_latency() -> None:
    records = slower_beyond(3.0)
    chosen = {
        name: recommend(tradeoff(records), Query(parse_limits(limits), parse_objective(*objective)))[0]
        for name, limits, objective in (
            ("load", {}, (None, "load")),
            ("goodput", {}, (None, "goodput")),
            ("ttft", {"max_ttft": "1s"}, ("ttft", None)),
            ("none", {"min_load": 64}, (None, "load")),
        )
    }
    picks = {name: found.pick and found.pick.row.method for name, found in chosen.items()}
    assert picks == {"load": "none", "goodput": "none", "ttft": "none", "none": None}


def asked(records: list[RunRecord], level: float | None = None, **limits: str | float) -> list[tuple[str, str, float]]:
    """Of each row the method, where a limit's figure was read or why there is none, and the figure (0 without one)."""
    (found,) = recommend(tradeoff(records), Query(parse_limits(limits), level=level))
    return sorted(
        (each.row.method, check.reading.basis, check.reading.estimate.value if check.reading.estimate else 0.0)
        for each in (*found.admissible, *found.rejected)
        for check in each.checks
    )


@pytest.mark.parametrize(
    ("option", "seconds"), [("max_ttft", 0.32 * 1.3705), ("max_itl", 0.064), ("max_e2e", 0.32 * 1.3705 + 0.256)]
)
def test_limits_on_latencies_are_read_at_the_highest_load_or_at_the_one_that_was_chosen(
    option: str, seconds: float
) -> None:
    """Every time of the baseline is proportional to the load; the variant's are as long at 16 and others elsewhere."""
    records = slower_beyond(16.0)
    for level, shown, share in ((None, 32, 1.0), (32.0, 32, 1.0), (16.0, 16, 0.5), (8.0, 8, 0.25)):
        (_, where, base), (_, also, variant) = asked(records, level, **{option: "1s"})
        assert where == also == f"at {shown} concurrent requests"
        assert (base, variant) == pytest.approx((share * seconds, share * seconds * (shown / 16) ** 0.1))


def test_goodput_is_the_highest_or_that_at_the_chosen_load() -> None:
    """First tokens take 0.08 to 0.11 s at 8 and 0.32 to 0.44 s at 32, of which 0.5 s are allowed."""
    records = [baseline(0, lambda level, number, repetition: (0.01 * level * (1 + number / 100), 0.02))]
    spans = {level: 39 + 0.0139 * level + 0.08 for level in (8, 16, 32)}
    assert asked(records, min_goodput=1) == [("none", "at 8 concurrent requests", pytest.approx(40 / spans[8]))]
    assert asked(records, 32.0, min_goodput=1) == [("none", "at 32 concurrent requests", pytest.approx(40 / spans[32]))]


def test_tokens_in_bursts_have_no_itl_to_limit() -> None:
    """Four tokens of every answer come at once."""
    plain, made = replace(WORKLOAD, slo=None), baseline(0, steadily)
    levels = {
        level: [replace(each, gaps_s=each.gaps_s[:1]) for each in answers(level, 0, steadily, plain)]
        for level in plain.levels
    }
    records = [replace(made, outcome=Outcome("ok", measurements=tuple(measurements(levels, plain))))]
    assert asked(records, max_itl="1s") == [("none", "no gaps between single tokens at 32 concurrent requests", 0.0)]
    assert asked(records, max_tpot="1s") == [("none", "at 32 concurrent requests", pytest.approx(0.02))]


def test_answers_of_one_token_have_no_gaps() -> None:
    records = [baseline(0, steadily, replace(WORKLOAD, new_tokens=1))]
    assert asked(records, max_itl="1s") == [("none", "no gaps between single tokens at 32 concurrent requests", 0.0)]


def test_itl_is_of_gaps_and_other_latencies_are_of_requests() -> None:
    for figures, units in ((TTFT, "requests"), (TPOT, "requests"), (ITL, "gaps"), (E2E, "requests")):
        assert all(f"th percentile of the {units} of one process" in str(each.help) for each in figures)
        gate, option = figures[1].gate, figures[1].limit
        assert gate is not None
        assert f"of 95% of the {units}, at each load" in gate.says
        assert f"of 95% of the {units} at the highest load" in option.help


def test_an_slo_is_not_called_missing_where_only_a_load_is() -> None:
    """The variant's server was put under 8 and 16 requests at the same time, the baseline's also under 32."""
    fewer = replace(WORKLOAD, levels=WORKLOAD.levels[:2])
    records = [baseline(0, steadily), served_record(RTN, 0, steadily, fewer)]
    assert asked(records, 32.0, min_goodput=1)[1] == ("rtn", "not measured at 32 concurrent requests", 0.0)
    assert asked(records, 16.0, min_goodput=1)[1][1] == "at 16 concurrent requests"
    without = [baseline(0, steadily, replace(WORKLOAD, slo=None))]
    assert asked(without, 32.0, min_goodput=1) == [("none", "no SLO was given", 0.0)]
    assert asked(without, min_load=1) == [("none", "no SLO was given", 0.0)]
    mixed = [*without, served_record(RTN, 0, steadily)]
    assert asked(mixed, min_goodput=1)[0] == ("none", "not measured", 0.0)
    assert asked(mixed, min_load=1)[0] == ("none", "not measured", 0.0)


def test_a_level_of_two_loads_of_a_table_is_refused_with_both() -> None:
    by_rate = replace(WORKLOAD, arrival="poisson", levels=(4.0, 8.0))
    records = [baseline(0, steadily), baseline(0, steadily, by_rate)]
    with pytest.raises(UsageError, match=r"--at-load 8: .* this level: 8 concurrent requests; .* / 8 requests/s, po"):
        asked(records, 8.0, max_e2e="1s")
    assert asked(records, 4.0, max_e2e="1s")[0][1] == "at 4 requests/s, poisson"
    assert asked(records, 16.0, max_e2e="1s")[0][1] == "at 16 concurrent requests"


@pytest.mark.parametrize("wrong", ["many", "8 requests", 0, -8.0, math.nan, True])
def test_a_load_from_python_is_a_number_above_zero(wrong: str | float) -> None:
    records = slower_beyond(24.0)
    (found,), (same,) = (harness.recommend(records, max_e2e="9s", at_load=each) for each in ("8", 8))
    assert found.use.level == same.use.level == 8.0
    assert json.loads(json_line(found))["load"] == 8.0
    with pytest.raises(UsageError, match="--at-load: expected a number above zero"):
        harness.recommend(records, max_e2e="9s", at_load=wrong)


def test_a_load_that_no_row_measured_is_refused_with_those_that_were() -> None:
    records = slower_beyond(24.0)
    known = "8 concurrent requests; 16 concurrent requests; 32 concurrent requests"
    with pytest.raises(UsageError, match=f"--at-load 24: this load was not measured; measured: {known}"):
        asked(records, 24.0, max_e2e="1s")
    failing = [failed(each) for each in records]
    with pytest.raises(UsageError, match=r"--at-load 8: .* measured: none, no server was put under load"):
        asked(failing, 8.0, max_e2e="1s")


def test_an_slo_that_nobody_meets_has_a_largest_load_of_none() -> None:
    strict = replace(WORKLOAD, slo=Slo(ttft_s=0.001))
    record = baseline(0, lambda level, number, repetition: (0.1, 0.01), strict)
    (table,) = tradeoff([record])
    (load,) = (each.load for each in table.rows[0].ladders)
    assert value(CAPACITY.of(table.rows[0], load)) == 0.0
    assert CAPACITY.notes(table.rows[0], load) == (Note("no load holds ttft ≤ 0.001 s for 90%"),)


def test_a_server_that_fails_is_a_row() -> None:
    records = slower_beyond(24.0)
    table, _, variant = only([records[0], failed(records[1])])
    assert (variant.status, variant.served, len(table.rows)) == ("failed", (), 2)


@pytest.mark.parametrize(
    ("status", "error", "shown"),
    [
        ("failed", "RunError", True),  # its server ended
        ("out_of_memory", "MemoryError", True),
        ("invalid", "UndrivenError", True),  # the client could not send so many
        ("invalid", "InvalidRunError", False),  # such as a file that changed meanwhile: it was another model
        ("unsupported", "UnsupportedError", False),
    ],
)
def test_levels_below_one_that_was_too_much_are_shown_beside_the_failure(
    status: Status, error: str, shown: bool
) -> None:
    """It held 8 and 16 requests at the same time."""
    records = slower_beyond(24.0)
    records = [ended_above(each, 16.0, status, error) if each.spec.method == RTN else each for each in records]
    table, _, variant = only(records)
    assert (variant.status, variant.reason) == (status, "serve: too much for it")
    assert [load.level for load in table.loads] == [8.0, 16.0, 32.0]
    if not shown:
        assert variant.served == variant.ladders == ()
        return
    assert ratios(variant) == pytest.approx([(24 / level) ** 0.1 for level in (8, 16)])
    assert value(TTFT[1].of(variant, table.loads[1])) > 0
    assert TTFT[1].of(variant, table.loads[2]) is None
    held = CAPACITY.of(variant, variant.ladders[0].load)
    assert isinstance(held, Estimate)
    assert (held.value, held.low, held.high) == (16.0, 16.0, math.inf)


def test_a_variant_is_held_against_a_baseline_whose_server_ended_at_a_higher_load() -> None:
    records = [ended_above(each, 16.0) if each.spec.is_baseline else each for each in slower_beyond(24.0)]
    _, base, variant = only(records)
    assert base.status == "failed"
    assert ratios(variant)[:2] == pytest.approx([(24 / level) ** 0.1 for level in (8, 16)])
    assert ratios(variant)[2:] == [None]


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "unchanged"), (2.0, "regressed")])
def test_levels_below_one_that_both_sides_fail_at_are_compared(factor: float, verdict: str) -> None:
    """Both lose their server at 32, and up to there HEAD takes ``factor`` times as long."""
    base = [ended_above(each, 16.0) for each in steady(1.0, 8.0, 6)]
    head = [replace(ended_above(each, 16.0), session="two") for each in steady(factor, 8.0, 6)]
    found = track(base, head, {"ttft_p95": 0.05})
    assert {(each.where.split(";")[0], each.verdict) for each in found.findings if each.metric == "ttft_p95"} == {
        (f"{level} concurrent requests", verdict) for level in (8, 16)
    }
    assert found.exit_code == (verdict == "regressed")
    endings = [each for each in found.findings if each.metric == "runs"]
    assert {(each.verdict, each.reasons) for each in endings} == {
        ("unchanged", ("fails on both sides: serve: too much for it",))
    }


def test_a_server_that_newly_fails_is_told_with_the_levels_that_it_held() -> None:
    head = [replace(ended_above(each, 16.0), session="two") for each in steady(1.0, 8.0, 6)]
    found = track(steady(1.0, 8.0, 6), head, {"ttft_p95": 0.05})
    assert {each.verdict for each in found.findings if each.metric == "runs"} == {"regressed"}
    by_level = {each.where.split(" ")[0]: each.verdict for each in found.findings if each.metric == "ttft_p95"}
    assert (by_level["8"], by_level["16"]) == ("unchanged", "unchanged")
    assert by_level.get("32") not in ("unchanged", "improved")
    assert found.exit_code == 1


@pytest.mark.parametrize("dead_method", [NONE, RTN])
def test_a_dead_process_among_many_has_no_ratio_and_breaks_nothing(dead_method: MethodRef) -> None:
    """One of 20 processes answers nothing at the highest level, so that 95% of all requests are answered there."""
    records = []
    for method in (NONE, RTN):
        silent, alive = (answering(share, 20, method=method) for share in (0.0, 1.0))
        records += [*alive[:7], silent[7], *alive[8:]] if method == dead_method else alive
    _, _, variant = only(records)
    assert ratios(variant) == [pytest.approx(1), pytest.approx(1), None]


def quickly(level: float, number: int, repetition: int) -> tuple[float, float]:
    """A fifth of the time that ``steadily`` takes."""
    return 0.06, 0.004


def shown(table: Table, row: VariantRow, figure: str) -> Cell:
    """The last of the figure's cells that readers see."""
    return cell([each for each in shown_columns(table) if each.figure.name == figure][-1], row)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_a_server_that_refuses_requests_is_not_the_faster_one_for_it(share: float) -> None:
    """The requests that it does answer at the highest load take a fifth of the time."""
    table, _, variant = only([*answering(1.0, 3), *answering(share, 3, method=RTN, times=quickly)])
    assert ratios(variant) == [pytest.approx(5), pytest.approx(5), None]
    (ladder,) = variant.ladders
    words = BY_NAME["crossover"].of(variant, ladder.load)
    assert words == "faster than the baseline up to 16.0 concurrent requests, slower beyond [16.0, 32.0]"
    lost = f"{100 * share:.3g}% of its requests were answered, and 100% of the baseline's"
    assert shown(table, variant, "served_ratio") == Cell("—", notes=(Note(lost),))
    assert shown(table, variant, "crossover") == Cell(words, notes=(Note(f"at 32 concurrent requests: {lost}"),))


def test_where_the_baseline_refuses_requests_a_slower_variant_is_ahead() -> None:
    table, _, variant = only([*answering(0.25, 3, times=quickly), *answering(1.0, 3, method=RTN)])
    assert shown(table, variant, "crossover").text == (
        "slower than the baseline up to 16.0 concurrent requests, faster beyond [16.0, 32.0]"
    )


def test_which_of_two_servers_is_faster_is_not_known_where_both_lose_as_many() -> None:
    table, _, variant = only([*answering(0.5, 3), *answering(0.5, 3, method=RTN, times=quickly)])
    assert ratios(variant) == [pytest.approx(5), pytest.approx(5), None]
    assert variant.ladders[0].crossover is None
    assert shown(table, variant, "served_ratio").notes == (
        Note("50% of its requests were answered, and 50% of the baseline's"),
    )


def test_few_lost_requests_take_infinitely_long_and_are_told() -> None:
    """One of 40 is lost on one side: the median is that of the others, and the note says so."""
    table, _, variant = only([*answering(1.0, 3), *answering(0.975, 3, method=RTN, times=quickly)])
    assert ratios(variant) == pytest.approx([5, 5, 5])
    assert shown(table, variant, "served_ratio").notes == (
        Note("97.5% of its requests were answered, and 100% of the baseline's"),
    )


def test_answers_that_are_shorter_are_told_beside_the_ratio() -> None:
    """They end by themselves, the variant's after three of five tokens: it is faster by that alone."""
    natural = replace(WORKLOAD, natural=True, slo=None)
    records = []
    for method, repetition in product((NONE, RTN), range(3)):
        made = served_record(method, repetition, steadily, natural)
        levels = {level: answers(level, repetition, steadily, natural) for level in natural.levels}
        if method == RTN:
            levels = {
                level: [replace(each, output_tokens=3, gaps_s=(0.02,) * 2, e2e_s=0.34) for each in own]
                for level, own in levels.items()
            }
        records.append(replace(made, outcome=Outcome("ok", measurements=tuple(measurements(levels, natural)))))
    table, _, variant = only(records)
    assert ratios(variant) == pytest.approx([0.38 / 0.34] * 3)
    assert shown(table, variant, "served_ratio").notes == (
        Note("its answers are 0.600 times as long as the baseline's"),
    )


def test_what_the_engine_changes_and_what_the_quantization_changes_are_two_figures() -> None:
    """On the other engine everything takes twice as long; there the variant is faster up to 12 requests at a time."""

    def taking(factor: float, cross: float = math.inf) -> Times:
        def times(level: float, number: int, repetition: int) -> tuple[float, float]:
            longer = factor * (level / cross) ** 0.1 if cross < math.inf else factor
            return longer * 0.01 * level * (1 + number / 100), longer * 0.002 * level

        return times

    records = [
        made
        for repetition in range(3)
        for made in (
            baseline(repetition, taking(1.0)),
            served_record(NONE, repetition, taking(2.0), engine="llamacpp"),
            served_record(RTN, repetition, taking(2.0, 12.0), engine="llamacpp"),
        )
    ]
    (table,) = tradeoff(records)
    rows = {(row.method, row.engine): row for row in table.rows}
    variant, control = rows["rtn", "llamacpp"], rows["none", "llamacpp"]
    assert control.is_control
    assert ratios(control) == pytest.approx([0.5] * 3)
    assert ratios(variant) == pytest.approx([0.5 * (12 / level) ** 0.1 for level in (8, 16, 32)])
    over = [value(BY_NAME["served_over_control"].of(variant, load)) for load in table.loads]
    assert over == pytest.approx([(12 / level) ** 0.1 for level in (8, 16, 32)])
    (ladder,) = variant.ladders
    assert ladder.crossover is None, "it is slower than the baseline at every load"
    assert shown(table, variant, "crossover_over_control").text == (
        "faster than the control up to 12.0 concurrent requests, slower beyond [12.0, 12.0]"
    )
    for row in (control, rows["none", "transformers"]):
        assert [each.against_control for each in row.served] == [None] * 3
    own, _, _ = only(slower_beyond(24.0))
    assert not any("control" in each.name for each in columns(own))


def test_other_requests_are_never_paired() -> None:
    records = slower_beyond(24.0)
    other = replace(
        records[1],
        outcome=replace(
            records[1].outcome,
            measurements=tuple(
                replace(each, protocol={**each.protocol, "schedule": "other"})
                for each in records[1].outcome.measurements
            ),
        ),
    )
    _, _, variant = only([records[0], other])
    assert [each.against_baseline for each in variant.served] == [None] * 3


def test_a_slower_server_fails_the_gates() -> None:
    """Five processes of each side, of which HEAD's take a fifth longer."""
    sides = [
        [
            baseline(
                each, lambda level, number, repetition, factor=factor: (factor * 0.01 * level + repetition / 1e4, 0.02)
            )
            for each in range(5)
        ]
        for factor in (1.0, 1.2)
    ]
    found = track(sides[0], [replace(each, session="two") for each in sides[1]], {"ttft_p95": 0.05})
    ttft = [each for each in found.findings if each.metric == "ttft_p95"]
    assert {(each.where.split(";")[0], each.verdict) for each in ttft} == {
        (f"{level} concurrent requests", "regressed") for level in (8, 16, 32)
    }


def steady(factor: float, level: float, processes: int) -> list[RunRecord]:
    """Two variants, whose processes' times differ by up to 3%; beside the recipe's levels each measured ``level``."""
    found = []
    for method, repetition in product((NONE, RTN), range(processes)):
        times = factor * (1 + repetition / 200)
        ladder = replace(WORKLOAD, levels=tuple(sorted({*WORKLOAD.levels, level})))
        made = served_record(
            method, repetition, lambda load, *_, times=times: (times * 0.01 * load, times * 0.002), ladder
        )
        found.append(replace(made, spec=served_record(method, repetition, lambda *_: (0.1, 0.1)).spec))
    return found


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1.0, "unchanged", 0), (1.2, "regressed", 1)])
def test_six_repetitions_decide_the_usual_gates_of_two_variants(factor: float, verdict: str, code: int) -> None:
    """Levels that bisect are the process's own choice: they are not compared."""
    head = [replace(each, session="two") for each in steady(factor, 20.0, 6)]
    found = track(steady(1.0, 10.0, 6), head)
    assert set(found.gates) >= {"ttft_p95", "tpot_p95", "goodput", "largest_load"}
    assert not {"itl_p95", "e2e_p95", "output_throughput"} & found.gates.keys()
    assert {each.verdict for each in found.gated if each.metric == "ttft_p95"} == {verdict}
    assert (found.exit_code, {each.verdict for each in found.gated} & {"inconclusive", "incomparable"}) == (code, set())
    assert not any(each.where.startswith(("10 ", "20 ")) for each in found.findings)


@pytest.mark.parametrize(("processes", "code"), [(1, 4), (3, 4), (6, 0)])
def test_few_processes_are_inconclusive_and_fail_nothing(processes: int, code: int) -> None:
    head = [replace(each, session="two") for each in steady(1.01, 20.0, processes)]
    found = track(steady(1.0, 10.0, processes), head)
    assert found.exit_code == code
    assert not any(each.verdict in ("regressed", "incomparable") for each in found.findings)


@pytest.mark.parametrize(
    ("processes", "verdict", "needed", "code"),
    [(2, "inconclusive", 5, 4), (4, "inconclusive", 5, 4), (5, "unchanged", None, 0)],
)
@pytest.mark.parametrize("limit_s", [0.001, 1.0])
def test_a_figure_with_steps_that_is_the_same_in_every_process_is_unchanged_from_five_on(
    limit_s: float, processes: int, verdict: str, needed: int | None, code: int
) -> None:
    """If its median had changed, each of n processes would show that with probability a half or more: 2⁻⁵ is 3%."""
    workload = replace(WORKLOAD, slo=Slo(ttft_s=limit_s))
    sides = [[baseline(each, lambda *_: (0.1, 0.01), workload) for each in range(processes)] for _ in range(2)]
    gates = {"largest_load": 0.05, "goodput": 0.05} if limit_s < 0.1 else {"largest_load": 0.05, "answered": 0.05}
    found = track(sides[0], [replace(each, session="two") for each in sides[1]], gates)
    assert {each.metric for each in found.gated} == gates.keys()
    assert {(each.verdict, each.needed) for each in found.gated} == {(verdict, needed)}
    assert {each.change and each.change.value for each in found.gated} == {0.0}
    assert found.exit_code == code
    load = next(each for each in found.gated if each.metric == "largest_load")
    same = f"{'zero' if limit_s < 0.1 else 'the same'} in all {2 * processes} processes"
    hidden = ("a change of less than one level of the ladder would not show",)
    few = (f"no test is valid at n = {processes} processes: it takes at least 5",)
    assert load.reasons == ((same, *few) if code else (same, *hidden) if limit_s > 0.1 else (same,))


@pytest.mark.parametrize(("holds", "verdict", "code"), [("BASE", "regressed", 1), ("HEAD", "improved", 0)])
def test_a_server_that_no_longer_holds_the_slo_at_all_has_regressed(holds: str, verdict: str, code: int) -> None:
    """No request meets it on one side, so that goodput and largest load are zero there: they have no logarithm."""
    sides = {
        name: [baseline(each, lambda *_, name=name: (0.1 if name == holds else 1.0, 0.01)) for each in range(5)]
        for name in ("BASE", "HEAD")
    }
    head = [replace(each, session="two") for each in sides["HEAD"]]
    found = track(sides["BASE"], head, {"goodput": 0.05, "largest_load": 0.05})
    assert {each.metric for each in found.gated} == {"goodput", "largest_load"}
    assert {each.verdict for each in found.gated} == {verdict}
    assert found.exit_code == code
    for each in found.gated:
        assert (each.base == 0.0, each.head == 0.0) == (holds == "HEAD", holds == "BASE")
        assert each.change is None  # a rate to or from zero has no percentage


def steadily(level: float, number: int, repetition: int) -> tuple[float, float]:
    return 0.3, 0.02


def later(level: float, number: int, repetition: int) -> tuple[float, float]:
    """Each process is a tenth of a second slower than the one before."""
    return 0.3 + repetition / 10, 0.02


def answering(
    share: float, processes: int = 5, session: str = "one", method: MethodRef = NONE, times: Times = steadily
) -> list[RunRecord]:
    """Servers that answer only that share of the highest level's requests, the first, and no SLO is given."""
    plain, made = replace(WORKLOAD, slo=None), []
    for repetition in range(processes):
        levels = {level: answers(level, repetition, times, plain) for level in plain.levels}
        highest = levels[plain.levels[-1]]
        for number in range(round(share * len(highest)), len(highest)):
            highest[number] = replace(highest[number], error="Service Unavailable")
        record = served_record(method, repetition, times, plain, session)
        made.append(replace(record, outcome=Outcome("ok", measurements=tuple(measurements(levels, plain)))))
    return made


def partly(silent: int, session: str = "one") -> list[RunRecord]:
    """Five processes, the first of which answer nothing at the highest load; those that do take 0.3 to 0.7 s."""
    nothing, all_of_them = (answering(share, 5, session, times=later) for share in (0.0, 1.0))
    return [*nothing[:silent], *all_of_them[silent:]]


@pytest.mark.parametrize(("base", "head", "verdict", "code"), [(1, 0, "regressed", 1), (0, 1, "improved", 0)])
def test_a_load_that_a_server_no_longer_answers_at_all_has_regressed(
    base: int, head: int, verdict: str, code: int
) -> None:
    """Its share of answers and its throughput are zero and its times have no end; no SLO says so."""
    gates = {"answered": 0.05, "ttft_p95": 0.05, "tpot_p95": 0.05, "output_throughput": 0.05}
    found = track(answering(base), answering(head, session="two"), gates)
    at = {level: {e.metric: e for e in found.gated if e.where.startswith(f"{level} ")} for level in (8, 16, 32)}
    assert {level: {each.verdict for each in own.values()} for level, own in at.items()} == {
        8: {"unchanged"},
        16: {"unchanged"},
        32: {verdict},
    }
    assert at[32].keys() == gates.keys()
    assert found.exit_code == code
    assert [at[32]["answered"].base, at[32]["answered"].head] == [base, head]
    time, side = at[32]["ttft_p95"], "HEAD" if base else "BASE"
    assert (time.base, time.head) == ((0.3, None) if base else (None, 0.3))
    assert time.reasons[-1] == f"{side} answered no request in 5 of 5 processes"
    assert {each.change for each in at[32].values()} == {None}
    assert {words.change(each) for each in at[32].values()} == {"—"}
    told = json.loads(json_text(found))["findings"]
    assert {each["change"] for each in told if each["where"].startswith("32 ")} == {None}


@pytest.mark.parametrize(
    ("silent", "median", "slowest"), [(0, 0.5, 0.7), (1, 0.6, math.inf), (2, 0.7, math.inf), (3, None, None)]
)
def test_a_process_that_answers_nothing_counts_as_infinitely_slow_everywhere(
    silent: int, median: float | None, slowest: float | None
) -> None:
    """Comparison, report and history have the same figure; there is none where most of the processes have no time."""
    records = partly(silent, "two")
    compared = track(answering(1.0, times=later), records, {"ttft_p95": 0.05})
    (at_highest,) = (each for each in compared.gated if each.where.startswith("32 "))
    assert (at_highest.base, at_highest.head) == (0.5, pytest.approx(median))
    assert (at_highest.change is None) == (median is None)

    (table,) = tradeoff(records)
    row, load = table.rows[0], table.loads[-1]
    shown = TTFT[1].of(row, load)
    assert (shown and (shown.value, shown.high)) == (median and pytest.approx((median, slowest)))  # type: ignore[union-attr]
    told = f"{silent} of 5 processes answered no request"
    assert TTFT[1].notes(row, load) == ((Note(told),) if silent else ())

    over_time = trace(records, metrics=["ttft_p95"])
    assert list(history_words.notes(over_time)) == (
        [f"2026-11-29 10:00 {over_time.silent[0].run}: {told} at {load.label}"] if silent else []
    )
    lines = [each for each in over_time.series if each.where.startswith("32 ")]
    assert [point.value for line in lines for point in line.points] == (
        [] if median is None else [pytest.approx(median)]
    )

    (advice,) = recommend(tradeoff(records), Query(parse_limits({"max_ttft": "10s"}), parse_objective("ttft", None)))
    basis = f"{told} at {load.short}" if median is None else f"at {load.short}"
    every = (*advice.admissible, *advice.rejected)
    assert [each.objective.basis for each in every] == [basis]
    assert bool(advice.admissible) == (median is not None)


def test_a_history_tells_of_silent_servers_where_it_shows_what_depends_on_them() -> None:
    records = [*partly(2, "one"), *partly(5, "two")]
    assert {(each.session, each.silent, each.processes) for each in trace(records).silent} == {
        ("one", 2, 5),
        ("two", 5, 5),
    }
    assert trace(records, metrics=["answered"]).silent == ()


@pytest.mark.parametrize("both", [False, True])
def test_an_old_record_of_a_load_without_an_answer_has_the_rates_of_a_new_one(both: bool) -> None:
    """Rates of zero were once left out."""
    rates = ("serving_output_tok_per_s", "serving_requests_per_s")
    new = answering(0.0, session="two")
    old = [
        replace(
            each,
            outcome=replace(
                each.outcome,
                measurements=tuple(m for m in each.outcome.measurements if m.metric not in rates or m.values != (0.0,)),
            ),
        )
        for each in new
    ]
    assert all(len(a.outcome.measurements) == len(b.outcome.measurements) - 2 for a, b in zip(old, new, strict=True))
    base = answering(0.0) if both else answering(1.0)
    gates = {"output_throughput": 0.05}
    assert track(base, old, gates).gated == track(base, new, gates).gated
    assert track(old, base, gates).gated == track(new, base, gates).gated
    shown = [THROUGHPUT.of(table.rows[0], table.loads[-1]) for each in (old, new) for table in tradeoff(each)]
    assert shown[0] == shown[1]
    assert value(shown[0]) == 0.0
    assert trace(old, metrics=["output_throughput"]) == trace(new, metrics=["output_throughput"])


def test_requests_that_a_server_loses_are_a_regression_however_fast_the_others_are() -> None:
    found = track(answering(1.0), answering(0.5, session="two"))
    assert set(found.gates) >= {"answered", "ttft_p95", "tpot_p95"}
    (lost,) = (each for each in found.gated if each.verdict == "regressed")
    assert (lost.metric, lost.base, lost.head) == ("answered", 1.0, 0.5)
    assert {each.verdict for each in found.gated} == {"unchanged", "regressed"}


def test_few_processes_without_an_answer_are_undecided_and_never_incomparable() -> None:
    found = track(answering(1.0, 1), answering(0.0, 1, "two"))
    assert {each.verdict for each in found.gated} == {"inconclusive"}


def test_a_load_that_neither_side_answers_is_unchanged() -> None:
    """There is no time to compare, and nothing to say of one."""
    found = track(answering(0.0), answering(0.0, session="two"))
    highest = [each for each in found.gated if each.where.startswith("32 ")]
    assert [(each.metric, each.verdict) for each in highest] == [("answered", "unchanged")]


@pytest.mark.parametrize(
    ("gate", "shares", "change"),
    [
        ("answered", (1.0, 0.0), "from 1.00 to 0 (regressed)"),
        ("answered", (0.0, 1.0), "from 0 to 1.00 (improved)"),
        ("ttft_p95", (1.0, 0.0), "from 0.300 s to no answer (regressed)"),
        ("ttft_p95", (0.0, 1.0), "from no answer to 0.300 s (improved)"),
    ],
)
def test_a_change_of_the_baseline_that_no_percentage_says_is_said_in_words(
    gate: str, shares: tuple[float, float], change: str
) -> None:
    base, head = (
        [each for method in (NONE, RTN) for each in answering(share, 5, session, method)]
        for share, session in zip(shares, ("one", "two"), strict=True)
    )
    (own,) = (e for e in track(base, head, {gate: 0.05}).gated if "rtn" in e.method and e.where.startswith("32 "))
    assert own.reasons[-1] == f"the unquantized baseline changed {change}"


def test_a_change_that_rounds_to_nothing_is_said_in_words() -> None:
    assert [by(each) for each in (0.03, -0.2, 0.0004, 0.0)] == ["by +3.0%", "by -20.0%", *["by less than 0.05%"] * 2]


def test_a_load_without_the_baselines_stands_alone() -> None:
    records = slower_beyond(24.0)
    (table,) = tradeoff([replace(records[0], session="earlier"), records[1]])
    assert table.notes == (
        "the load stands alone, the baseline's server was not measured in the same session: rtn bits=4",
    )


def test_a_load_names_itself() -> None:
    load = Load("poisson", "32 tokens of demo", "5 tokens", 2.5)
    assert load.label == "2.5 requests/s, poisson; prompts: 32 tokens of demo; answers: 5 tokens"
    assert load.name == "poisson_2_5_32_tokens_of_demo_5_tokens"
