"""What the site's index and its pages of models say of one sweep, small enough to be kept for the next build."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.analysis.keyed import KeyedFigure
from harness.figures.statistic import Count
from harness.figures.table import Table, VariantRow
from harness.report.answer import Answer
from harness.report.column import Column, cell, columns_of
from harness.report.page import Page


@dataclass(frozen=True)
class SiteFigure:
    """A figure as readers see it, with the ends of its interval, and a key: figures of one key are comparable.

    Figures of one ``series`` are the same figure of the same variant, measured again. An ``exact`` one is counted, so
    that it has no interval by nature.
    """

    name: str
    heading: str
    unit: str
    text: str
    interval: str
    direction: str
    value: float
    low: float | None
    high: float | None
    key: str
    series: str
    exact: bool


@dataclass(frozen=True)
class SiteRow:
    """A variant as one sweep measured it; ``measured`` is when its newest run began."""

    model: str
    model_label: str
    label: str
    engine: str
    machine: str
    measured: str
    is_baseline: bool
    figures: tuple[SiteFigure, ...]


@dataclass(frozen=True)
class SiteAgreement:
    """Whether ``sources`` that measured a series alike agree: in a word, and the numbers of the test or why none."""

    word: str
    sources: int
    numbers: str


@dataclass(frozen=True)
class SiteAnswer:
    """What a sweep answers about a model. ``heading`` tells it from the sweep's other answers, if there are any."""

    model: str
    heading: str
    answer: Answer

    @property
    def finding(self) -> str:
        return f"{self.heading}: {self.answer.finding}" if self.heading else self.answer.finding


@dataclass(frozen=True)
class SweepRuns:
    """The attempts of a sweep by a digest of what identifies them: those that count where it is, and those withdrawn.

    ``dropped`` are those of ``held`` that were withdrawn in another place: the page does not count them.
    """

    recipe: str = ""
    held: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepEntry:
    """One sweep. ``conditions`` are the conditions of each key among its figures, as pairs of names and texts."""

    name: str
    title: str
    machines: tuple[str, ...]
    measured: str
    newest: str
    variants: int
    faults: int
    damaged: int
    answers: tuple[SiteAnswer, ...]
    rows: tuple[SiteRow, ...]
    conditions: Mapping[str, tuple[tuple[str, str], ...]]
    bundle: str | None = None
    runs: SweepRuns = SweepRuns()

    @property
    def words(self) -> str:
        """What a search looks through, beside what the index shows."""
        found = dict.fromkeys(word for row in self.rows for word in (row.model_label, row.label, row.engine))
        return " ".join(found)

    @property
    def models(self) -> dict[str, str]:
        """The label of each model, by the id of its content."""
        return {row.model: row.model_label for row in self.rows}


def sweep_entry(name: str, whole: Page, keyed: Mapping[int, Sequence[KeyedFigure]], bundle: str | None) -> SweepEntry:
    """The entry of a sweep whose page is ``name``."""
    rows = tuple(row for table in whole.tables for row in _rows(table, keyed))
    used = {each.conditions.key: each.conditions for found in keyed.values() for each in found}
    heads = whole.headings if len(whole.tables) > 1 else ("",) * len(whole.tables)
    answers = (
        SiteAnswer(_model(table), head, replace(answer, noted=()))
        for table, head, answer in zip(whole.tables, heads, whole.answers, strict=True)
        if answer
    )
    return SweepEntry(
        name=name,
        title=whole.title,
        machines=tuple(dict.fromkeys(table.hardware for table in whole.tables)),
        measured=whole.measured,
        newest=max((row.measured for row in rows), default=""),
        variants=whole.variants,
        faults=len(whole.faults),
        damaged=len(whole.damaged),
        answers=tuple(answers),
        rows=rows,
        conditions={key: tuple(sorted(each.conditions.items())) for key, each in used.items()},
        bundle=bundle,
    )


def _model(table: Table) -> str:
    """The id of the model that a table is of, by its content; empty if no run gave a figure."""
    return next((run.spec.model.content_id for row in table.rows for run in row.runs_with_figures), "")


def _rows(table: Table, keyed: Mapping[int, Sequence[KeyedFigure]]) -> Iterator[SiteRow]:
    for row in table.rows:
        runs = row.runs_with_figures
        figures = tuple(_figures(table, row, keyed.get(id(row), ())))
        if runs and figures:
            yield SiteRow(
                model=runs[0].spec.model.content_id,
                model_label=table.model,
                label=row.label,
                engine=row.engine,
                machine=table.hardware,
                measured=max(run.started_at for run in runs),
                is_baseline=row.is_baseline,
                figures=figures,
            )


def _figures(table: Table, row: VariantRow, found: Sequence[KeyedFigure]) -> Iterator[SiteFigure]:
    for each in found:
        column = next((one for one in columns_of(table, each.figure) if one.place == each.place), None)
        if column is not None and math.isfinite(each.value.value):
            shown = cell(column, row)
            low, high = each.value.low, each.value.high
            yield SiteFigure(
                name=column.name,
                heading=_heading(column),
                unit=column.unit,
                text=shown.text,
                interval=shown.interval,
                direction=each.figure.direction,
                value=each.value.value,
                low=low if low is not None and math.isfinite(low) else None,
                high=high if high is not None and math.isfinite(high) else None,
                key=each.conditions.key,
                series=each.whole.key,
                exact=isinstance(each.figure.statistic, Count),
            )


def _heading(column: Column) -> str:
    """Understandable without the table: with its group, and the point of the grid if it has one."""
    place = f", {column.place.label}" if column.place.label and column.place.label not in column.heading else ""
    return f"{column.group}: {column.heading}{place}"
