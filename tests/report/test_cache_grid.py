"""The heat maps of weight bits by the bits of the key-value cache, and the noise floor by position."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cache_records import DAMAGE_NAT, EIGHT, cache_grid

from harness.analysis.tradeoff import tradeoff
from harness.core.model import MethodRef
from harness.figures.table import Table
from harness.report.plots.cache_grid import cache_grids
from harness.report.plots.divergence import FLOOR, divergences
from harness.report.plots.plot import Plot


def table(bench: Any, none: MethodRef, damage_nat: Mapping[tuple[str, str], float] = DAMAGE_NAT) -> Table:
    (made,) = tradeoff(cache_grid(bench, none, damage_nat))
    return made


def trace(plot: Plot) -> dict[str, Any]:
    (found,) = json.loads(plot.json)["data"]
    return found


def test_the_map_has_a_row_for_each_quantization_and_a_column_for_each_cache(bench: Any, none: MethodRef) -> None:
    kl, perplexity = cache_grids(table(bench, none))
    assert (kl.name, perplexity.name) == ("cache-grid-kl", "cache-grid-perplexity-change")
    assert kl.head == ("Weights", "own cache, nat", "int8 cache, nat", "int4 cache, nat")
    assert [row[0] for row in kl.rows] == [
        "unquantized (32.0 bits)",
        "rtn bits=8 (8.50 bits)",
        "rtn bits=4 (4.50 bits)",
    ]
    shown = trace(kl)["text"]
    assert shown[0][0] == "0"  # the baseline is itself
    assert shown[2][2] == "—"  # was not measured
    drawn = [[float(each) for each in row if each != "—"] for row in shown]
    assert drawn[0][1] < drawn[0][2]
    assert drawn[1][0] < drawn[1][1] < drawn[1][2]
    assert drawn[1][2] < drawn[2][0]
    colours = [[each for each in row if each is not None] for row in trace(kl)["z"]]
    assert [sorted(row) for row in colours] == colours  # redder with each bit less of the cache
    assert trace(perplexity)["text"][0][0] == "0"


def test_there_is_no_map_without_two_of_each(bench: Any, none: MethodRef) -> None:
    alone = {each: nat for each, nat in DAMAGE_NAT.items() if each[1] == "model"}
    assert cache_grids(table(bench, none, alone)) == ()
    one = {each: nat for each, nat in DAMAGE_NAT.items() if each[0] == "none"}
    assert cache_grids(table(bench, none, one)) == ()
    diagonal = {each: DAMAGE_NAT[each] for each in (("rtn bits=8", "int8"), ("rtn bits=4", "model"))}
    assert cache_grids(table(bench, none, diagonal)) == ()


def test_the_noise_floor_stands_beside_the_variants_at_every_position(bench: Any, none: MethodRef) -> None:
    reference = bench.reference()
    records = [bench.quality(none), bench.quality(EIGHT, 8.5, 0.01), reference]
    (plain,) = tradeoff(records)
    assert plain.kl_floor_by_position == ()  # of stretches: nothing is known further on
    floors = tuple(
        replace(each, protocol={**each.protocol, "whole": True}) if each.protocol["changed"] == "dtype" else each
        for each in reference.outcome.measurements
    )
    records[-1] = replace(reference, outcome=replace(reference.outcome, measurements=floors))
    (made,) = tradeoff(records)
    places = [(each.low, each.high) for each in made.kl_floor_by_position]
    assert places == [(each.low, each.high) for each in made.rows[1].kl_by_position]
    by_position = divergences(made)[0]
    assert by_position.rows[-1][0] == FLOOR
    floor = json.loads(by_position.json)["data"][-1]
    assert floor["name"] == FLOOR
    assert floor["line"]["dash"] == "dot"
    assert max(floor["y"]) < 1e-5  # drawn as low as it is
    assert FLOOR not in [row[0] for row in divergences(plain)[0].rows]
