"""Joules per token, by each energy counter of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.core.record import Measurement
from harness.figures.ask import Ask, LimitOption, Objective, Reading, Ties, Use, measured, positive
from harness.figures.figure import Figure, Value, at_first_point
from harness.figures.formats import NumberStyle
from harness.figures.gate import Gate
from harness.figures.statistic import PerProcess
from harness.figures.table import EnergyUse, GridPoint, Table, VariantRow

GROUP = "Energy"
COUNTERS = {"NVML": "the GPU's counter", "RAPL": "the counters of CPU and memory"}
J_PER_TOK = NumberStyle("J/tok")


@dataclass(frozen=True)
class Counter:
    """An energy counter at a point of the grid."""

    point: GridPoint
    source: str

    @property
    def name(self) -> str:
        return f"{self.source.lower().replace(' ', '_')}_{self.point.name}"

    @property
    def label(self) -> str:
        return f"{COUNTERS.get(self.source, self.source)}, at {self.point.label}"


def _counters(table: Table) -> tuple[Counter, ...]:
    return tuple(dict.fromkeys(Counter(each.point, each.source) for row in table.rows for each in row.energies))


def _of(pick: Callable[[EnergyUse], Value]) -> Callable[[VariantRow, Counter], Value]:
    return lambda row, place: pick(found) if (found := row.energy_at(place.point, place.source)) else None


def _read_decode(row: VariantRow, use: Use) -> Reading:
    """Without idle power; the GPU's if the table has any, otherwise the CPU's."""
    if use.point is None:
        return Reading(None, "not measured")
    sources = {each.source for other in use.table.rows for each in other.energies}
    source = "NVML" if "NVML" in sources else next(iter(sorted(sources)), "")
    found = row.energy_at(use.point, source)
    return measured(found.decode_j_per_tok if found else None, source)


def _without_rest(measurement: Measurement) -> bool:
    """Energy at rest does not belong to the variant."""
    return measurement.protocol.get("idle") != "included"


def _figure(
    name: str,
    heading: Callable[[Table, Counter], str] | str,
    text: str,
    pick: Callable[[EnergyUse], Value],
    column: str,
    format: NumberStyle = J_PER_TOK,
    shown: bool | Callable[[Table, Counter], bool] = at_first_point,
    statistic: PerProcess | None = None,
    gate: Gate | None = None,
    ask: Ask | None = None,
) -> Figure[Counter]:
    return Figure(
        name,
        GROUP,
        heading,
        f"By {{place}}: {text}.",
        _of(pick),
        "lower",
        format,
        _counters,
        f"{column}_{{place}}",
        shown,
        interval=True,
        statistic=statistic,
        gate=gate,
        ask=ask,
    )


PREFILL_ENERGY = _figure(
    "prefill_energy",
    lambda table, place: f"Prefill, {place.source}",
    "the power at rest taken off",
    lambda energy: energy.prefill_j_per_tok,
    "prefill_j_per_tok",
    statistic=PerProcess("prefill_j_per_tok", "J/token", counted=_without_rest),
    gate=Gate("relative", 0.1, "energy of a prompt's token", usual=False, rank=80),
)
DECODE_ENERGY = _figure(
    "decode_energy",
    lambda table, place: f"Decode, {place.source}",
    "the power at rest taken off",
    lambda energy: energy.decode_j_per_tok,
    "decode_j_per_tok",
    statistic=PerProcess("decode_j_per_tok", "J/token", counted=_without_rest),
    gate=Gate("relative", 0.1, "energy of a new token", usual=False, rank=90),
    ask=Ask(
        "energy",
        LimitOption(
            "max-energy",
            positive,
            "J",
            "Per decoded token, power at rest subtracted.",
            "≤ {} J per decoded token",
            rank=90,
        ),
        Objective("energy", "the least energy", "not distinguishable by energy from", rank=60),
        Ties(),
        _read_decode,
    ),
)
FIGURES = (
    PREFILL_ENERGY,
    DECODE_ENERGY,
    _figure(
        "idle_power",
        lambda table, place: f"At rest, {place.source}",
        "power at rest",
        lambda energy: energy.idle_power_w,
        "idle_power_w",
        NumberStyle("W"),
    ),
    _figure(
        "prefill_energy_with_rest",
        "",
        "the power at rest included",
        lambda energy: energy.prefill_with_idle_j_per_tok,
        "prefill_with_idle_j_per_tok",
        shown=False,
    ),
    _figure(
        "decode_energy_with_rest",
        "",
        "the power at rest included",
        lambda energy: energy.decode_with_idle_j_per_tok,
        "decode_with_idle_j_per_tok",
        shown=False,
    ),
)
