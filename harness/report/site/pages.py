"""The index of a site and its pages of models, as self-contained HTML that makes no requests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from types import MappingProxyType

from markupsafe import Markup

from harness.report import escape
from harness.report.site.entries import SiteAgreement, SiteAnswer, SiteFigure, SiteRow, SweepEntry
from harness.report.site.trend import Trend, trend
from harness.report.templating import source, template

MOST_POINTS = 60
"""The newest points of a series that are drawn and listed."""
MOST_OPEN = 6
"""The figures of more variants than these are collapsed, each variant's by itself."""
MOST_COMPARED = 400
"""The newest rows of a model that can be chosen to be compared."""
COMPARED = ("name", "heading", "unit", "text", "interval", "direction", "value", "low", "high", "exact", "key")
"""The fields of a figure in the order in which the site's script takes them."""
NO_AGREEMENTS: Mapping[str, SiteAgreement] = MappingProxyType({})
DAY = 10
"""The letters of a time that are its day."""


@dataclass(frozen=True)
class SiteModel:
    """A model of the site, by its content, with the sweeps that measured it: the newest first."""

    id: str
    label: str
    sweeps: tuple[SweepEntry, ...]

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(machine for sweep in self.sweeps for machine in sweep.machines))

    @property
    def words(self) -> str:
        """What a search looks through, beside what the index shows of it."""
        return " ".join(dict.fromkeys(f"{sweep.name} {sweep.words}" for sweep in self.sweeps))

    @property
    def answered(self) -> SweepEntry | None:
        """The newest sweep that has an answer about it."""
        return next((sweep for sweep in self.sweeps if self.answers(sweep)), None)

    def answers(self, sweep: SweepEntry) -> tuple[SiteAnswer, ...]:
        return tuple(each for each in sweep.answers if each.model == self.id)

    @property
    def sweeps_by_machine(self) -> tuple[SweepEntry, ...]:
        """The newest of each machine, then the second newest of each, and so on."""
        seen: Counter[tuple[str, ...]] = Counter()
        ranked: list[tuple[int, SweepEntry]] = []
        for sweep in self.sweeps:
            ranked.append((seen[sweep.machines], sweep))
            seen[sweep.machines] += 1
        return tuple(sweep for _, sweep in sorted(ranked, key=lambda pair: pair[0]))


@dataclass(frozen=True)
class SiteSource:
    """A figure as one sweep measured it, with that sweep's name."""

    sweep: str
    row: SiteRow
    figure: SiteFigure

    @property
    def day(self) -> str:
        return self.row.measured[:DAY]


@dataclass(frozen=True)
class SiteSeries:
    """One figure of one variant in every sweep that measured it alike.

    ``sources`` are the newest of all ``points``, the newest first; ``count`` is the number of sweeps that have them.
    ``agreement`` is None where fewer than two sources were tested.
    """

    figure: SiteFigure
    first: SiteRow
    newest: SiteRow
    sweep: str
    count: int
    points: int
    sources: tuple[SiteSource, ...]
    agreement: SiteAgreement | None
    trend: Trend

    @property
    def machine(self) -> str:
        return self.newest.machine

    @property
    def is_copied(self) -> bool:
        """Whether all sources are copies of one measurement."""
        return len({(each.row.machine, each.row.measured, each.figure.value) for each in self.sources}) == 1

    @property
    def days(self) -> str:
        return " to ".join(dict.fromkeys((self.first.measured[:DAY], self.newest.measured[:DAY])))


@dataclass(frozen=True)
class SiteVariant:
    """A variant of a model, with all that was measured of it."""

    label: str
    engine: str
    is_baseline: bool
    series: tuple[SiteSeries, ...]


def models_of(entries: Sequence[SweepEntry]) -> tuple[SiteModel, ...]:
    """Every model, by its label; two of one label but other content are two."""
    found: dict[str, list[SweepEntry]] = {}
    for entry in sorted(entries, key=lambda each: each.newest, reverse=True):
        for model in entry.models:
            found.setdefault(model, []).append(entry)
    made = (SiteModel(model, sweeps[0].models[model], tuple(sweeps)) for model, sweeps in found.items())
    return tuple(sorted(made, key=lambda each: (each.label.casefold(), each.id)))


def index_page(title: str, entries: Sequence[SweepEntry]) -> str:
    """All sweeps, the newest first, and all models."""
    ordered = sorted(entries, key=lambda each: (each.newest, each.name), reverse=True)
    return _render("site_index.html.j2", title=title, sweeps=ordered, models=models_of(entries))


def model_page(
    title: str, model: SiteModel, agreements: Mapping[str, SiteAgreement] = NO_AGREEMENTS, keys: bool = True
) -> str:
    """What was measured of a model over time, and two rows of it side by side.

    ``agreements``, by series, say whether its sources agree.
    Without ``keys`` it shows no comparability keys: where names are redacted, they are not those of other pages.
    """
    pairs = [(sweep.name, row) for sweep in model.sweeps for row in sweep.rows if row.model == model.id]
    pairs.sort(key=lambda pair: pair[1].measured)
    return _render(
        "site_model.html.j2",
        title=title,
        model=model,
        variants=_variants(pairs, agreements),
        rows=len(pairs),
        most_compared=MOST_COMPARED,
        most_open=MOST_OPEN,
        keys=keys,
        data=_script(_compared(model, pairs[-MOST_COMPARED:]) | {"keys": keys}),
    )


def _variants(pairs: Iterable[tuple[str, SiteRow]], agreements: Mapping[str, SiteAgreement]) -> list[SiteVariant]:
    found: dict[tuple[bool, str, str], dict[tuple[str, str], list[SiteSource]]] = {}
    for sweep, row in pairs:
        of_variant = found.setdefault((not row.is_baseline, row.label, row.engine), {})
        for figure in row.figures:
            of_variant.setdefault((figure.name, figure.series), []).append(SiteSource(sweep, row, figure))
    return [
        SiteVariant(
            label, engine, not other, tuple(_series(points, agreements.get(key)) for (_, key), points in series.items())
        )
        for (other, label, engine), series in sorted(found.items())
    ]


def _series(points: Sequence[SiteSource], agreement: SiteAgreement | None) -> SiteSeries:
    last, shown = points[-1], points[-MOST_POINTS:]
    drawn = trend(
        [(each.figure.value, each.figure.low, each.figure.high) for each in shown],
        [each.figure.text for each in shown],
    )
    count = len({each.sweep for each in points})
    sources = tuple(reversed(shown))
    return SiteSeries(last.figure, points[0].row, last.row, last.sweep, count, len(points), sources, agreement, drawn)


def _compared(model: SiteModel, pairs: Sequence[tuple[str, SiteRow]]) -> dict[str, object]:
    """What the script compares: the newest row first, and which two at first: a baseline, and the newest answer."""
    pairs = pairs[::-1]
    keys = {figure.key for _, row in pairs for figure in row.figures}
    conditions = {key: dict(found) for sweep in model.sweeps for key, found in sweep.conditions.items() if key in keys}
    return {
        "conditions": conditions,
        "first": _first_compared(model, pairs),
        "rows": [
            {"name": name, "figures": [[getattr(figure, field) for field in COMPARED] for figure in row.figures]}
            for name, (_, row) in zip(_names(pairs), pairs, strict=True)
        ],
    }


def _names(pairs: Sequence[tuple[str, SiteRow]]) -> Iterator[str]:
    """Each row's variant, and the parts in which rows differ: what all share would only push the rest out of sight."""
    parts = [(row.label, row.engine, row.machine, row.measured[:DAY], sweep) for sweep, row in pairs]
    differ = [place == 0 or len(set(values)) > 1 for place, values in enumerate(zip(*parts, strict=True))]
    return (" · ".join(compress(each, differ)) for each in parts)


def _first_compared(model: SiteModel, pairs: Sequence[tuple[str, SiteRow]]) -> tuple[int, int]:
    sweep = model.answered or model.sweeps[0]
    picks = {each.answer.variant for each in model.answers(sweep)}
    own = [(place, row) for place, (name, row) in enumerate(pairs) if name == sweep.name]
    baseline = next((place for place, row in own if row.is_baseline), 0)
    picked = [place for place, row in own if row.label in picks]
    others = [place for place in (*picked, *range(len(pairs))) if place != baseline]
    return baseline, others[0] if others else baseline


def _script(content: object) -> Markup:
    """Data for the script, which shows text as text."""
    return Markup(escape.script_json(escape.json_text(json.dumps(content, ensure_ascii=False))))


def _render(name: str, **values: object) -> str:
    return template(name).render(**values, css=source("page.css") + source("site.css"), script=source("site.js"))
