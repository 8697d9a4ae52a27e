"""Columns and cells."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.tradeoff import tradeoff
from harness.core.record import RunRecord
from harness.figures.figure import Note
from harness.figures.table import Table, VariantRow
from harness.report import write_report
from harness.report.breakdown import breakdowns
from harness.report.column import Cell, cell, column, column_groups, columns, raw, shown_columns
from harness.report.highlights import highlights
from harness.report.plots import plots_of
from harness.report.renderers.page_table import Footnotes


def only(records: list[RunRecord]) -> Table:
    (table,) = tradeoff(records)
    return table


def test_stored_weights_are_decimal_and_peaks_binary(records: list[RunRecord]) -> None:
    table = only(records)
    stored, peak = column(table, "stored_bytes"), column(table, "peak_prefill_performance_bytes")
    assert (stored.unit, cell(stored, table.rows[0]).text) == ("MB", "538")  # 538,060,032 bytes; 513 MiB
    assert (peak.unit, cell(peak, table.rows[0]).text) == ("GiB", "0.597")  # 612 MiB; 0.641 GB
    assert "1,000,000 bytes" in stored.help
    assert "1,073,741,824 bytes" in peak.help


def test_an_interval_is_in_brackets(records: list[RunRecord]) -> None:
    table = only(records)
    change = cell(column(table, "perplexity_change_fraction"), table.rows[1])
    assert change.text.startswith("+0.")
    assert change.interval.startswith("[+0.")
    assert change.notes == (Note("equivalent"),)
    assert change.whole == f"{change.text} {change.interval} equivalent"


def test_a_short_note_stands_beside_its_figure_and_the_whole_of_it_below() -> None:
    """Brackets in a note's own words are no sign of a detail."""
    footnotes = Footnotes()
    cells = [
        Cell("1", notes=(Note("inconclusive", "±0.35 would show"), Note("2 lost, 1 won"))),
        Cell("2", "[1, 3]", notes=(Note("slow (by far)"),)),
        Cell("3", "[2, 4]", notes=(Note("too long for its cell"),)),
    ]
    assert list(map(footnotes.of, cells)) == [("inconclusive", "1 2"), ("slow (by far)", ""), ("", "3")]
    assert list(footnotes.notes) == ["inconclusive (±0.35 would show)", "2 lost, 1 won", "too long for its cell"]
    assert cells[0].whole == "1 inconclusive (±0.35 would show), 2 lost, 1 won"


def test_blank_is_a_dash_that_does_not_sort(records: list[RunRecord]) -> None:
    table = only(records)
    blank = cell(column(table, "perplexity"), table.rows[-1])
    assert (blank.whole, blank.sort) == ("—", None)


def test_raw_values_keep_their_precision_and_their_columns(records: list[RunRecord]) -> None:
    table = only(records)
    kl = column(table, "kl_mean_nat")
    found = raw(table, kl)
    assert found["kl_mean_nat"][1] == table.rows[1].kl_mean.value  # type: ignore[union-attr]
    assert list(found) == ["kl_mean_nat", "kl_mean_nat_low", "kl_mean_nat_high"]
    assert [each[-1] for each in found.values()] == [None, None, None]


UNITS: dict[str, tuple[str, float]] = {
    "nat": ("nat", 1),
    "B": ("bytes", 1),
    "MB": ("bytes", 1e-6),
    "KiB": ("bytes", 2**-10),
    "GiB": ("bytes", 2**-30),
    "tok": ("tokens", 1),
    "tok/s": ("tok_per_s", 1),
    "J/tok": ("j_per_tok", 1),
    "W": ("power_w", 1),
    "EUR/10⁶ tok": ("eur_per_million_tok", 1),
    "×": ("ratio", 1),
}
"""By the unit that readers see: the words of a column's name, and the factor from the raw value to what they see."""
SHARES = ("fraction", "probability", "ratio")


def has_words(name: str, words: str) -> bool:
    return f"_{words}_" in f"_{name}_"


def test_no_two_columns_have_one_name(records: list[RunRecord]) -> None:
    names = [each.name for each in columns(only(records))]
    assert len(names) > 100
    assert len(names) == len(set(names))


def test_a_name_says_the_unit_of_the_raw_value(records: list[RunRecord]) -> None:
    """Readers see another unit of the same quantity, by the column's factor."""
    made = columns(only(records))
    assert {each.unit for each in made} == {"", "%", *UNITS}
    for each in made:
        if each.unit == "%":
            assert each.format.factor == 100, each.name
            assert any(has_words(each.name, words) for words in SHARES), each.name
        elif each.unit:
            words, factor = UNITS[each.unit]
            assert each.format.factor == factor, each.name
            assert has_words(each.name, words), each.name


def test_a_figure_that_readers_see_without_a_unit_has_none(records: list[RunRecord]) -> None:
    """But for a duration, which is written with the unit that suits it, and a count of bytes in a fixed unit."""
    plain = [each for each in columns(only(records)) if each.shown and not each.unit]
    assert "perplexity" in {each.name for each in plain}
    with_units = {each.name for each in plain for words, _ in UNITS.values() if has_words(each.name, words)}
    assert with_units == set()
    assert {each.name for each in plain if has_words(each.name, "s")} == {"quantize_s"}


def test_readers_see_no_empty_column(bench: Any, none: Any) -> None:
    shown = shown_columns(only([bench.quality(none)]))
    assert "Speed" not in {each.group for each in shown}
    assert sum(span for _, span in column_groups(shown)) == len(shown)


def test_highlights_keep_to_the_tolerance(records: list[RunRecord]) -> None:
    found = {each.title: each.variant for each in highlights(only(records))}
    assert found == {
        "Closest to the baseline": "rtn 8-bit g64",
        "Smallest within 5% of its perplexity": "torchao int8-weight-only",  # bnb-int8 is 0.1% smaller, and less close
        "Fastest decoding within 5%": "torchao int8-weight-only",
    }


def test_a_highlight_names_what_may_lead_as_well_and_the_baseline_if_no_variant_is_better(
    records: list[RunRecord],
) -> None:
    table = only(records)
    ties = {each.title: each.ties for each in highlights(table)}
    assert list(ties.values())[1:] == ["within 1% of the size of bnb-int8 and torchao float8-weight-only", ""]

    def slowed(row: VariantRow) -> VariantRow:
        """At the speed of the variant that decodes at half that of the baseline."""
        return row if row.is_baseline else row.altered(speeds=slow.speeds)

    slow = next(row for row in table.rows if row.label == "rtn 8-bit g64")
    fastest = highlights(replace(table, rows=tuple(map(slowed, table.rows))))[-1]
    assert (fastest.variant, fastest.facts) == ("unquantized (the baseline)", ("no variant is better",))
    assert fastest.ties == ""


def test_divergence_is_told_by_position_and_confidence(records: list[RunRecord]) -> None:
    """The token-weighted mean over all groups of either kind is the mean that the table shows."""
    table = only(records)
    row = table.rows[1]
    assert row.kl_mean is not None
    for bins in (row.kl_by_position, row.kl_by_confidence):
        tokens = [each.tokens for each in bins]
        mean = sum(each.mean.value * each.tokens for each in bins) / sum(tokens)
        assert mean == pytest.approx(row.kl_mean.value)
    groups = dict(breakdowns(table))
    assert [each.heading for each in groups["the baseline's confidence, %"]][:2] == ["0 to 10", "10 to 20"]
    first = groups["preceding tokens in the window"][0]
    assert raw(table, first)[first.name][table.rows.index(row)] == row.kl_by_position[0].mean.value


def test_a_speed_says_what_its_interval_leaves_out(records: list[RunRecord]) -> None:
    """One process of three kept, and one of its steps a hundred times as long: said below the figure."""
    kept = []
    for record in records:
        if record.spec.kind == "performance":
            if record.spec.repetition:
                continue
            steps = record.find("decode_step_s", prompt_tokens=128)
            assert steps is not None
            slow = replace(steps, values=(100 * steps.values[0], *steps.values[1:]))
            measured = tuple(slow if each is steps else each for each in record.outcome.measurements)
            record = replace(record, outcome=replace(record.outcome, measurements=measured))
        kept.append(record)
    table = only(kept)
    by_name = {each.name: each for each in columns(table)}
    decode, prefill = (by_name[f"{phase}_tok_per_s_b1_p128_n32"] for phase in ("decode", "prefill"))
    assert cell(decode, table.rows[0]).notes == (Note("one process"), Note("1 of 30 timings far out"))
    assert cell(prefill, table.rows[0]).notes == (Note("one process"),)
    assert by_name["decode_outliers_b1_p128_n32"].value(table.rows[0]) == 1
    assert by_name["prefill_outliers_b1_p128_n32"].value(table.rows[0]) == 0


def test_two_processes_have_no_interval_in_any_output(bench: Any, none: Any, looks: Any, tmp_path: Path) -> None:
    """Of 20 and 200 tok/s nothing is printed that begins at a millionth, and no axis reaches for billions."""
    made = [bench.quality(none), bench.quality(looks[0].method, 8, 0.02)]
    for repetition, factor in enumerate((1.0, 10.0)):
        made += [bench.performance(method, factor, repetition) for method in (none, looks[0].method)]
    table_path, csv_path, card, *_ = write_report(made, tmp_path, ("md", "csv", "model-card"))
    (line,) = [
        each
        for each in csv.DictReader(io.StringIO(csv_path.read_text(encoding="utf-8")))
        if each["variant"] == looks[0].label
    ]
    for name in ("decode_tok_per_s_b1_p128_n32", "decode_ratio_b1_p128_n32", "decode_eur_per_million_tok_b1_p128_n32"):
        assert float(line[name]) > 0
        assert (line[f"{name}_low"], line[f"{name}_high"]) == ("", "")
    table = only(made)
    words = [
        cell(column, table.rows[1]).whole
        for column in shown_columns(table)
        if column.group in ("Speed", "Cost of tokens")
    ]
    assert len(words) == 5
    assert all("2 processes: no interval" in each and "[" not in each for each in words)
    for path in (table_path, card):
        assert path.read_text(encoding="utf-8").count("2 processes: no interval") >= 5
    drawn = {each.name: each for each in plots_of(table)}["divergence-speed"]
    layout = json.loads(drawn.json)
    (markers,) = [trace for trace in layout["data"] if trace.get("mode") == "markers"]
    assert markers["error_x"]["array"] == markers["error_x"]["arrayminus"] == [None]
    low, high = layout["layout"]["xaxis"]["range"]
    assert 0 < low < high < 300
    assert any("2 processes: no interval" in word for line in drawn.rows for word in line)
