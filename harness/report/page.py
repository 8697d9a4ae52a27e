"""Everything in a report besides its tables: machine, versions, failures, commands to reproduce it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from harness.analysis.selection import current
from harness.analysis.summaries import Summaries
from harness.analysis.tradeoff import tradeoff
from harness.core.column import LazyColumn
from harness.core.label import Label, codes
from harness.core.model import MAIN_ENGINE
from harness.core.record import Damaged, RunRecord
from harness.figures.formats import significant
from harness.figures.notes import with_interval
from harness.figures.row import reason
from harness.figures.table import Table
from harness.report.answer import Answer, default_answer
from harness.report.asked import asked
from harness.report.escape import tail


@dataclass(frozen=True)
class Fault:
    """A run that gave no figures."""

    title: str
    status: str
    reason: str
    log_tail: str


MANY_ROWS = 200
"""With fewer, rendering parts of a report side by side saves less than a tenth of a second."""
TELLING = ("protocol", "text", "context")
"""The conditions that distinguish the tables of one model."""


@dataclass(frozen=True)
class Page:
    """A report before rendering; ``answers`` has the answer of each table, or None, and is derived when it is used.

    ``damaged`` are attempts that are not as they were written; figures of those left out are missing.
    ``redacted`` says what was left out of the records; None if nothing was. ``summaries`` are what was derived before
    from the evidence of the tables' rows.
    """

    title: str
    tables: tuple[Table, ...]
    answers: Sequence[Answer | None]
    faults: tuple[Fault, ...]
    hardware: tuple[tuple[str, str], ...]
    software: tuple[tuple[str, str], ...]
    asked: tuple[tuple[str, str], ...]
    commands: tuple[str, ...]
    sessions: tuple[str, ...]
    measured: str
    damaged: tuple[Damaged, ...] = ()
    redacted: str | None = None
    summaries: Summaries | None = field(default=None, repr=False, compare=False)

    @property
    def variants(self) -> int:
        """The number of variants without the baselines, each counted once even if several protocols score it."""
        return len({(table.model, row.label) for table in self.tables for row in table.rows if not row.is_baseline})

    @property
    def is_long(self) -> bool:
        """Whether its parts are rendered side by side."""
        return sum(len(table.rows) for table in self.tables) >= MANY_ROWS

    @property
    def headings(self) -> tuple[str, ...]:
        """The heading of each table: its model, and what distinguishes it from other tables of that model."""
        return tuple(
            _heading(table, [each for each in self.tables if each.model == table.model]) for table in self.tables
        )


def _heading(table: Table, alike: Sequence[Table]) -> str:
    if len(alike) == 1:
        return table.model
    asked = [dict(each.conditions) for each in alike]
    differing = [key for key in TELLING if len({conditions.get(key) for conditions in asked}) > 1]
    own = dict(table.conditions)
    return " · ".join([table.model, *([f"{key} {own.get(key)}" for key in differing] or [table.hardware])])


def page(
    records: Sequence[RunRecord],
    damaged: Sequence[Damaged] = (),
    redact: bool = False,
    summaries: Summaries | None = None,
) -> Page:
    """The report of records; with ``redact`` without what ``LEFT_OUT`` lists, and saying so.

    ``summaries`` are of the whole records, so with ``redact`` they are not used.
    """
    left_out = None
    if redact:
        from harness.report.redact import LEFT_OUT, Redaction

        summaries, left_out = None, LEFT_OUT
        redaction = Redaction()
        records, damaged = redaction.records(records), tuple(map(redaction.damaged, damaged))
    tables = tradeoff(records, summaries)
    counted = current(records)
    models = tuple(dict.fromkeys(table.model for table in tables))
    models = models or tuple(dict.fromkeys(model.label for record in counted for model in record.spec.job.models[:1]))
    recipes = tuple(dict.fromkeys(record.spec.recipe for record in counted))

    @cache
    def answers() -> tuple[Answer | None, ...]:
        return tuple(default_answer(table, damaged, summaries) for table in tables)

    return Page(
        title=", ".join(models) or "no runs",
        tables=tables,
        answers=LazyColumn[Answer | None](len(tables), answers),
        faults=tuple(_fault(record) for record in counted if record.status != "ok"),
        hardware=_environment(counted, "hardware"),
        software=_environment(counted, "software"),
        asked=asked(counted),
        commands=tuple(command for recipe in recipes for command in _commands(recipe)),
        sessions=tuple(dict.fromkeys(record.session for record in counted)),
        measured=_period(counted),
        damaged=tuple(damaged),
        redacted=left_out,
        summaries=summaries,
    )


def _commands(recipe: str) -> tuple[str, str]:
    """A built-in recipe is run by its name; the file of any other is taken to have its name."""
    from harness.recipe.built_in import built_in_recipes

    named = recipe if recipe in built_in_recipes() else f"{recipe}.yaml"
    return f"qharness run {shlex.quote(named)}", f"qharness report {shlex.quote(f'results/{recipe}')}"


def table_labels(table: Table) -> tuple[Label, ...]:
    """The warnings in every table's caption, including that of a natively quantized reference."""
    if table.native_quantization is None or "natively_quantized" in codes(table.labels):
        return table.labels
    native = Label("natively_quantized", {"quantization": table.native_quantization, "degridded": False})
    return (native, *table.labels)


def native_warning(table: Table) -> str | None:
    """Explains a natively quantized reference to the reader of a table."""
    if table.native_quantization is None:
        return None
    return (
        f"The reference was natively quantized ({table.native_quantization}): its published weights are already "
        "on a coarse grid. Damage is relative to those weights, not to full precision, and a method with a "
        "similar grid can look better than it is."
    )


def noise_floor(table: Table) -> str | None:
    """The baseline's divergence from itself, in words."""
    floors = (("at another batch size", table.kl_noise_floor), ("in another dtype", table.kl_noise_floor_dtype))
    found = [f"{where} {significant(floor.value)}" for where, floor in floors if floor is not None]
    found += [f"on {each.engine} {with_interval(each.kl)}" for each in table.engine_floors]
    return f"KL noise floor, the baseline against itself: {', '.join(found)} nat per token." if found else None


def compared_with(table: Table) -> str | None:
    """What the figures of variants on another engine than that of the reference are relative to, in words.

    None if there are no such variants, or none of them is a control.
    """
    if table.baseline is None or not any(row.is_control for row in table.rows):
        return None
    first = table.baseline.engine
    relative = (
        f"KL, agreement, changes and ratios are relative to the baseline on {first}, so they include what another "
        "engine changes by itself"
        if first == MAIN_ENGINE
        else f"KL and agreement are relative to the unquantized model on {MAIN_ENGINE}, changes and ratios to the "
        f"baseline on {first}; where a variant's engine is another, they include what it changes by itself"
    )
    return (
        f"{relative}; 'over control' and 'vs control': relative to the unquantized model on the variant's own engine."
    )


def terms(table: Table) -> str | None:
    """The price, the budget and the machine's rates that the table's costs, fits and bounds use, in words."""
    price, budget = table.price, table.budget_bytes
    parts = [f"Cost of tokens at {price.per_hour:g} {price.currency} per hour."] if price else []
    if budget is not None:
        parts.append(f"Memory budget: {significant(budget / 10**9)} GB, {significant(budget / 2**30)} GiB.")
    rates = _rates(table)
    return " ".join([*parts, *([rates] if rates else [])]) or None


def _rates(table: Table) -> str | None:
    """The machine's best rates, in words: the figures behind the bounds."""
    if table.rates is None:
        return None
    largest, slowest = table.rates.bandwidth[-1]
    smallest, _ = table.rates.bandwidth[0]
    fastest = max(bandwidth for _, bandwidth in table.rates.bandwidth)
    products = ", ".join(f"{significant(rate / 10**9)} in {dtype}" for dtype, rate in table.rates.matmul)
    return (
        f"Bounds from the machine's own speed: {significant(slowest / 10**9)} GB/s over {_binary(largest)}, at most "
        f"{significant(fastest / 10**9)} from {_binary(smallest)} on; 10⁹ operations per second: {products}."
    )


def _binary(size: int) -> str:
    return f"{size / 2**30:g} GiB" if size >= 2**30 else f"{size / 2**20:g} MiB"


def _fault(record: RunRecord) -> Fault:
    failure = record.outcome.failure
    title = " · ".join([*(model.label for model in record.spec.job.models[:1]), record.spec.title])
    return Fault(title, record.status, reason(record), tail(failure.log_tail) if failure else "")


def _environment(records: Iterable[RunRecord], side: str) -> tuple[tuple[str, str], ...]:
    """Each property with every value that occurs; more than one is a warning sign."""
    values: dict[str, dict[str, None]] = {}
    found = {
        id(before): before for record in records if (before := record.outcome.before) is not None
    }  # shared by many
    for before in found.values():
        for name, value in (before.hardware if side == "hardware" else before.software).items():
            values.setdefault(name, {})[_shown(name, value)] = None
    return tuple((name.removesuffix("_bytes").replace("_", " "), " / ".join(each)) for name, each in values.items())


def _shown(name: str, value: object) -> str:
    if name.endswith("_bytes") and isinstance(value, int | float):
        return f"{value / 2**30:.2f} GiB"
    return str(value)


def _period(records: Sequence[RunRecord]) -> str:
    days = sorted({record.started_at[:10] for record in records})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""
