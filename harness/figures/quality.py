"""How well a variant predicts a text: its perplexity, absolute and relative to the baseline's."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, counted, measured, share
from harness.figures.control import where_any, with_engine_share
from harness.figures.derived.scores import PERPLEXITY_MARGIN
from harness.figures.figure import LOG_FROM_RATIO, Axis, Direction, Figure, Whole
from harness.figures.formats import PERCENT, SIGNED_PERCENT, NumberStyle, significant
from harness.figures.gate import Gate
from harness.figures.notes import PAIRED, judgement, verdict_note
from harness.figures.statistic import Count, Items, first_value
from harness.figures.table import Table, VariantRow
from harness.stats.estimate import Estimate, perplexity

GROUP = "Quality"
LARGE_CHANGE = 0.05
"""A difference of perplexity that no speed makes up for."""
LEAST_RISE = 1e-4
"""Smaller rises are drawn here on a logarithmic axis."""


def estimated(
    name: str,
    heading: str,
    text: str,
    pick: Callable[[VariantRow], Estimate | None],
    format: NumberStyle,
    *,
    direction: Direction = "lower",
    column: str = "",
    shown: bool | Callable[[Table, Whole], bool] = True,
) -> Figure[Whole]:
    """A figure with an interval that a variant has once."""
    return Figure(
        name,
        GROUP,
        heading,
        text,
        lambda row, place: pick(row),
        direction,
        format,
        column=column,
        shown=shown,
        interval=True,
    )


def _read_change(row: VariantRow, use: Use) -> Reading:
    """The paired change against the baseline, as a fraction; the baseline's is zero."""
    if row.is_baseline:
        return counted(0, "the baseline")
    lacking = "not measured" if row.perplexity is None else "no like baseline to compare with"
    found = measured(row.perplexity_change, lacking=lacking, influence=row.perplexity_influence, scale="log1p")
    return with_engine_share(found, row, _engine_share(row))


def _engine_share(row: VariantRow) -> str | None:
    """How much of the change is its engine's own; None on the baseline's engine, and if it is not known.

    Changes of perplexity multiply: that of the control is what is left of the change over the baseline.
    """
    change, over = row.perplexity_change, row.perplexity_over_control
    if change is None or over is None:
        return None
    return f"{SIGNED_PERCENT.text((1 + change.value) / (1 + over.value) - 1)}%"


def _ruined(rises: Iterable[float]) -> bool:
    """Whether a ruined variant would squeeze all others together on a linear axis."""
    found = list(rises)
    return max(found, default=0) > LOG_FROM_RATIO * max(min(found, default=0), LEAST_RISE)


def _by_word_or_byte(table: Table, place: Whole) -> bool:
    return any(row.word_perplexity for row in table.rows)


def _unit(measurement: Measurement) -> str:
    return "perplexity"


PERPLEXITY: Figure[Whole] = Figure(
    "perplexity",
    GROUP,
    "Perplexity",
    "exp of the mean negative log-likelihood per token, with its 95% interval.",
    lambda row, place: row.perplexity,
    "lower",
    NumberStyle(write=lambda value: significant(value, 4)),
    interval=True,
    statistic=Items("nll", perplexity, unit_of=_unit),
    gate=Gate("relative", 0.005, "perplexity, window by window", rank=10),
    hub="perplexity",
    key=True,
)
PERPLEXITY_CHANGE: Figure[Whole] = Figure(
    "perplexity_change",
    GROUP,
    "Δ perplexity",
    f"Change against the baseline, {PAIRED}.",
    lambda row, place: row.perplexity_change,
    "lower",
    SIGNED_PERCENT,
    column="perplexity_change_fraction",
    interval=True,
    notes=lambda row, place: verdict_note(row.perplexity_comparison),
    ask=Ask(
        "perplexity",
        LimitOption(
            "max-perplexity-increase",
            share,
            "SHARE",
            "Relative to the baseline: 1% or 0.01.",
            "≤ {}% more perplexity",
            rank=30,
        ),
        Objective("perplexity", "the lowest perplexity", "not distinguishable by perplexity from", rank=30),
        Ties(harmless=PERPLEXITY_MARGIN, large=LARGE_CHANGE, rank=20, words="change of perplexity"),
        _read_change,
        of_quality=True,
    ),
    axis=Axis("Change of perplexity, {unit}", _ruined, LEAST_RISE, "Rise of perplexity, {unit}"),
    hub="perplexity_change",
    key=True,
)
PERPLEXITY_OVER_CONTROL: Figure[Whole] = Figure(
    "perplexity_over_control",
    GROUP,
    "Δ perplexity over control",
    "Change against the control, the unquantized model on the same engine; paired, with its 95% interval.",
    lambda row, place: row.perplexity_over_control,
    "lower",
    SIGNED_PERCENT,
    where_any(lambda row: row.perplexity_over_control),
    "perplexity_over_control_fraction",
    interval=True,
)
COVERAGE: Figure[Whole] = Figure(
    "coverage",
    GROUP,
    "Coverage",
    "Share of the parameters in scope that are really stored quantized.",
    lambda row, place: row.coverage,
    "higher",
    PERCENT,
    column="coverage_fraction",
    shown=False,
    statistic=Count("coverage", first_value("coverage")),
    gate=Gate("points", 0.0, "quantized over eligible parameters", rank=140),
)
FRONT_PROBABILITY: Figure[Whole] = Figure(
    "front_probability",
    GROUP,
    "On the front",
    "How likely no other variant is better in quality (mean KL, else perplexity), stored bytes and decode speed at "
    "once: the share of draws from their intervals.",
    lambda row, place: row.front_probability,
    "higher",
    PERCENT,
    axis=Axis(from_zero=True),
)
FIGURES: tuple[Figure[Whole], ...] = (
    PERPLEXITY,
    PERPLEXITY_CHANGE,
    *judgement(GROUP, "perplexity_change", lambda row, place: row.perplexity_comparison),
    PERPLEXITY_OVER_CONTROL,
    *(
        estimated(
            name, heading, f"{heading}, as lm-eval counts words and bytes.", pick, NumberStyle(), shown=_by_word_or_byte
        )
        for name, heading, pick in (
            ("word_perplexity", "per word", lambda row: row.word_perplexity),
            ("byte_perplexity", "per byte", lambda row: row.byte_perplexity),
            ("bits_per_byte", "bits per byte", lambda row: row.bits_per_byte),
        )
    ),
)
STANDING: tuple[Figure[Whole], ...] = (COVERAGE, FRONT_PROBABILITY)
"""How much of a variant is quantized, and where it stands among the others."""
