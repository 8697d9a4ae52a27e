"""What is kept of a whole table is used for it, and for no other: whatever a ranking depends on is in its key.

So it is with the figures of a table that are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_type_hints

import pytest
from served_records import RTN, baseline, served_record

from harness.analysis import keyed, recommend
from harness.analysis.keyed import alike_figures
from harness.analysis.query import Limit, Query
from harness.analysis.recommend import pick
from harness.analysis.summaries import Summaries
from harness.analysis.tradeoff import tradeoff
from harness.core.label import Label
from harness.core.record import Measurement, Outcome, RunRecord
from harness.core.run import HourlyPrice
from harness.figures.evidence import Evidence
from harness.figures.table import GridPoint, Table, VariantRow
from harness.plugins import limit_options, objectives

Bench = Any  # the class in conftest.py, which cannot be imported
Maker = Callable[[], Summaries]
LIMITS = limit_options()
KL = Limit(LIMITS["max_kl"], 0.3)
OBJECTIVES = {**objectives("lower"), **objectives("higher")}
TASK = {
    "task": "arc_easy",
    "fewshot": 0,
    "filter": "none",
    "prompts_sha256": "p",
    "score": "acc",
    "aggregation": "mean",
}
QUERY = Query((KL,), OBJECTIVES["bytes"], "prompt 128", 160, 1)
CHANGES: dict[str, tuple[Query, ...]] = {
    "limits": (
        replace(QUERY, limits=()),
        replace(QUERY, limits=(replace(KL, bound=0.30000000000000004),)),
        replace(QUERY, limits=(Limit(LIMITS["max_memory"], 0.3),)),
        replace(QUERY, limits=(KL, Limit(LIMITS["max_memory"], 1e9))),
    ),
    "objective": (replace(QUERY, objective=OBJECTIVES["decode"]),),
    "at": (replace(QUERY, at="prompt 512"),),
    "context": (replace(QUERY, context=161),),
    "batch": (replace(QUERY, batch=2),),
    "allow_labelled": (replace(QUERY, allow_labelled=True),),
    "level": (replace(QUERY, level=8.0),),
}
"""Other queries, by the field that differs."""
OF_TABLE: dict[str, Any] = {
    "price": HourlyPrice(0.37, "EUR"),
    "labels": (Label("leaked", {"shared": 0.03, "run_tokens": 16}),),
}
"""What a ranking reads of a table that its rows do not determine, each with another value."""
OF_ROWS = {"rows", "grid", "loads", "tasks"}
"""What it reads of a table that its rows determine."""


@pytest.fixture
def records(bench: Bench, made_up: Any) -> Sequence[RunRecord]:
    found: Sequence[RunRecord] = bench.sweep(made_up.looks[:3])
    return found


@pytest.fixture
def sealed(records: Sequence[RunRecord]) -> Maker:
    return lambda: Summaries({id(record): f"seal {number}" for number, record in enumerate(records)}, {})


@pytest.fixture
def table(records: Sequence[RunRecord], sealed: Maker) -> Table:
    return tradeoff(records, sealed())[0]


@pytest.fixture
def tables(bench: Bench, records: Sequence[RunRecord], table: Table) -> Sequence[Table]:
    """Of a recipe with quality and speed, of one with a task as well, and of servers under load."""
    methods = {each.spec.method.label: each.spec.method for each in records if each.spec.kind == "quality"}
    score = Measurement("task_score", 1, "score", "higher", "paired", (1.0, 0.0), TASK, (), ("a", "b"))
    asked = [bench.record(bench.spec("task", each), Outcome("ok", measurements=(score,))) for each in methods.values()]
    served = [
        made(number, lambda level, request, process: (0.01 * level, 0.002 * level + 0.001 * request))
        for number in range(3)
        for made in (baseline, partial(served_record, RTN))
    ]
    found = [table, *tradeoff([*records, *asked]), *tradeoff(served)]
    assert [bool(each.tasks) for each in found] == [False, True, False]
    assert [bool(each.loads) for each in found] == [False, False, True]
    return found


class Watched(Table):
    """A table that notes which of its attributes are read."""

    read: set[str]

    @classmethod
    def of(cls, table: Table) -> Watched:
        made = object.__new__(cls)
        vars(made).update(vars(replace(table)), read=set())
        return made

    def __getattribute__(self, name: str) -> Any:
        if name != "__dict__":
            vars(self)["read"].add(name)
        return object.__getattribute__(self, name)


def key(summaries: Summaries, table: Table, query: Query) -> str:
    pick(table, query, (), summaries)
    (found,) = summaries.used
    return found


def test_the_same_question_is_not_ranked_again(
    table: Table, records: Sequence[RunRecord], sealed: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sealed()
    answer = pick(table, QUERY, (), first)
    seals = {id(record): f"seal {number}" for number, record in enumerate(records)}
    monkeypatch.setattr(recommend, "_ranking", None)
    again = Summaries(seals, first.used)
    assert pick(table, QUERY, (), again) == answer
    assert again.used == first.used
    for name, others in CHANGES.items():
        for other in others:
            with pytest.raises(TypeError):  # it is ranked anew
                pick(table, other, (), Summaries(seals, first.used))
            assert other != QUERY, name


def test_every_field_of_a_query_is_in_the_key(table: Table, sealed: Maker) -> None:
    assert set(CHANGES) == {each.name for each in fields(Query)}
    queries = [QUERY, *(other for others in CHANGES.values() for other in others)]
    assert len({key(sealed(), table, each) for each in queries}) == len(queries)


def test_what_is_read_of_a_table_is_in_the_key_or_follows_from_its_rows(
    table: Table, tables: Sequence[Table], sealed: Maker
) -> None:
    """Every figure that a limit or an objective can name is read of every row; so is every tie-breaker."""
    read: set[str] = set()
    for each in tables:
        watched = Watched.of(each)
        for objective in OBJECTIVES.values():
            query = Query(tuple(Limit(figure, 1.0) for figure in LIMITS.values()), objective, allow_labelled=True)
            pick(watched, query)
            pick(watched, replace(query, limits=(), allow_labelled=False))
        read |= watched.read
    assert set(OF_TABLE) <= {each.name for each in fields(Table)} & read <= OF_ROWS | set(OF_TABLE) | {"_remembered"}
    altered = [table, *(replace(table, **{name: value}) for name, value in OF_TABLE.items())]
    assert len({key(sealed(), each, QUERY) for each in altered}) == len(altered)


def test_labels_are_in_the_key_as_they_order_what_nothing_else_distinguishes(table: Table, sealed: Maker) -> None:
    """They depend on the other variants of a report, also on those that are no candidates."""
    renamed = replace(table, rows=tuple(row.altered(label=f"other {row.label}") for row in table.rows))
    assert key(sealed(), table, QUERY) != key(sealed(), renamed, QUERY)


def test_comparable_figures_are_not_looked_for_again(
    table: Table, records: Sequence[RunRecord], sealed: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sealed()
    found = alike_figures(table, 3, first)
    assert {each.figure for each in found} >= {"perplexity", "decode"}
    assert {number for each in found for number in each.rows} == {0, 1, 2}
    monkeypatch.setattr(keyed, "alike_on", None)
    again = Summaries({id(record): f"seal {number}" for number, record in enumerate(records)}, first.used)
    assert alike_figures(table, 3, again) == found
    others = [(table, 2), *((replace(table, rows=rows), 3) for rows in (table.rows[::-1], table.rows[1:]))]
    for other, most in others:
        with pytest.raises(TypeError):  # they are derived anew
            alike_figures(other, most, Summaries(again._seals, first.used))


def test_which_figures_are_comparable_follows_from_the_rows_of_a_table(tables: Sequence[Table]) -> None:
    for each in tables:
        watched = Watched.of(each)
        assert alike_figures(watched, 200)
        assert {each.name for each in fields(Table)} & watched.read <= OF_ROWS | {"_remembered"}


def test_every_record_of_a_row_is_in_the_key(table: Table, records: Sequence[RunRecord], sealed: Maker) -> None:
    row = table.rows[1]
    assert row.evidence is not None
    hints = get_type_hints(Evidence)
    summaries, other = sealed(), records[1]
    floor = Measurement("kl_noise_floor", 1, "nat", "lower", "paired", (0.5,), {}, (), ("0:0",))
    keys = [key(sealed(), table, QUERY)]
    for each in fields(Evidence):
        known = getattr(row.evidence, each.name)
        values: dict[Any, Any] = {
            bool: not known,
            RunRecord | None: other,
            tuple[RunRecord, ...]: (*(known or ()), other) if isinstance(known, tuple) else (),
            Measurement | None: floor,
        }
        changed = _altered(row, replace(row.evidence, **{each.name: values[hints[each.name]]}))
        keys.append(key(sealed(), replace(table, rows=(table.rows[0], changed, *table.rows[2:])), QUERY))
    keys.append(key(sealed(), replace(table, rows=table.rows[::-1]), QUERY))
    assert len(set(keys)) == len(keys) == len(fields(Evidence)) + 2
    assert summaries.rows_key("", [_altered(row, replace(row.evidence, machine=replace(other)))]) is None


def _altered(row: VariantRow, evidence: Evidence) -> VariantRow:
    return row.altered(evidence=evidence)


def test_nothing_is_kept_beside_figures_of_plugins(
    table: Table, sealed: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether their code is still the same is not known."""
    monkeypatch.setattr("harness.analysis.summaries.plugin_figures", lambda: ["a figure"])
    summaries = sealed()
    pick(table, QUERY, (), summaries)
    alike_figures(table, 200, summaries)
    assert not summaries.used


def test_the_place_of_the_grid_is_in_the_key(table: Table, sealed: Maker) -> None:
    """Two points of which the recipe asks the same batch and tokens."""
    first, second = GridPoint(1, 100, 60), GridPoint(1, 128, 32)
    grids = [replace(table, grid=(first, second)), replace(table, grid=(second, first))]
    query = replace(QUERY, at=None, context=None, batch=None)
    assert len({key(sealed(), each, query) for each in grids}) == 2
