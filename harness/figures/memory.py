"""The memory for running a variant: peaks, the key-value cache, and what fits a budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import starmap

from harness.core.protocols import DEVICE_PEAKS, DRIVER_SINCE_LOADING
from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, counted, size
from harness.figures.derived.footprint import POOL, Footprint, cache_of_most_tokens
from harness.figures.derived.peaks import NOT_OF_USE, peak_of_use
from harness.figures.figure import WHOLE, Figure, Value, Whole
from harness.figures.formats import BINARY, WHOLE_NUMBER, NumberStyle, SizeUnit, in_unit, size_unit
from harness.figures.gate import Gate
from harness.figures.size import TOLERANCE
from harness.figures.statistic import Count, Measured, PerProcess
from harness.figures.table import GridPoint, Peak, Table, VariantRow
from harness.stats.estimate import Estimate
from harness.stats.repeats import highest

GROUP = "Peak memory"
FITS = "Fits the budget"
GENERATING = ("prefill", "decode")
Peaks = Callable[[VariantRow], tuple[Peak, ...]]


@dataclass(frozen=True)
class Watch:
    """Which run's phase peaks are shown, from which sources, and at which point of the grid. A row has one of them."""

    run: str
    sources: tuple[str, ...]
    point: GridPoint | None

    @property
    def name(self) -> str:
        return self.run

    @property
    def label(self) -> str:
        on_device = [source for source in self.sources if source in DEVICE_PEAKS]
        what = "GPU memory allocated" if on_device else "resident memory"
        outside = "; of engines that do not allocate it through torch, what the driver counts since loading"
        return f"{what} in the {self.run} run{outside if DRIVER_SINCE_LOADING in on_device else ''}"


@dataclass(frozen=True)
class MemoryPhase:
    """A phase of a run by one source, at a point of the grid if it belongs to one."""

    run: str
    phase: str
    source: str
    point: GridPoint | None

    @property
    def name(self) -> str:
        where = f"_{self.point.name}" if self.point else ""
        return f"{self.run}_{self.phase}_{self.source.replace(' ', '_')}{where}"

    @property
    def label(self) -> str:
        return f"{self.run}, {self.phase}"


def _phase(of: Peak | MemoryPhase) -> tuple[str, str, str, GridPoint | None]:
    """The fields of its phase: a table has many thousands of peaks in few phases."""
    return of.run, of.phase, of.source, of.point


def _all_peaks(table: Table) -> list[Peak]:
    return [peak for row in table.rows for peak in row.peaks]


def _unit(table: Table) -> SizeUnit:
    return table.remember("unit of peaks", lambda: size_unit((peak.bytes for peak in _all_peaks(table)), BINARY))


def _format(table: Table, place: object) -> NumberStyle:
    return in_unit(_unit(table))


def _in_grid(peak: Peak | MemoryPhase, table: Table) -> bool:
    """Whether it belongs to no point of the grid, or to one that has columns; halves of prompts have none."""
    return peak.point is None or peak.point in table.grid


def _generated(table: Table) -> bool:
    return table.remember(
        "generated", lambda: any(peak.phase in GENERATING and _in_grid(peak, table) for peak in _all_peaks(table))
    )


def _watched(table: Table) -> tuple[Watch, ...]:
    return table.remember("watched peaks", lambda: _watch(table))


def _watch(table: Table) -> tuple[Watch, ...]:
    peaks = _all_peaks(table)
    run = "performance" if any(peak.run == "performance" for peak in peaks) else "quality"
    sources = tuple(dict.fromkeys(peak.source for peak in peaks if peak.run == run))
    on_device = tuple(source for source in DEVICE_PEAKS if source in sources)
    return (Watch(run, on_device or sources[:1], table.grid[0] if table.grid else None),)


def _watched_generating(table: Table) -> tuple[Watch, ...]:
    return _watched(table) if _generated(table) else ()


def _peak_of(phase: str, wanted: Callable[[Peak, Watch], bool], while_: str, always: bool) -> Figure[Watch]:
    """``always`` is False for a peak that is shown only if nothing was generated."""

    def value(row: VariantRow, place: Watch) -> Value:
        own = (peak for peak in row.peaks if peak.run == place.run and peak.source in place.sources)
        return max((peak.bytes for peak in own if wanted(peak, place)), default=None)

    def text(table: Table, place: Watch) -> str:
        unit = _unit(table)
        which = f" Of one {phase} at {place.point.label}." if phase in GENERATING and place.point else while_
        return f"Peak of {place.label}. 1 {unit.name} is {unit.bytes:,} bytes.{which}"

    return Figure(
        f"peak_{phase}",
        GROUP,
        phase,
        text,
        value,
        "lower",
        _format,
        _watched_generating if phase in GENERATING else _watched,
        f"peak_{phase}_{{place}}_bytes",
        True if always else lambda table, place: not _generated(table),
    )


def _at(phase: str) -> Callable[[Peak, Watch], bool]:
    return lambda peak, place: (peak.phase, peak.point) in ((phase, place.point), (phase, None))


def _every(name: str, when: str, pick: Peaks) -> Figure[MemoryPhase]:
    """For programs: every phase by every source."""

    def places(table: Table) -> tuple[MemoryPhase, ...]:
        found = dict.fromkeys(_phase(peak) for row in table.rows for peak in pick(row))
        return tuple(phase for phase in starmap(MemoryPhase, found) if _in_grid(phase, table))

    def by_phase(row: VariantRow) -> dict[tuple[str, str, str, GridPoint | None], int]:
        return {_phase(peak): peak.bytes for peak in reversed(pick(row))}

    def value(row: VariantRow, place: MemoryPhase) -> Value:
        return row.remember(f"{name} by phase", lambda: by_phase(row)).get(_phase(place))

    return Figure(
        f"{name}_of_phase",
        GROUP,
        "{place}",
        lambda table, place: f"{place.source}, {when}.",
        value,
        "lower",
        _format,
        places,
        f"{name}_{{place}}_bytes",
        shown=False,
    )


def _of_use(measurement: Measurement) -> bool:
    """A peak of quantizing is not a peak of use."""
    return measurement.protocol.get("phase") not in NOT_OF_USE


PEAK_MEMORY = Figure(
    "peak_memory",
    GROUP,
    "of use",
    "The highest peak of the speed runs, quantizing left out: what compare and history call peak_memory.",
    lambda row, place: peak_of_use(row.peaks),
    "lower",
    _format,
    lambda table: (WHOLE,),
    "peak_memory_bytes",
    shown=False,
    statistic=PerProcess(
        "peak_memory_bytes",
        "byte",
        lambda measurement: highest(measurement.values),
        highest,
        _of_use,
        timed=False,
        pooled=True,
    ),
    gate=Gate("relative", 0.05, "peak memory of generating", rank=70),
)


def _of_parts(pick: Callable[[Footprint], Value]) -> Callable[[VariantRow], Value]:
    return lambda row: pick(row.footprint) if row.footprint else None


def _parts(table: Table) -> list[Footprint]:
    return [row.footprint for row in table.rows if row.footprint]


def _where_known(table: Table) -> tuple[Whole, ...]:
    """Once, if the parts of the memory for generation were measured."""
    return (WHOLE,) if _parts(table) else ()


def _cache_unit(table: Table) -> SizeUnit:
    return size_unit((int(part.kv_bytes_per_token) for part in _parts(table)), BINARY)


def _cache_help(table: Table, place: Whole) -> str:
    unit = _cache_unit(table)
    return f"Real bytes of the key-value cache for each token of each sequence. 1 {unit.name} is {unit.bytes:,} bytes."


def _cache(found: Measured) -> float | None:
    """Bytes per token at the most tokens that the cache held."""
    caches = found["kv_cache_bytes_per_token"]
    return cache_of_most_tokens(caches).values[0] if caches else None


def _filling(measurement: Measurement) -> tuple[str, ...]:
    return tuple(str(measurement.protocol.get(name)) for name in ("after", "batch_size", "prompt_tokens", "tokens"))


KV_CACHE = Figure(
    "kv_cache",
    "KV cache",
    "per token",
    _cache_help,
    lambda row, place: _of_parts(lambda part: part.kv_bytes_per_token)(row),
    "lower",
    lambda table, place: in_unit(_cache_unit(table)),
    _where_known,
    "kv_cache_bytes_per_token",
    statistic=Count("kv_cache_bytes_per_token", _cache, each_run=True, condition=_filling),
    gate=Gate("relative", 0.0, "bytes of the cache per token", rank=130),
)


def _pools(table: Table) -> list[int]:
    return [row.kv_cache_pool_bytes for row in table.rows if row.kv_cache_pool_bytes]


KV_POOL = Figure(
    "kv_cache_pool",
    "KV cache",
    "pool",
    "What the engine allocates for keys and values when it loads, full or not. Every peak of the row includes all of "
    "it; what fits a budget counts the tokens kept instead.",
    lambda row, place: row.kv_cache_pool_bytes,
    "neither",
    lambda table, place: in_unit(size_unit(_pools(table), BINARY)),
    lambda table: (WHOLE,) if _pools(table) else (),
    POOL,
)


def _grid_where_known(table: Table) -> tuple[GridPoint, ...]:
    return table.grid if _parts(table) else ()


def _workspace(phase: str) -> Figure[GridPoint]:
    def value(row: VariantRow, point: GridPoint) -> Value:
        if row.footprint is None:
            return None
        work = row.footprint.prefill if phase == "prefill" else row.footprint.decode
        return work.bytes(point.batch_size, point.prompt_tokens + (point.new_tokens if phase == "decode" else 0))

    return Figure(
        f"{phase}_workspace",
        GROUP,
        f"{phase} workspace",
        "What the phase takes beside weights and cache, by the line through what was measured.",
        value,
        "lower",
        NumberStyle("B"),
        _grid_where_known,
        f"workspace_{phase}_{{place}}_bytes",
        shown=False,
    )


@dataclass(frozen=True)
class BudgetPlace:
    """A memory budget, and the number of tokens per row for which the largest batch is computed."""

    bytes: int
    tokens: int
    name: str = ""

    @property
    def label(self) -> str:
        return f"{self.bytes:,} bytes ({self.bytes / 10**9:.3g} GB, {self.bytes / 2**30:.3g} GiB)"


def _budgets(table: Table) -> tuple[BudgetPlace, ...]:
    if not _parts(table) or table.budget_bytes is None or not table.grid:
        return ()
    point = table.grid[0]
    return (BudgetPlace(table.budget_bytes, point.prompt_tokens + point.new_tokens),)


def _fits(what: Callable[[BudgetPlace], str]) -> Callable[[Table, BudgetPlace], str]:
    def text(table: Table, place: BudgetPlace) -> str:
        measured_tokens = max(part.measured_tokens for part in _parts(table))
        return (
            f"{what(place)} fits in {place.label}, worked out from the memory in use before, the key-value cache and "
            f"the workspace of prompts of up to {measured_tokens} tokens."
        )

    return text


LONGEST_CONTEXT = Figure(
    "longest_context",
    FITS,
    "longest context",
    _fits(lambda place: "The longest context of one sequence that"),
    lambda row, place: _of_parts(lambda part: part.longest_context(place.bytes))(row),
    "higher",
    NumberStyle("tok", WHOLE_NUMBER.write),
    _budgets,
    "longest_context_tokens",
)
LARGEST_BATCH = Figure(
    "largest_batch",
    FITS,
    lambda table, place: f"largest batch of {place.tokens} tok",
    _fits(lambda place: f"The most sequences of {place.tokens} tokens that"),
    lambda row, place: _of_parts(lambda part: part.largest_batch(place.bytes, place.tokens))(row),
    "higher",
    WHOLE_NUMBER,
    _budgets,
    "largest_batch_sequences",
)


def _read_memory(row: VariantRow, use: Use) -> Reading:
    """All memory for generation: computed from its measured parts, else the highest peak, else the weights alone.

    The weights, and a peak for less than the use asks for, are lower bounds: their interval has no upper end.
    """
    part = row.footprint
    if part is None:
        return _read_peak(row, use)
    if part.context_limit is not None and use.tokens > part.context_limit:
        return Reading(None, f"the model reads at most {part.context_limit} tokens")
    return counted(part.bytes(use.batch, use.tokens))


def _read_peak(row: VariantRow, use: Use) -> Reading:
    found = [peak for peak in row.peaks if peak.run == "performance" and peak.phase in GENERATING]
    on_gpu = [peak for peak in found if peak.source.startswith(("cuda", "NVML"))]
    most = max((peak.bytes for peak in on_gpu or found), default=None)
    if most is not None:
        return _at_least(most, "the highest peak of its speed runs", certain=use.measured)
    if row.stored_bytes is None:
        return Reading(None, "not measured")
    return _at_least(row.stored_bytes, "its weights alone; generating takes more", certain=False)


def _at_least(count: int, basis: str, certain: bool) -> Reading:
    return Reading(Estimate(count, count, count if certain else math.inf, 1, "lower bound"), basis)


MEMORY: Figure[Whole] = Figure(
    "memory",
    GROUP,
    "Memory",
    "All that generating takes: what the process holds, the key-value cache and the workspace.",
    lambda row, place: None,
    "lower",
    places=lambda table: (),
    column=None,
    ask=Ask(
        "memory",
        LimitOption("max-memory", size, "SIZE", "Memory for generating: 8GiB or 8GB.", "≤ {} memory", rank=10),
        Objective("memory", "the least memory", "within 1% of the memory of", rank=20),
        Ties(tolerance=TOLERANCE),
        _read_memory,
        sizes=BINARY,
        explained=True,
    ),
)
FIGURES = (
    _peak_of("loading", lambda peak, place: "load" in peak.phase, " While loading.", always=True),
    _peak_of("running", lambda peak, place: "load" not in peak.phase, " After loading.", always=False),
    _peak_of("prefill", _at("prefill"), "", always=True),
    _peak_of("decode", _at("decode"), "", always=True),
    PEAK_MEMORY,
    _every("peak", "at its highest", lambda row: row.peaks),
    _every("after", "when it ended", lambda row: row.left),
    KV_CACHE,
    KV_POOL,
    _workspace("prefill"),
    _workspace("decode"),
    LONGEST_CONTEXT,
    LARGEST_BATCH,
    MEMORY,
)
