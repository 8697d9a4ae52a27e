"""A variant's server under load: latencies, throughput, goodput, the largest load that holds the SLO, the crossover."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, delay, measured, positive
from harness.figures.figure import Direction, Figure, Note
from harness.figures.formats import NumberStyle, significant
from harness.figures.gate import Gate
from harness.figures.notes import interval_note
from harness.figures.statistic import PerProcess, Unanswered, silence
from harness.figures.table import Ladder, Load, Served, ServedAgainst, Table, VariantRow
from harness.stats.crossover import Crossover
from harness.stats.estimate import Estimate, quantile

GROUP = "Serving"
HARMLESS = 0.05
"""A relative difference that does not matter: the thresholds of the gates, and of ties."""
PERCENTILES = (50, 95, 99)
TELLING = 1
"""Which of them readers see, gates judge and ``recommend`` reads."""
SECONDS = NumberStyle("ms", factor=1000)
TIMES = NumberStyle("×")
OVER = "median over processes, with their range"
FAILURES = "serving_failures"
GAPS = "serving_gap_s"
"""There are none where tokens arrive in bursts, or alone."""
ENDLESS, NONE_PER_S = Unanswered(FAILURES, math.inf), Unanswered(FAILURES, 0.0)


def loads(table: Table) -> tuple[Load, ...]:
    """The places of a figure that is measured at each level of load."""
    return table.loads


def ladders(table: Table) -> tuple[Load, ...]:
    """The places of a figure of a whole ladder of loads."""
    return tuple(dict.fromkeys(each.load for row in table.rows for each in row.ladders))


def at_highest_load(table: Table, load: Load) -> bool:
    """Whether it is the last level, the only one that the main table shows."""
    return table.loads[-1:] == (load,)


def _percentile(measurement: Measurement, share: float) -> float:
    return quantile(measurement.values, share)


def _first(measurement: Measurement) -> float:
    return measurement.values[0]


def _says_how_many(measurement: Measurement) -> bool:
    return isinstance(measurement.protocol.get("requests"), int)


def _answered(measurement: Measurement) -> float:
    asked = measurement.protocol["requests"]
    assert isinstance(asked, int)
    return 1 - measurement.values[0] / asked


def _read_at_load(statistic: PerProcess) -> Callable[[VariantRow, Use], Reading]:
    """The figure at the load that the user chose, or at the highest that the table has."""

    def read(row: VariantRow, use: Use) -> Reading:
        if not use.loads:
            return _without_load(use)
        load = use.loads[-1]
        silent = _silent(statistic, row, load)
        lacking = f"{silent} at {load.short}" if silent else "not measured"
        if statistic.metric == GAPS and E2E[TELLING].of(row, load) is not None:
            lacking = f"no gaps between single tokens at {load.short}"
        return measured(statistic.value(row, load), f"at {load.short}", lacking, scale="log")

    return read


def _without_load(use: Use) -> Reading:
    return Reading(None, "no load was measured" if use.level is None else f"not measured at a load of {use.level:g}")


def _silent(statistic: PerProcess, row: VariantRow, load: Load) -> str:
    """How many of the processes answered no request; empty if all answered some."""
    found = statistic.by_process(row, load)
    silent = statistic.silent(found)
    return silence(silent, len(found)) if silent else ""


@dataclass(frozen=True)
class _Asked:
    """How ``recommend`` asks for a latency: what it is called, its limit, the place of its options.

    ``units`` are what it is the percentile of; ``usual``: its gate is in force if a user names none.
    """

    name: str
    option: str
    words: str
    rank: int
    units: str = "requests"
    usual: bool = True

    def of(self, statistic: PerProcess) -> Ask:
        text = f"{self.name[0].upper()}{self.name[1:]}, of 95% of the {self.units} at the highest load or --at-load."
        return Ask(
            self.name,
            LimitOption(f"max-{self.option}", delay, "TIME", text, self.words, rank=self.rank),
            Objective(
                self.option, f"the shortest {self.name}", f"not distinguishable by {self.name} from", rank=self.rank
            ),
            Ties(harmless=HARMLESS, relative=True),
            _read_at_load(statistic),
            explained=True,
        )


def _latency(name: str, metric: str, title: str, meaning: str, percentile: int, asked: _Asked) -> Figure[Load]:
    told = percentile == PERCENTILES[TELLING]
    statistic = PerProcess(metric, "s", partial(_percentile, share=percentile / 100), unanswered=ENDLESS)
    return Figure(
        f"{name}_p{percentile}",
        GROUP,
        f"{title} p{percentile}",
        f"{meaning}: the {percentile}th percentile of the {asked.units} of one process at {{place}}; {OVER}.",
        direction="lower",
        format=SECONDS,
        places=loads,
        column=f"{name}_p{percentile}_s_{{place}}",
        shown=at_highest_load if told else False,
        interval=True,
        notes=lambda row, load: (Note(silent),) if (silent := _silent(statistic, row, load)) else (),
        statistic=statistic,
        gate=Gate("relative", HARMLESS, f"{title} of 95% of the {asked.units}, at each load", asked.usual)
        if told
        else None,
        ask=asked.of(statistic) if told else None,
    )


_TTFT = _Asked("time to the first token", "ttft", "≤ {} ms to the first token", 100)
_TPOT = _Asked("time per token", "tpot", "≤ {} ms per token after the first", 110)
_ITL = _Asked("time between two tokens", "itl", "≤ {} ms between two tokens", 112, "gaps", usual=False)
_E2E = _Asked("time to the last token", "e2e", "≤ {} ms to the last token", 114, usual=False)
TTFT = tuple(
    _latency("ttft", "serving_ttft_s", "TTFT", "Time from sending a request to its first token", each, _TTFT)
    for each in PERCENTILES
)
TPOT = tuple(
    _latency("tpot", "serving_tpot_s", "TPOT", "Time per output token after the first", each, _TPOT)
    for each in PERCENTILES
)
ITL = tuple(
    _latency("itl", GAPS, "ITL", "Time between two tokens, where they arrive one by one", each, _ITL)
    for each in PERCENTILES
)
E2E = tuple(
    _latency("e2e", "serving_e2e_s", "E2E", "Time from sending a request to its last token", each, _E2E)
    for each in PERCENTILES
)


def _rate(
    name: str,
    metric: str,
    heading: str,
    text: str,
    unit: str,
    direction: Direction = "higher",
    shown: Callable[[Table, Load], bool] | bool = at_highest_load,
    of: Callable[[Measurement], float] = _first,
    gate: Gate | None = None,
    ask: Ask | None = None,
    style: NumberStyle | None = None,
    unanswered: Unanswered | None = None,
) -> Figure[Load]:
    return Figure(
        name,
        GROUP,
        heading,
        f"{text}, at {{place}}; {OVER}.",
        direction=direction,
        format=style or NumberStyle(unit),
        places=loads,
        shown=shown,
        interval=True,
        statistic=PerProcess(metric, unit, of, unanswered=unanswered),
        gate=gate,
        ask=ask,
    )


def _read_goodput(row: VariantRow, use: Use) -> Reading:
    """At the load that the user chose, or the highest over all levels of load."""
    if not use.loads:
        return _without_load(use)
    found = [(load, value) for load in use.loads if (value := GOODPUT.of(row, load)) is not None]
    best = max(found, key=lambda pair: _value(pair[1]), default=None)
    if best is None or isinstance(best[1], str | float):
        given = any(GOODPUT.of(each, load) is not None for each in use.table.rows for load in use.table.loads)
        missing = "not measured" if use.level is None else f"not measured at {use.loads[-1].short}"
        return Reading(None, missing if given else "no SLO was given")
    return measured(best[1], f"at {best[0].short}", scale="log")


def _value(value: object) -> float:
    return float(getattr(value, "value", math.nan))


GOODPUT = _rate(
    "goodput",
    "serving_goodput_per_s",
    "Goodput",
    "Requests per second that meet the SLO",
    "requests/s",
    gate=Gate("relative", HARMLESS, "requests per second that meet the SLO, at each load"),
    ask=Ask(
        "goodput",
        LimitOption(
            "min-goodput",
            positive,
            "REQ/S",
            "The highest goodput, or that at --at-load.",
            "≥ {} requests/s at the SLO",
            rank=120,
        ),
        Objective("goodput", "the highest goodput", "not distinguishable by goodput from", rank=24),
        Ties(harmless=HARMLESS, relative=True),
        _read_goodput,
        explained=True,
    ),
)
THROUGHPUT = _rate(
    "output_throughput",
    "serving_output_tok_per_s",
    "Output",
    "Output tokens of all requests per second, from the first request to the last answer",
    "tok/s",
    gate=Gate("relative", HARMLESS, "output tokens per second of a server, at each load", usual=False),
    unanswered=NONE_PER_S,
)


def _read_capacity(row: VariantRow, use: Use) -> Reading:
    found = [each for each in row.ladders if each.capacity is not None]
    if not found:
        given = any(each.capacity is not None for other in use.table.rows for each in other.ladders)
        return Reading(None, "not measured" if given else "no SLO was given")
    return measured(found[0].capacity, found[0].load.unit)


def _capacity_notes(row: VariantRow, load: Load) -> tuple[Note, ...]:
    found = row.ladder_of(load)
    if found is None or found.capacity is None:
        return ()
    if not found.capacity.value:
        return (Note(f"no load holds {found.slo.label}"),) if found.slo else ()
    return interval_note(found.capacity)


CAPACITY: Figure[Load] = Figure(
    "largest_load",
    GROUP,
    "Largest load at the SLO",
    "The largest load that holds the SLO, {place}: median over processes, with its 95% interval, which ends at the "
    "next load above, which does not.",
    lambda row, load: found.capacity if (found := row.ladder_of(load)) else None,
    "higher",
    lambda table, load: NumberStyle(load.unit),
    ladders,
    interval=True,
    notes=_capacity_notes,
    key=True,
    statistic=PerProcess("serving_largest_load", "", _first, step="one level of the ladder"),
    gate=Gate("relative", HARMLESS, "the largest load that holds the SLO"),
    ask=Ask(
        "largest load",
        LimitOption(
            "min-load", positive, "LOAD", "The largest load that holds the SLO.", "≥ {} of load at the SLO", rank=130
        ),
        Objective("load", "the largest load at the SLO", "not distinguishable by load from", rank=22),
        Ties(harmless=HARMLESS, relative=True),
        _read_capacity,
        explained=True,
    ),
)


def crossover_words(found: Crossover, unit: str, other: str = "baseline") -> str:
    """``faster than the baseline up to 24 concurrent requests, slower beyond [18, 31]``."""
    first, then = ("faster", "slower") if found.slower else ("slower", "faster")
    low = "below the lowest" if found.low == 0 else significant(found.low)
    high = "above the highest" if math.isinf(found.high) else significant(found.high)
    doubt = "" if found.certain else "; it may not cross within the loads that were measured"
    return f"{first} than the {other} up to {significant(found.level)} {unit}, {then} beyond [{low}, {high}]{doubt}"


@dataclass(frozen=True)
class _Rival:
    """The server that a variant's is held against: its ``name``, and where a row has what was found."""

    name: str
    against: Callable[[Served], ServedAgainst | None]
    crossing: Callable[[Ladder], Crossover | None]

    def at(self, row: VariantRow, load: Load) -> ServedAgainst | None:
        found = row.served_at(load)
        return self.against(found) if found else None

    def ratio(self, row: VariantRow, load: Load) -> Estimate | None:
        found = self.at(row, load)
        return found.ratio if found else None

    def ratio_notes(self, row: VariantRow, load: Load) -> tuple[Note, ...]:
        found = self.at(row, load)
        if found is None:
            return ()
        said = (self._lost(found), self._length(found))
        return (*interval_note(found.ratio), *(Note(each) for each in said if each))

    def crossover(self, row: VariantRow, load: Load) -> str | None:
        found = row.ladder_of(load)
        crossing = self.crossing(found) if found else None
        return crossover_words(crossing, load.unit, self.name) if crossing else None

    def crossover_notes(self, row: VariantRow, load: Load) -> tuple[Note, ...]:
        """What was lost or of another length at which of its levels."""
        told: dict[str, list[str]] = {}
        for each in row.served:
            found = self.against(each) if replace(each.load, level=None) == load else None
            for said in (self._lost(found), self._length(found)) if found else ():
                told.setdefault(said, []).append(f"{each.load.level or 0:g}")
        return tuple(Note(f"at {', '.join(levels)} {load.unit}: {said}") for said, levels in told.items() if said)

    def measured(self, table: Table) -> bool:
        return any(self.against(each) for row in table.rows for each in row.served)

    def _lost(self, found: ServedAgainst) -> str:
        """The shares that were answered, unless all were."""
        if found.answered == found.others_answered == 1:
            return ""
        ours, theirs = _share(found.answered), _share(found.others_answered)
        return f"{ours} of its requests were answered, and {theirs} of the {self.name}'s"

    def _length(self, found: ServedAgainst) -> str:
        """How long the answers are, if that alone can make them faster or slower."""
        if found.length is None or abs(found.length - 1) <= HARMLESS:
            return ""
        return f"its answers are {significant(found.length)} times as long as the {self.name}'s"


def _share(part: float) -> str:
    return f"{100 * part:.3g}%"


BASELINE = _Rival("baseline", lambda found: found.against_baseline, lambda ladder: ladder.crossover)
CONTROL = _Rival("control", lambda found: found.against_control, lambda ladder: ladder.crossover_over_control)
OF_CONTROL = "the unquantized model on the same engine"


def _loads_with_control(table: Table) -> tuple[Load, ...]:
    return table.loads if CONTROL.measured(table) else ()


def _ladders_with_control(table: Table) -> tuple[Load, ...]:
    return ladders(table) if CONTROL.measured(table) else ()


FIGURES: tuple[Figure[Load], ...] = (
    CAPACITY,
    Figure(
        "crossover",
        GROUP,
        "Crossover",
        "Where the variant's requests cease to be answered faster, or slower, than the baseline's as the load grows: "
        "{place}. Of the times to the last token, paired by request and process, with the loads at which the interval "
        "of 'vs baseline' holds 1. At a load where one of them lost many requests, it is the slower one.",
        BASELINE.crossover,
        places=ladders,
        shown=lambda table, load: any(BASELINE.crossover(row, load) for row in table.rows),
        notes=BASELINE.crossover_notes,
    ),
    Figure(
        "crossover_over_control",
        GROUP,
        "Crossover with control",
        f"As 'Crossover', with the control's server, {OF_CONTROL}, instead of the baseline's: {{place}}.",
        CONTROL.crossover,
        places=_ladders_with_control,
        shown=lambda table, load: any(CONTROL.crossover(row, load) for row in table.rows),
        notes=CONTROL.crossover_notes,
    ),
    *TTFT,
    *TPOT,
    *ITL,
    *E2E,
    Figure(
        "served_ratio",
        GROUP,
        "vs baseline",
        "How many times as fast requests were answered as by the baseline's server, at {place}: of the times to the "
        "last token, paired by request and process, with the 95% interval over processes (of one, its requests'). None "
        "where either left more than 5% of the requests without an answer.",
        BASELINE.ratio,
        "higher",
        TIMES,
        loads,
        shown=at_highest_load,
        interval=True,
        notes=BASELINE.ratio_notes,
        key=True,
    ),
    Figure(
        "served_over_control",
        GROUP,
        "vs control",
        f"As 'vs baseline', against the control's server, {OF_CONTROL}, at {{place}}.",
        CONTROL.ratio,
        "higher",
        TIMES,
        _loads_with_control,
        shown=at_highest_load,
        interval=True,
        notes=CONTROL.ratio_notes,
    ),
    THROUGHPUT,
    _rate(
        "request_throughput",
        "serving_requests_per_s",
        "Requests",
        "Requests answered per second, from the first request to the last answer",
        "requests/s",
        shown=False,
        unanswered=NONE_PER_S,
    ),
    GOODPUT,
    _rate(
        "attainment",
        "serving_met",
        "Attainment",
        "The share of the requests that meet the SLO; one that was not answered does not",
        "",
        of=lambda measurement: measurement.mean,
        style=NumberStyle("%", factor=100),
    ),
    Figure(
        "answered",
        GROUP,
        "Answered",
        f"The share of the requests that were answered, at {{place}}; {OVER}.",
        direction="higher",
        format=NumberStyle("%", factor=100),
        places=loads,
        shown=False,
        interval=True,
        statistic=PerProcess(FAILURES, "", _answered, counted=_says_how_many, step="one request"),
        gate=Gate("relative", HARMLESS, "the share of the requests that were answered, at each load"),
    ),
    _rate("failures", FAILURES, "Failures", "Requests without an answer", "requests", "lower"),
    _rate(
        "preemptions",
        "serving_preemptions",
        "Preemptions",
        "How often the server interrupted a request for want of cache, by its own count",
        "preemptions",
        "lower",
    ),
    _rate(
        "cache_use",
        "serving_cache_use",
        "Cache use",
        "The largest part of its key-value cache that the server used, by its own account",
        "",
        "lower",
        False,
        style=NumberStyle("%", factor=100),
    ),
    _rate(
        "prefix_cache_hits",
        "serving_prefix_cache_hits",
        "Prefix cache",
        "The part of the prompts' tokens that the server found in its cache, by its own count",
        "",
        shown=False,
        style=NumberStyle("%", factor=100),
    ),
    _rate(
        "load_energy",
        "serving_j_per_tok",
        "Energy",
        "Joules of the GPU, or else of the CPU and its memory, per output token under load, power at rest included",
        "J/tok",
        "lower",
    ),
)
