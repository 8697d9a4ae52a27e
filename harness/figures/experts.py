"""Mixtures of experts: how far a variant's routers agree with the baseline's, and what its calibration reached."""

from __future__ import annotations

from collections.abc import Callable

from harness.core.protocols import STARVED_TOKENS
from harness.figures.control import where_any
from harness.figures.derived.experts import KL, OVERLAP, TOKENS, ExpertAudit
from harness.figures.divergence import NAT
from harness.figures.figure import Axis, Direction, Figure, Value, Whole
from harness.figures.formats import DECIMAL, PERCENT, WHOLE_NUMBER, SizeUnit, in_unit, size_unit
from harness.figures.gate import Gate
from harness.figures.statistic import Count, Items, Measured
from harness.figures.table import Table, VariantRow

GROUP = "Experts"
HARMLESS_NAT = 0.001


def _of(pick: Callable[[ExpertAudit], Value]) -> Callable[[VariantRow, Whole], Value]:
    return lambda row, place: pick(row.experts) if row.experts else None


def _counted(count: Callable[[list[float], float], int]) -> Callable[[Measured], float | None]:
    """From the tokens of each expert and the limit below which one is starved."""

    def of(found: Measured) -> float | None:
        return next(
            (float(count(list(each.values), float(each.protocol["starved"] or 0))) for each in found[TOKENS]), None
        )

    return of


def _experts(
    name: str,
    heading: str,
    text: str,
    says: str,
    pick: Callable[[ExpertAudit], int],
    of: Callable[[Measured], float | None],
) -> Figure[Whole]:
    """A count of experts; it takes the place of a column where a calibrated method was audited."""
    direction: Direction = "lower"
    return Figure(
        name,
        GROUP,
        heading,
        text,
        _of(lambda audit: float(pick(audit)) if audit.loads else None),
        direction,
        WHOLE_NUMBER,
        where_any(lambda row: row.experts and row.experts.loads),
        name,
        statistic=Count(TOKENS, of),
        gate=Gate("unit", 0, says, usual=False),
    )


ROUTER_OVERLAP: Figure[Whole] = Figure(
    "router_overlap",
    GROUP,
    "Routers agree",
    "Share of a token's experts that the baseline's router chooses too, mean over tokens and layers, with its 95% "
    "interval, clustered by document or window.",
    _of(lambda audit: audit.overlap),
    "higher",
    PERCENT,
    where_any(lambda row: row.experts and row.experts.overlap),
    "router_overlap_fraction",
    interval=True,
    statistic=Items(OVERLAP),
    gate=Gate("points", 0.01, "share of the experts that routers choose as the baseline's do", usual=False),
    axis=Axis("experts chosen as by the baseline, {unit}"),
    key=True,
)
ROUTER_KL: Figure[Whole] = Figure(
    "router_kl",
    GROUP,
    "Router KL",
    "KL(baseline ‖ variant) of the routers' distributions over all experts, mean over tokens and layers, with its 95% "
    "interval, clustered by document or window.",
    _of(lambda audit: audit.kl),
    "lower",
    NAT,
    where_any(lambda row: row.experts and row.experts.kl),
    "router_kl_nat",
    interval=True,
    statistic=Items(KL),
    gate=Gate("nat", HARMLESS_NAT, "KL divergence of the routers' distributions from the baseline's", usual=False),
)
DEAD_EXPERTS = _experts(
    "dead_experts",
    "Dead experts",
    "Experts that saw no token of the calibration set, by the unquantized model's own routers.",
    "experts that saw no calibration token",
    lambda audit: audit.dead,
    _counted(lambda tokens, limit: sum(count == 0 for count in tokens)),
)
STARVED_EXPERTS = _experts(
    "starved_experts",
    "Starved experts",
    f"Experts that saw some tokens of the calibration set, but fewer than {STARVED_TOKENS}.",
    "experts that saw few calibration tokens",
    lambda audit: audit.starved,
    _counted(lambda tokens, limit: sum(0 < count < limit for count in tokens)),
)


def _unit(table: Table) -> SizeUnit:
    sizes = (row.experts.active_bytes for row in table.rows if row.experts and row.experts.active_bytes)
    return size_unit(map(int, sizes), DECIMAL)


ACTIVE_BYTES: Figure[Whole] = Figure(
    "active_bytes",
    GROUP,
    "Active bytes",
    "Bytes of weights that decoding one token reads at batch 1: everything but the experts that it does not go to.",
    _of(lambda audit: audit.active_bytes),
    "lower",
    lambda table, place: in_unit(_unit(table)),
    where_any(lambda row: row.experts and row.experts.active_bytes),
    "active_bytes_per_token",
)
FIGURES: tuple[Figure[Whole], ...] = (ROUTER_OVERLAP, ROUTER_KL, DEAD_EXPERTS, STARVED_EXPERTS, ACTIVE_BYTES)
