"""How fast a variant runs: prefill and decode, separately, at every point of the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, measured, positive
from harness.figures.derived.speeds import point_of
from harness.figures.figure import Axis, Figure, Note, Value, at_first_point, grid
from harness.figures.formats import NumberStyle
from harness.figures.gate import Gate
from harness.figures.notes import interval_note
from harness.figures.statistic import PerProcess
from harness.figures.table import GridPoint, Outliers, Speed, Table, VariantRow
from harness.stats.estimate import Estimate
from harness.stats.repeats import FEWEST_PROCESSES, no_interval, tok_per_s

GROUP = "Speed"
TOK_PER_S = NumberStyle("tok/s")
TIMES = NumberStyle("×")
HELP = "At {place}. Median over processes, with its 95% interval (of one process, its iterations'; of two, none)"
HARMLESS = 0.05
"""A relative difference of speed that does not matter: the thresholds of the gates, and of ties."""
TWICE = 1.0
"""The relative difference beyond which the faster of two equals is better, unless its quality is far worse."""

Picked = Callable[[Speed], Estimate | None]


def prefill_tok_per_s(speed: Speed) -> Estimate | None:
    return speed.prefill_tok_per_s


def decode_tok_per_s(speed: Speed) -> Estimate | None:
    return speed.decode_tok_per_s


def at_point(pick: Callable[[Speed], Value]) -> Callable[[VariantRow, GridPoint], Value]:
    """A function that takes a figure of a row's speed at a point of the grid."""
    return lambda row, point: pick(speed) if (speed := row.speed_at(point)) else None


def speed_notes(
    pick: Picked, outliers: Callable[[Speed], Outliers | None] = lambda speed: None
) -> Callable[[VariantRow, GridPoint], tuple[Note, ...]]:
    """Notes: that an interval covers one process or is missing, and how many timings are outliers."""

    def notes(row: VariantRow, point: GridPoint) -> tuple[Note, ...]:
        speed = row.speed_at(point)
        found, far = (pick(speed), outliers(speed)) if speed else (None, None)
        alone = interval_note(found)
        return (*alone, Note(f"{far.count} of {far.timings} timings far out")) if far and far.count else alone

    return notes


def read_speed(pick: Picked) -> Callable[[VariantRow, Use], Reading]:
    """Without an interval if one process was timed: its iterations say nothing about the next process."""

    def read(row: VariantRow, use: Use) -> Reading:
        speed = row.speed_at(use.point) if use.point else None
        found = pick(speed) if speed else None
        if found is None or found.n >= FEWEST_PROCESSES:
            return measured(found, scale="log")
        why = no_interval(found.n)
        return measured(replace(found, low=None, high=None, method=why), why, scale="log")

    return read


def _prefilled(measurement: Measurement) -> float:
    point = point_of(measurement)
    return tok_per_s(point.batch_size * point.prompt_tokens, measurement.values)


def _decoded(measurement: Measurement) -> float:
    return tok_per_s(point_of(measurement).batch_size, measurement.values)


def _outliers(phase: str, pick: Callable[[Speed], Outliers | None]) -> Figure[GridPoint]:
    return Figure(
        f"{phase}_outliers",
        GROUP,
        "",
        "At {place}: timings beyond Tukey's far fences of their process. None is left out.",
        at_point(lambda speed: found.count if (found := pick(speed)) else None),
        places=grid,
        shown=False,
    )


PREFILL = Figure(
    "prefill",
    GROUP,
    "Prefill",
    f"{HELP}.",
    at_point(prefill_tok_per_s),
    "higher",
    TOK_PER_S,
    grid,
    "prefill_tok_per_s_{place}",
    at_first_point,
    interval=True,
    notes=speed_notes(prefill_tok_per_s, lambda speed: speed.prefill_outliers),
    statistic=PerProcess("prefill_s", "tok/s", _prefilled),
    gate=Gate("relative", HARMLESS, "prefill speed at each point of the grid", rank=50),
    ask=Ask(
        "prefill",
        LimitOption("min-prefill", positive, "TOK/S", "Prefill speed.", "≥ {} tok/s prefill", rank=80),
        Objective("prefill", "the fastest prefill", "not distinguishable by prefill speed from", rank=20),
        Ties(harmless=HARMLESS, large=TWICE, relative=True, rank=50, words="prefill speed"),
        read_speed(prefill_tok_per_s),
        explained=True,
    ),
)
PREFILL_RATIO = Figure(
    "prefill_ratio",
    GROUP,
    "vs baseline",
    f"{HELP}; multiple of the baseline's prefill of the same session.",
    at_point(lambda speed: speed.prefill_ratio),
    "higher",
    TIMES,
    grid,
    shown=False,
    interval=True,
    notes=speed_notes(lambda speed: speed.prefill_ratio),
)
DECODE = Figure(
    "decode",
    GROUP,
    "Decode",
    f"{HELP}.",
    at_point(decode_tok_per_s),
    "higher",
    TOK_PER_S,
    grid,
    "decode_tok_per_s_{place}",
    at_first_point,
    interval=True,
    notes=speed_notes(decode_tok_per_s, lambda speed: speed.decode_outliers),
    statistic=PerProcess("decode_step_s", "tok/s", _decoded),
    gate=Gate("relative", HARMLESS, "decoding speed at each point of the grid", rank=60),
    ask=Ask(
        "decode",
        LimitOption("min-decode", positive, "TOK/S", "Decoding speed.", "≥ {} tok/s decoding", rank=70),
        Objective("decode", "the fastest decoding", "not distinguishable by decoding speed from", rank=10),
        Ties(harmless=HARMLESS, large=TWICE, relative=True, rank=40, words="decoding speed"),
        read_speed(decode_tok_per_s),
        explained=True,
    ),
    axis=Axis("Decoding at {place}, {unit}"),
    key=True,
)
DECODE_RATIO = Figure(
    "decode_ratio",
    GROUP,
    "Decode vs baseline",
    f"{HELP}; multiple of the baseline's decoding of the same session.",
    at_point(lambda speed: speed.decode_ratio),
    "higher",
    TIMES,
    grid,
    shown=at_first_point,
    interval=True,
    notes=speed_notes(lambda speed: speed.decode_ratio),
    key=True,
)


def _grid_with_control(table: Table) -> tuple[GridPoint, ...]:
    controlled = any(
        speed.prefill_over_control or speed.decode_over_control for row in table.rows for speed in row.speeds
    )
    return table.grid if controlled else ()


def _over_control(
    phase: str, heading: str, pick: Picked, shown: bool | Callable[[Table, GridPoint], bool]
) -> Figure[GridPoint]:
    return Figure(
        f"{phase}_over_control",
        GROUP,
        heading,
        f"{HELP}; multiple of the control's of the same session, the unquantized model on the same engine.",
        at_point(pick),
        "higher",
        TIMES,
        _grid_with_control,
        shown=shown,
        interval=True,
        notes=speed_notes(pick),
    )


FIGURES: tuple[Figure[GridPoint], ...] = (
    PREFILL,
    PREFILL_RATIO,
    DECODE,
    DECODE_RATIO,
    _outliers("prefill", lambda speed: speed.prefill_outliers),
    _outliers("decode", lambda speed: speed.decode_outliers),
    _over_control("prefill", "Prefill vs control", lambda speed: speed.prefill_over_control, False),
    _over_control("decode", "Decode vs control", lambda speed: speed.decode_over_control, at_first_point),
)
