"""The columns on what running a variant takes of memory: peaks, the key-value cache, and what fits a budget."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.derived.footprint import Footprint
from harness.figures.derived.peaks import peak_of_use
from harness.figures.formats import BINARY, SizeUnit, size_unit
from harness.figures.table import GridPoint, Peak, Table, VariantRow
from harness.report.column import Column, Value
from harness.report.columns_run import point_name

GENERATING = ("prefill", "decode")
_Peaks = Callable[[VariantRow], tuple[Peak, ...]]


def memory_columns(table: Table) -> tuple[Column, ...]:
    return (*_peak_columns(table), *_footprint_columns(table))


def _peak_columns(table: Table) -> tuple[Column, ...]:
    """Loading, prefill and decode are shown; where nothing was generated, all that came after loading."""
    unit = size_unit((peak.bytes for row in table.rows for peak in row.peaks), BINARY)
    peaks = [peak for row in table.rows for peak in row.peaks]
    run = "performance" if any(peak.run == "performance" for peak in peaks) else "quality"
    device = any((peak.run, peak.source) == (run, "cuda allocated") for peak in peaks)
    source = "cuda allocated" if device else next((peak.source for peak in peaks if peak.run == run), "")
    what = "GPU memory allocated" if device else "resident memory"
    said = f"Peak of {what} in the {run} run. 1 {unit.name} is {unit.bytes:,} bytes."
    generated = any(peak.phase in GENERATING and _in_grid(peak, table) for peak in peaks)
    chosen: list[tuple[str, str, bool, Callable[[Peak], bool]]] = [
        ("loading", f"{said} While loading.", True, lambda peak: "load" in peak.phase),
        ("running", f"{said} After loading.", not generated, lambda peak: "load" not in peak.phase),
    ]
    for phase in GENERATING if generated else ():
        at = f"{said} Of one {phase} at {table.grid[0].label}." if table.grid else said
        chosen.append((phase, at, True, _at(phase, table.grid[0] if table.grid else None)))
    return (
        *(
            _column(f"peak_{name}_{run}_bytes", name, unit, text, shown, _highest(run, source, wanted))
            for name, text, shown, wanted in chosen
        ),
        _column(
            "peak_memory_bytes",
            "of use",
            unit,
            "The highest peak of the speed runs, quantizing left out: what compare and history call peak_memory.",
            False,
            lambda row: peak_of_use(row.peaks),
        ),
        *_every_peak(table, unit),
    )


def _every_peak(table: Table, unit: SizeUnit) -> tuple[Column, ...]:
    """For machines: each phase's peak by each source, and what was in use when it ended."""
    found = []
    kinds: tuple[tuple[str, str, _Peaks], ...] = (
        ("peak", "at its highest", lambda row: row.peaks),
        ("after", "when it ended", lambda row: row.left),
    )
    for name, text, pick in kinds:
        keys = dict.fromkeys(_key(peak) for row in table.rows for peak in pick(row) if _in_grid(peak, table))
        for key in keys:
            run, phase, source, point = key
            where = f"_{point_name(point)}" if point else ""
            column = f"{name}_{run}_{phase}_{source.replace(' ', '_')}{where}_bytes"
            found.append(_column(column, f"{run}, {phase}", unit, f"{source}, {text}.", False, _one(pick, key)))
    return tuple(found)


def _footprint_columns(table: Table) -> tuple[Column, ...]:
    """The parts that generating takes, and what of it fits the recipe's budget."""
    parts = [row.footprint for row in table.rows if row.footprint]
    if not parts:
        return ()
    unit = size_unit((int(part.kv_bytes_per_token) for part in parts), BINARY)
    text = f"Real bytes of the key-value cache for each token of each sequence. 1 {unit.name} is {unit.bytes:,} bytes."
    cache = Column(
        "kv_cache_bytes_per_token",
        "KV cache",
        "per token",
        unit.name,
        text,
        lambda row: row.footprint.kv_bytes_per_token if row.footprint else None,
        factor=1 / unit.bytes,
    )
    work = tuple(column for point in table.grid for phase in GENERATING for column in _workspace(phase, point))
    return (cache, *work, *_fits(table, max(part.measured_tokens for part in parts)))


def _workspace(phase: str, point: GridPoint) -> tuple[Column, ...]:
    tokens = point.prompt_tokens + (point.new_tokens if phase == "decode" else 0)

    def value(part: Footprint) -> Value:
        return getattr(part, phase).bytes(point.batch_size, tokens)  # type: ignore[no-any-return]

    name, unit = f"workspace_{phase}_{point_name(point)}_bytes", SizeUnit("B", 1)
    text = "What the phase takes beside weights and cache, by the line through what was measured."
    return (_column(name, f"{phase} workspace", unit, text, False, lambda row: _of(row, value)),)


def _fits(table: Table, measured_tokens: int) -> tuple[Column, ...]:
    budget, point = table.budget_bytes, table.grid[0] if table.grid else None
    if budget is None or point is None:
        return ()
    tokens = point.prompt_tokens + point.new_tokens
    said = (
        f"in {budget:,} bytes ({budget / 10**9:.3g} GB, {budget / 2**30:.3g} GiB), worked out from the memory in use "
        f"before, the key-value cache and the workspace of prompts of up to {measured_tokens} tokens."
    )
    return (
        Column(
            "longest_context_tokens",
            "Fits the budget",
            "longest context",
            "tok",
            f"The longest context of one sequence that fits {said}",
            lambda row: _of(row, lambda part: part.longest_context(budget)),
            write=_whole,
        ),
        Column(
            "largest_batch_sequences",
            "Fits the budget",
            f"largest batch of {tokens} tok",
            "",
            f"The most sequences of {tokens} tokens that fit {said}",
            lambda row: _of(row, lambda part: part.largest_batch(budget, tokens)),
            write=_whole,
        ),
    )


def _whole(value: float) -> str:
    return f"{value:.0f}"


def _of(row: VariantRow, pick: Callable[[Footprint], Value]) -> Value:
    return pick(row.footprint) if row.footprint else None


def _column(
    name: str, heading: str, unit: SizeUnit, text: str, shown: bool, value: Callable[[VariantRow], Value]
) -> Column:
    return Column(name, "Peak memory", heading, unit.name, text, value, factor=1 / unit.bytes, shown=shown)


def _key(peak: Peak) -> tuple[str, str, str, GridPoint | None]:
    return peak.run, peak.phase, peak.source, peak.point


def _one(pick: _Peaks, key: tuple[str, str, str, GridPoint | None]) -> Callable[[VariantRow], Value]:
    return lambda row: next((peak.bytes for peak in pick(row) if _key(peak) == key), None)


def _in_grid(peak: Peak, table: Table) -> bool:
    """Whether it is of no point of the grid, or of one that has columns; halves of prompts have none."""
    return peak.point is None or peak.point in table.grid


def _at(phase: str, point: GridPoint | None) -> Callable[[Peak], bool]:
    return lambda peak: (peak.phase, peak.point) in ((phase, point), (phase, None))


def _highest(run: str, source: str, wanted: Callable[[Peak], bool]) -> Callable[[VariantRow], Value]:
    return lambda row: max(
        (peak.bytes for peak in row.peaks if (peak.run, peak.source) == (run, source) and wanted(peak)),
        default=None,
    )
