"""A figure is declared once, and whatever shows it or judges by it follows: a third party's as the harness's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_records import with_written_answers
from mixture_records import of_a_mixture
from run_specs import UNDER_LOAD
from served_records import served
from typer.testing import CliRunner

from harness import plugins
from harness.analysis.history.trace import trace
from harness.analysis.regression.track import track
from harness.analysis.tradeoff import tradeoff
from harness.api.recommend import recommend
from harness.cli.app import app
from harness.core.record import RunRecord
from harness.errors import ExitCode, RecipeError, UsageError
from harness.figures.figure import WHOLE, Figure
from harness.figures.gate import Gate
from harness.figures.speed import DECODE
from harness.figures.statistic import Items
from harness.figures.table import GridPoint, Load
from harness.metrics.divergence import QUANTITIES
from harness.planning.validate import thresholds
from harness.recipe import load_recipe
from harness.report import write_report
from harness.storage.store import Store

PACKAGE = Path(__file__).parents[1] / "figure_package"
HIDDEN = "baseline_confidence"
"""A quantity of divergence that no figure shows: others are broken down by it."""


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Declares figures by entry points, ``NAME=MODULE:OBJECT``, as an installed package does."""
    monkeypatch.syspath_prepend(str(PACKAGE))

    def clear() -> None:
        plugins.figures.cache_clear()
        plugins.gates.cache_clear()
        plugins.plugin_figures.cache_clear()

    def install(**values: str) -> None:
        own = [EntryPoint(name, value, plugins.FIGURE_GROUP) for name, value in values.items()]
        monkeypatch.setattr(
            plugins,
            "entry_points",
            lambda group: own if group == plugins.FIGURE_GROUP else entry_points(group=group),
        )
        clear()

    yield install
    clear()


@pytest.fixture
def records(bench: Any, none: Any, looks: Sequence[Any]) -> list[RunRecord]:
    return [bench.quality(none), *(bench.quality(look.method, look.bits, look.damage) for look in looks[:2])]


def moved(records: Sequence[RunRecord], session: str, less: float) -> list[RunRecord]:
    """The same in another session, where every value of top-5 agreement of the variants is ``less`` lower."""
    made = []
    for record in records:
        measured = tuple(
            replace(m, values=tuple(value - less for value in m.values))
            if m.metric == "top5_agreement" and not record.spec.is_baseline
            else m
            for m in record.outcome.measurements
        )
        later = record.started_at.replace("2026-11-", "2026-12-")
        outcome = replace(record.outcome, measurements=measured)
        made.append(replace(record, outcome=outcome, session=session, started_at=later))
    return made


def agreement(record: RunRecord) -> float:
    (found,) = [m for m in record.outcome.measurements if m.metric == "top5_agreement"]
    return float(np.mean(found.values))


class TestAThirdPartysFigure:
    def test_it_is_a_column_of_every_report(
        self, records: list[RunRecord], installed: Any, looks: Sequence[Any], tmp_path: Path
    ) -> None:
        installed(top5="qharness_top5:TOP5")
        page, table, card, *_ = write_report(records, tmp_path, ("md", "csv", "model-card"))
        lines = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8"))))
        (line,) = [each for each in lines if each["variant"] == looks[0].label]
        assert float(line["top5_fraction"]) == pytest.approx(agreement(records[1]), rel=1e-12)
        assert float(line["top5_fraction_low"]) < float(line["top5_fraction"]) < float(line["top5_fraction_high"])
        for path in (page, card):
            assert "Top-5 agreement (%)" in path.read_text(encoding="utf-8")

    def test_it_is_a_gate(self, records: list[RunRecord], installed: Any, tmp_path: Path) -> None:
        installed(top5="qharness_top5:TOP5")
        recipe = tmp_path / "recipe.yaml"
        head = "name: r\nmodels: [m]\nmethods: [none]\nmeasure: {memory: {}}\n"
        recipe.write_text(f"{head}gates: {{top5: 2%}}\n")
        gates = thresholds(load_recipe(recipe))
        assert gates == {"top5": 0.02}
        worse = track(records, moved(records, "s2", 0.03), gates)
        assert {each.verdict for each in worse.gated} == {"unchanged", "regressed"}
        assert worse.exit_code is ExitCode.GATE_FAILED
        (base,) = {each.base for each in worse.gated if each.method == records[1].spec.method.label}
        assert base == pytest.approx(agreement(records[1]), rel=1e-12)
        assert track(records, moved(records, "s2", 0.005), gates).exit_code is ExitCode.OK
        recipe.write_text(f"{head}gates: {{top6: 2%}}\n")
        with pytest.raises(RecipeError, match=r"recipe.yaml:5: gates: unknown gate 'top6'; did you mean 'top5'"):
            thresholds(load_recipe(recipe))

    def test_it_is_a_series(self, records: list[RunRecord], installed: Any) -> None:
        installed(top5="qharness_top5:TOP5")
        found = trace([*records, *moved(records, "s2", 0.25)], metrics=["top5"])
        (series,) = [each for each in found.series if each.method == records[1].spec.method.label]
        assert [point.value for point in series.points] == pytest.approx(
            [agreement(records[1]), agreement(records[1]) - 0.25]
        )

    def test_it_is_a_limit_of_recommend(self, records: list[RunRecord], installed: Any, tmp_path: Path) -> None:
        installed(top5="qharness_top5:TOP5")
        for record in records:
            Store(tmp_path).save(record)
        bound = (agreement(records[1]) + agreement(records[2])) / 2
        (found,) = recommend(records, min_top5=bound)
        assert [each.row.label for each in found.rejected] == [records[2].spec.method.label]
        run = CliRunner().invoke(app, ["recommend", str(tmp_path), "--min-top5", f"{bound:.6f}", "--format", "json"])
        line = json.loads(run.stdout)
        assert line["limits"] == [{"limit": "min-top5", "bound": pytest.approx(bound, abs=1e-6)}]
        assert [each["variant"] for each in line["fallen"]] == [records[2].spec.method.label]
        assert line["pick"] == found.pick.row.label  # type: ignore[union-attr]
        assert "--min-top5" in CliRunner().invoke(app, ["recommend", "--help"]).stdout

    def test_without_it_there_is_none(self, records: list[RunRecord]) -> None:
        assert "top5" not in plugins.gates()
        with pytest.raises(UsageError, match="min_top5"):
            recommend(records, min_top5=0.9)

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (
                "qharness_top5:LimitOption",
                r"names qharness_top5:LimitOption, which is no harness.figures.figure.Figure",
            ),
            ("absent_module:TOP5", r"fails at import: ModuleNotFoundError"),
            ("harness.figures.speed:DECODE", r"declares a second figure 'decode'"),
        ],
    )
    def test_a_broken_one_is_refused(self, installed: Any, value: str, message: str) -> None:
        installed(broken=value)
        with pytest.raises(UsageError, match=message):
            plugins.figures()

    def test_a_declaration_that_contradicts_itself_is_refused(self) -> None:
        with pytest.raises(ValueError, match="neither 'value' nor 'statistic'"):
            Figure("odd", "Odd", "Odd", "")
        with pytest.raises(ValueError, match="a gate needs a 'statistic'"):
            Figure("odd", "Odd", "Odd", "", lambda row, place: 1.0, gate=Gate("relative", 0.1, "odd"))
        with pytest.raises(ValueError, match="say which 'direction' is better"):
            Figure("odd", "Odd", "Odd", "", statistic=DECODE.statistic)
        assert Figure("even", "Even", "Even", "", statistic=Items("even")).direction == "neither"


POINT = GridPoint(1, 128, 32)


def test_processes_at_1_1_05_and_2_times_are_one_number_everywhere(bench: Any, none: Any) -> None:
    """Their median, by the report, by compare and by history; no mean of any kind."""
    records = [bench.performance(none, speed, number) for number, speed in enumerate((1.0, 1.05, 2.0))]
    steps = [m.values for run in records for m in run.outcome.measurements if m.metric == "decode_step_s"]
    middle = 1 / np.median([np.median(each) for each in steps])
    (table,) = tradeoff(records)
    shown = DECODE.of(table.rows[0], POINT)
    (compared,) = [each for each in track(records, records).findings if each.metric == "decode"]
    (series,) = trace(records, metrics=["decode"]).series
    numbers = [shown.value, compared.base, compared.head, series.points[0].value]  # type: ignore[union-attr]
    assert numbers == pytest.approx([middle] * 4, rel=1e-12)
    means = [np.mean([1 / np.median(each) for each in steps]), np.exp(np.mean([-np.log(np.median(e)) for e in steps]))]
    assert all(abs(mean / middle - 1) > 0.1 for mean in means)


def waits(level: float, request: int, process: int) -> tuple[float, float]:
    """To a request's first token and between its tokens (s)."""
    return 0.01 * request, 0.01 + 0.001 * request + 0.01 * process


def test_a_column_is_the_number_that_its_statistic_makes(bench: Any, none: Any, answered: list[RunRecord]) -> None:
    """Every figure that is compared: what a report shows is what compare and history work out."""
    records = [
        of_a_mixture(bench.quality(none)),
        with_written_answers(answered[0]),
        *(bench.performance(none, 1 + n / 7, n) for n in range(4)),
        *(bench.record(bench.spec("serve", none, n), served(n, waits, UNDER_LOAD)) for n in range(4)),
    ]
    (table,) = tradeoff(records)
    (row,) = table.rows
    seen = set()
    for name, figure in plugins.gates().items():
        for place in figure.taken_at(table):
            point = getattr(place, "point", place)
            found = figure.statistic.value(row, point if isinstance(point, GridPoint | Load) else None)
            shown = figure.of(row, place)
            if shown is not None:
                seen.add(name)
                assert getattr(found, "value", found) == pytest.approx(getattr(shown, "value", shown), rel=1e-12), name
    assert seen == plugins.gates().keys()


def test_a_figure_is_worked_out_once_for_each_row(records: list[RunRecord]) -> None:
    (table,) = tradeoff(records)
    calls = []
    figure: Figure[Any] = Figure(
        "counted", "Odd", "Odd", "", lambda row, place: float(len(calls) or calls.append(1) or 1)
    )
    assert [figure.of(table.rows[0], WHOLE) for _ in range(3)] == [1.0] * 3
    assert len(calls) == 1
    assert figure.of(replace(table.rows[0]), WHOLE) == 1.0


def test_a_figure_and_the_metric_that_it_shows_agree_on_which_direction_is_better() -> None:
    shown = {"kl": "kl", "kl_reverse": "kl_reverse_mean", "top1_agreement": "agreement"}
    figures = plugins.figures()
    assert {name: figures[shown.get(name, name)].direction for name, _, _ in QUANTITIES if name != HIDDEN} == {
        name: direction for name, _, direction in QUANTITIES if name != HIDDEN
    }
