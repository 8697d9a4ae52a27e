"""What a report shows of a mixture of experts, and that it shows nothing of it for a dense model."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from mixture_records import of_a_mixture
from run_specs import run_spec

from harness.core.record import Measurement, Outcome, RunRecord
from harness.figures import summary
from harness.figures.derived.experts import BlockAgreement, ExpertAudit, ExpertLoad, expert_audit
from harness.figures.experts import DEAD_EXPERTS, FIGURES, STARVED_EXPERTS
from harness.figures.table import Table, VariantRow
from harness.report.column import raw, shown_columns
from harness.report.plots.experts import DIVERGENCES, LOADS, OVERLAPS, expert_plots
from harness.report.plots.plot import Plot
from harness.stats.estimate import Estimate

BLOCKS = ("layers.0.mlp", "layers.1.mlp")
LOAD = (ExpertLoad(BLOCKS[0], (400, 400, 100, 700)), ExpertLoad(BLOCKS[1], (1500, 0, 60, 40)))
NLL = Measurement("nll", 1, "nat", "lower", "paired", (1.0,))
QUALITY = RunRecord(run_spec("quality"), Outcome("ok", measurements=(NLL,)), "s", 1, "2026-01-01T00:00:00+00:00", 1.0)


def estimate(value: float) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01, 6, "exact")


def row(label: str, experts: ExpertAudit | None, baseline: bool = False) -> VariantRow:
    return VariantRow(label, label, "transformers", baseline, "ok", experts=experts)


def table(*rows: VariantRow) -> Table:
    return Table("mixture", None, "gptq", "cpu", rows)


def audit(overlap: float, kl: float, loads: tuple[ExpertLoad, ...] = (), **others: Any) -> ExpertAudit:
    blocks = tuple(BlockAgreement(block, overlap - at / 10, kl * 10**at) for at, block in enumerate(BLOCKS))
    return ExpertAudit(loads, 256 if loads else 0, estimate(overlap), estimate(kl), blocks, **others)


@pytest.fixture
def mixture() -> Table:
    return table(
        row("none", audit(1.0, 0.0, active_bytes=2e6), baseline=True),
        row("rtn", audit(0.9, 0.01, active_bytes=1e6)),
        row("gptq", audit(0.95, 0.002, LOAD)),
    )


def drawn(plot: Plot) -> dict[str, Any]:
    (trace,) = json.loads(plot.json)["data"]
    return trace


def test_the_heat_map_of_tokens_marks_the_dead_and_shows_how_far_from_even_each_load_is(mixture: Table) -> None:
    plot = {each.name: each for each in expert_plots(mixture)}[LOADS]
    trace, dead = json.loads(plot.json)["data"]
    assert trace["text"] == dead["text"] == [["400", "400", "100", "700"], ["1500", "✕", "60", "40"]]
    assert trace["z"][0] == pytest.approx([0, 0, -2, math.log2(7 / 4)])
    assert trace["z"][1] == [pytest.approx(math.log2(3.75)), None, *(math.log2(few / 400) for few in (60, 40))]
    assert dead["z"] == [[None] * 4, [None, 1, None, None]]
    assert "1 saw none, 3 more fewer than 256" in plot.caption
    assert plot.rows == (
        ("layers.0.mlp", "400", "100", "400", "700", "none"),
        ("layers.1.mlp", "400", "0", "60", "1,500", "1"),
    )


def test_the_heat_map_says_whose_calibration_set_it_shows_if_variants_have_several() -> None:
    other = tuple(ExpertLoad(load.block, load.tokens[::-1]) for load in LOAD)
    for loads, several in ((LOAD, False), (other, True)):
        shown = table(row("gptq", audit(0.9, 0.01, LOAD)), row("awq", audit(0.9, 0.01, loads)), row("rtn", None))
        plot = {each.name: each for each in expert_plots(shown)}[LOADS]
        assert ("the calibration set of gptq" in plot.caption) is several


def test_the_routers_of_variants_are_drawn_by_layer_without_the_baseline(mixture: Table) -> None:
    plots = {each.name: each for each in expert_plots(mixture)}
    assert plots[OVERLAPS].rows == (("rtn", "90.0%", "80.0%"), ("gptq", "95.0%", "85.0%"))
    assert plots[DIVERGENCES].rows == (("rtn", "0.0100", "0.100"), ("gptq", "0.00200", "0.0200"))
    assert drawn(plots[OVERLAPS])["zmax"] == 1
    assert drawn(plots[DIVERGENCES])["z"][0] == pytest.approx([-2, -1])


def test_a_variant_whose_router_kl_is_infinite_has_its_overlap_by_layer() -> None:
    record = of_a_mixture(QUALITY)
    expected = expert_audit([record])
    assert expected is not None
    kept = tuple(each for each in record.outcome.measurements if each.metric != "router_kl")
    found = expert_audit([replace(record, outcome=replace(record.outcome, measurements=kept))])
    assert found is not None
    assert found.kl is None
    assert found.blocks == tuple(replace(block, kl=None) for block in expected.blocks)
    plots = {each.name: each for each in expert_plots(table(row("rtn", found), row("gptq", audit(0.9, 0.01))))}
    assert [line[0] for line in plots[OVERLAPS].rows] == ["rtn", "gptq"]
    assert [line[0] for line in plots[DIVERGENCES].rows] == ["gptq"]


def test_columns_are_those_that_a_variant_has(mixture: Table) -> None:
    shown = {each.name: each for each in shown_columns(mixture) if each.group == "Experts"}
    assert list(shown) == [
        *("router_overlap_fraction", "router_kl_nat", "dead_experts", "starved_experts", "active_bytes_per_token"),
    ]
    assert raw(mixture, shown["dead_experts"]) == {"dead_experts": (None, None, 1.0)}
    assert raw(mixture, shown["starved_experts"]) == {"starved_experts": (None, None, 3.0)}
    assert raw(mixture, shown["active_bytes_per_token"]) == {"active_bytes_per_token": (2e6, 1e6, None)}
    assert shown["active_bytes_per_token"].unit == "MB"


def test_a_dense_model_has_no_plot_and_no_column_of_experts() -> None:
    dense = table(row("none", None, baseline=True), row("rtn", None))
    assert expert_plots(dense) == ()
    assert not any(figure.taken_at(dense) for figure in FIGURES)


def test_the_gates_count_what_the_columns_show() -> None:
    names = tuple(f"{load.block}: {number}" for load in LOAD for number in range(len(load.tokens)))
    counts = tuple(float(count) for load in LOAD for count in load.tokens)
    found = Measurement("expert_tokens", 1, "token", "neither", "exact", counts, {"starved": 256}, item_ids=names)
    assert DEAD_EXPERTS.statistic is not None
    assert STARVED_EXPERTS.statistic is not None
    assert DEAD_EXPERTS.statistic.count({"expert_tokens": [found]}) == 1  # type: ignore[union-attr]
    assert STARVED_EXPERTS.statistic.count({"expert_tokens": [found]}) == 3  # type: ignore[union-attr]
    assert DEAD_EXPERTS.statistic.count({"expert_tokens": []}) is None  # type: ignore[union-attr]


def test_what_a_row_says_of_experts_is_kept_and_read_back(mixture: Table) -> None:
    for each in mixture.rows:
        (read, notes) = summary.read(summary.written((each, ())), each.evidence, each.label)  # type: ignore[arg-type]
        assert (read, notes) == (each, ())
        assert read.experts == each.experts
