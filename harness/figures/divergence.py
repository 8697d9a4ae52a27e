"""How far a variant's predictions lie from the baseline's, token by token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.figures.ask import (
    Ask,
    LimitOption,
    Objective,
    Reading,
    Ties,
    Use,
    counted,
    measured,
    positive,
    share_of_one,
)
from harness.figures.control import where_any, with_engine_share
from harness.figures.derived.breakdown import Bin
from harness.figures.derived.divergences import MEDIAN, MOST, P90, P99, P99_9
from harness.figures.figure import Axis, Figure, Note, Whole
from harness.figures.formats import PERCENT, SIGNED_PERCENT, NumberStyle, signed, significant
from harness.figures.gate import Gate
from harness.figures.notes import judgement, noise_note, with_interval
from harness.figures.quality import GROUP, estimated
from harness.figures.statistic import Items
from harness.figures.table import Table, VariantRow
from harness.stats.estimate import Estimate

NAT = NumberStyle("nat")
KL_HELP = "KL(baseline ‖ variant) per token: 0 is no damage"
INTERVAL = "with its 95% interval"
HARMLESS_NAT = 0.001
"""A divergence that does not matter: the threshold of the gate, and of ties."""
LARGE_NAT = 0.05
"""A divergence that no speed makes up for: about as much as 5% of perplexity."""
LEAST_NAT = 1e-6
"""Smaller values (lossless, or nearly) are drawn here: a logarithmic axis has no zero."""


def _read_kl(row: VariantRow, use: Use) -> Reading:
    """Mean KL(baseline ‖ variant), nat per token, the engine's own included; the reference's is zero."""
    if row.is_reference:
        return counted(0, "the baseline")
    own = significant(row.kl_control.value) if row.kl_control else None
    return with_engine_share(measured(row.kl_mean, influence=row.kl_influence), row, own)


def _read_agreement(row: VariantRow, use: Use) -> Reading:
    """Top-1 agreement with the reference, beside that of the unquantized model on the same engine if it is known."""
    if row.is_reference:
        return counted(1, "the baseline")
    found, own = measured(row.top1_agreement), row.top1_agreement_control
    if found.estimate is None or own is None:
        return found
    alone = "of the engine alone" if row.is_control else f"{PERCENT.text(own.value)}% for the engine alone"
    return replace(found, includes=alone)


def _engine_note(row: VariantRow, place: Whole) -> tuple[Note, ...]:
    own = row.kl_control
    return () if own is None or row.is_control else (Note(f"the engine's own: {with_interval(own)}"),)


def _quantile(name: str, heading: str, text: str, share: float, shown: bool = False) -> Figure[Whole]:
    def value(row: VariantRow, place: Whole) -> float | None:
        return row.divergence.quantiles.get(share)

    return Figure(
        name,
        GROUP,
        heading,
        f"{KL_HELP}. {text}",
        value,
        "lower",
        NAT,
        column=f"{name}_nat",
        shown=shown,
    )


KL: Figure[Whole] = Figure(
    "kl",
    GROUP,
    "KL mean",
    f"{KL_HELP}. Mean {INTERVAL}, clustered. On another engine, what that engine changes is included. Below: whether "
    "it is more than another dtype does to the baseline and, on another engine, than the engine alone does.",
    lambda row, place: row.kl_mean,
    "lower",
    NAT,
    column="kl_mean_nat",
    interval=True,
    notes=lambda row, place: noise_note(row.kl_comparison),
    statistic=Items("kl"),
    gate=Gate("nat", HARMLESS_NAT, "mean KL divergence from the baseline, window by window", rank=20),
    ask=Ask(
        "KL",
        LimitOption("max-kl", positive, "NAT", "Mean KL divergence from the baseline.", "≤ {} nat KL", rank=40),
        Objective("kl", "the closest to the baseline", "not distinguishable by KL from", rank=40),
        Ties(harmless=HARMLESS_NAT, large=LARGE_NAT, rank=10, words="KL"),
        _read_kl,
        of_quality=True,
    ),
    axis=Axis("KL divergence from the baseline, nat per token", lambda values: True, LEAST_NAT),
    hub="kl_divergence",
    key=True,
)
KL_EXCESS: Figure[Whole] = Figure(
    "kl_excess",
    GROUP,
    "KL over control",
    "What quantization adds to what the engine changes: KL less that of the control, the unquantized model on the same "
    f"engine, token by token, {INTERVAL}. Below zero: the variant is closer to the baseline than its control. None on "
    "the engine of the reference, where the control is the baseline and its KL is 0.",
    lambda row, place: row.kl_excess,
    "lower",
    NumberStyle("nat", signed),
    where_any(lambda row: row.kl_control),
    "kl_over_control_nat",
    interval=True,
    notes=_engine_note,
)
KL_CONTROL: Figure[Whole] = Figure(
    "kl_control",
    GROUP,
    "KL of the control",
    f"KL(baseline ‖ control): what the engine alone changes. Mean {INTERVAL}, clustered.",
    lambda row, place: row.kl_control,
    "lower",
    NAT,
    where_any(lambda row: row.kl_control),
    "kl_control_mean_nat",
    shown=False,
    interval=True,
)


def _growth_note(row: VariantRow, place: Whole) -> tuple[Note, ...]:
    found = row.kl_growth
    if found is None or found.low is None or found.high is None:
        return ()
    if found.low > 1:
        return (Note("grows along an answer"),)
    return (Note("falls along an answer"),) if found.high < 1 else ()


KL_GROWTH: Figure[Whole] = Figure(
    "kl_growth",
    GROUP,
    "KL late ÷ early",
    "On a generated text: how many times larger KL is in the later halves of the answers than in the earlier ones, "
    f"{INTERVAL}, over answers. Above 1, damage builds up.",
    lambda row, place: row.kl_growth,
    "lower",
    NumberStyle("×"),
    where_any(lambda row: row.kl_growth),
    "kl_late_over_early_ratio",
    interval=True,
    notes=_growth_note,
)
AGREEMENT: Figure[Whole] = Figure(
    "agreement",
    GROUP,
    "Top-1 agreement",
    f"Share of tokens for which both find the same next token most likely, {INTERVAL}.",
    lambda row, place: row.top1_agreement,
    "higher",
    PERCENT,
    column="top1_agreement_fraction",
    interval=True,
    statistic=Items("top1_agreement"),
    gate=Gate("points", 0.01, "top-1 agreement with the baseline", usual=False, rank=30),
    ask=Ask(
        "top-1 agreement",
        LimitOption("min-agreement", share_of_one, "SHARE", "Top-1 agreement: 95%.", "≥ {}% top-1 agreement", rank=50),
        read=_read_agreement,
        of_quality=True,
    ),
    hub="top1_agreement",
)
FIGURES: tuple[Figure[Whole], ...] = (
    KL,
    *judgement(GROUP, "kl_above_noise", lambda row, place: row.kl_comparison),
    KL_EXCESS,
    KL_CONTROL,
    KL_GROWTH,
    _quantile("kl_median", "KL median", "Median.", MEDIAN),
    _quantile("kl_p90", "KL p90", "One token in ten is hit harder.", P90),
    _quantile("kl_p99", "KL p99", "One token in a hundred is hit harder.", P99, shown=True),
    _quantile("kl_p99_9", "KL p99.9", "One token in a thousand is hit harder.", P99_9),
    _quantile("kl_max", "KL max", "The worst token.", MOST),
    estimated(
        "kl_reverse_mean",
        "KL reverse",
        f"KL(variant ‖ baseline) per token. Mean {INTERVAL}.",
        lambda row: row.divergence.kl_reverse,
        NAT,
        column="kl_reverse_mean_nat",
        shown=False,
    ),
    estimated(
        "kl_batch_noise",
        "Batch noise",
        "KL of the variant from itself when two windows share a batch. A KL that is not clearly above it is noise.",
        lambda row: row.divergence.kl_batch_noise,
        NAT,
        column="kl_batch_noise_nat",
        shown=False,
    ),
    AGREEMENT,
    estimated(
        "top5_agreement",
        "Top-5 agreement",
        f"Share of the five likeliest next tokens that both have in common, {INTERVAL}.",
        lambda row: row.divergence.top5_agreement,
        PERCENT,
        direction="higher",
        column="top5_agreement_fraction",
        shown=False,
    ),
    estimated(
        "delta_p",
        "Δp",
        f"Change of the probability that the text's own next token gets, mean {INTERVAL}.",
        lambda row: row.divergence.delta_p,
        SIGNED_PERCENT,
        direction="neither",
        column="delta_p_mean_probability",
        shown=False,
    ),
)


@dataclass(frozen=True)
class Edges:
    """The tokens of a group: those with ``low`` ≤ x < ``high``; shown multiplied by ``factor``."""

    low: float
    high: float
    factor: int

    @property
    def name(self) -> str:
        return f"{self._edge(self.low)}_{self._edge(self.high)}"

    @property
    def label(self) -> str:
        return f"{self._edge(self.low)} to {self._edge(self.high)}"

    def _edge(self, value: float) -> str:
        if value % 1:
            return significant(value * self.factor, 4).rstrip("0").rstrip(".")
        return str(int(value * self.factor))


Bins = Callable[[VariantRow], tuple[Bin, ...]]


def _breakdown(by: str, factor: int, bins: Bins) -> Figure[Edges]:
    """One column per group that any variant has; the baseline does not diverge from itself."""

    def places(table: Table) -> tuple[Edges, ...]:
        diverging = (row for row in table.rows if not row.is_baseline)
        found = dict.fromkeys((each.low, each.high) for row in diverging for each in bins(row))
        return tuple(Edges(low, high, factor) for low, high in found)

    def value(row: VariantRow, place: Edges) -> Estimate | None:
        return next((each.mean for each in bins(row) if each.low == place.low), None)

    return Figure(
        f"kl_by_{by}",
        "Divergence",
        "{place}",
        "KL(baseline ‖ variant), mean over the tokens of this group, with its 95% interval.",
        value,
        "lower",
        NAT,
        places,
        f"kl_mean_nat_{by}_{{place}}",
        shown=False,
        interval=True,
    )


KL_BY_POSITION = _breakdown("position", 1, lambda row: row.kl_by_position)
KL_BY_CONFIDENCE = _breakdown("confidence", 100, lambda row: row.kl_by_confidence)
BREAKDOWNS = (KL_BY_POSITION, KL_BY_CONFIDENCE)
