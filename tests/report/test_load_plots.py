"""Plots of servers under load: every level is a point, and the SLO a line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from served_records import RTN, WORKLOAD, baseline, served_record

from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord
from harness.figures.serving import crossover_words
from harness.report.asked import asked
from harness.report.plots.load import loads_of
from harness.report.write import write_report


@pytest.fixture(scope="module")
def records() -> list[RunRecord]:
    """A baseline, and a variant that is a tenth slower."""
    return [
        baseline(0, lambda level, number, repetition: (0.01 * level, 0.02)),
        served_record(RTN, 0, lambda level, number, repetition: (0.011 * level, 0.022)),
    ]


def test_latency_against_throughput_has_the_slo_and_every_level(records: list[RunRecord]) -> None:
    (table,) = tradeoff(records)
    latency, goodput = loads_of(table)
    drawn = json.loads(latency.json)
    assert [len(trace["x"]) for trace in drawn["data"]] == [3, 3]
    assert drawn["data"][0]["y"] == pytest.approx([0.08, 0.16, 0.32])
    assert drawn["data"][1]["y"] == pytest.approx([0.088, 0.176, 0.352])
    (line,) = drawn["layout"]["shapes"]
    assert (line["y0"], line["y1"]) == (0.5, 0.5)
    assert drawn["layout"]["annotations"][0]["text"] == "SLO: ttft ≤ 0.5 s"
    assert json.loads(goodput.json)["data"][0]["x"] == [8, 16, 32]
    assert [row[1] for row in goodput.rows] == ["8.00", "16.0", "32.0"] * 2
    assert len(goodput.head) == len(goodput.rows[0])


def test_without_an_slo_there_is_no_goodput_and_no_line(records: list[RunRecord]) -> None:
    plain = replace(WORKLOAD, slo=None)
    (table,) = tradeoff([baseline(0, lambda level, number, repetition: (0.01, 0.02), plain)])
    (latency,) = loads_of(table)
    assert json.loads(latency.json)["layout"]["shapes"] == []
    assert "E2E p95, s" in latency.head


def test_a_report_says_what_was_asked(records: list[RunRecord]) -> None:
    assert dict(asked(records))["serving"] == (
        "8 and 16 and 32 concurrent requests; 40 requests each, 0 to warm up; prompts of 32 tokens of demo, "
        "answers of 5 tokens; SLO: ttft ≤ 0.5 s for 90%"
    )


def test_the_page_says_where_the_variant_ceases_to_be_faster(tmp_path: Path) -> None:
    crossing = [
        record
        for repetition in range(3)
        for record in (
            baseline(repetition, lambda level, number, repetition: (0.1, 0.02)),
            served_record(RTN, repetition, lambda level, number, repetition: (0.1 * level / 20, 0.02 * level / 20)),
        )
    ]
    (table,) = tradeoff(crossing)
    (ladder,) = next(row for row in table.rows if not row.is_baseline).ladders
    assert ladder.crossover is not None
    assert ladder.crossover.level == pytest.approx(20)
    write_report(crossing, tmp_path, ("html",))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert crossover_words(ladder.crossover, ladder.load.unit) in page
