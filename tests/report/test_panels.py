"""Panels of intervals: what their captions say. Scatter plots: how far a name is from its marker."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.figures.figure import Value
from harness.report.column import columns_of
from harness.report.page import page
from harness.report.plots import axes, panels, scatter
from harness.report.plots.axes import CUT_OFF
from harness.stats.estimate import Estimate
from harness.storage.reading import read_records

EXAMPLE = Path(__file__).parents[2] / "results" / "example"


def test_a_caption_says_that_an_interval_is_cut_off_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest of the quantizing times, among others with narrow intervals, bounds nothing."""
    (table,) = page(read_records(EXAMPLE)).tables
    plain = {plot.name: plot.caption for plot in panels.panels_of(table)}
    assert not any(CUT_OFF in caption for caption in plain.values())
    (times,) = columns_of(table, panels.QUANTIZE_TIME)
    widest = max(axes.estimate(each).value for row in table.rows if (each := times.value(row)) is not None)

    def estimate(value: Value) -> Estimate:
        found = axes.estimate(value)
        width = 1e6 if found.value == widest else 1.01
        return replace(found, low=found.value / width, high=found.value * width)

    monkeypatch.setattr(panels, "estimate", estimate)
    captions = {plot.name: plot.caption for plot in panels.panels_of(table)}
    assert captions == plain | {"cost-of-quantizing": f"{plain['cost-of-quantizing']} {CUT_OFF}"}


def test_a_name_keeps_its_distance_from_the_marker_that_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many variants make markers smaller, the lines from names to markers are as much longer."""
    (table,) = page(read_records(EXAMPLE)).tables

    def drawn() -> tuple[list[float], list[float]]:
        """The radii of the named markers, and where the lines from their names end."""
        figure = json.loads(scatter.scatters(table)[0].json)
        sizes = [size / 2 for trace in figure["data"] if trace["mode"] == "markers" for size in trace["marker"]["size"]]
        ends = [note["standoff"] for note in figure["layout"]["annotations"] if "standoff" in note]
        return sorted(sizes), sorted(ends)

    for most in (scatter.MOST_INTERVALS, 1):
        monkeypatch.setattr(scatter, "MOST_INTERVALS", most)
        radii, ends = drawn()
        assert ends == pytest.approx(radii)
