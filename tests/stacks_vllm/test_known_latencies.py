"""From servers whose latencies are known, through a sweep, to the figures of a report: they are those planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from clock_server import MODEL, Answer, clock_server

from harness.analysis.tradeoff import tradeoff
from harness.api.plan import plan
from harness.figures.figure import Figure
from harness.figures.serving import CAPACITY, E2E, FIGURES, GOODPUT, TPOT, TTFT
from harness.figures.table import Load, VariantRow
from harness.recipe import Text, load_recipe
from harness.stacks import Stacks
from harness.stats.estimate import Estimate
from harness.text.sources import resolve, rows

pytestmark = [
    pytest.mark.stack,
    pytest.mark.slow,
]  # a minute and a half, and other tests at the same time would delay answers

RATES, WARMUP, REQUESTS, TOKENS = (3.0, 4.0, 6.0), 1, 14, 8
CROSSOVER = 5.0
TTFT_LIMIT_S, TPOT_LIMIT_S = 0.84, 0.198
CLOSE_S, CLOSE_SHARE = 0.1, 0.08
"""What a busy machine may add to a latency, and change of a rate or a ratio. No planted latency is so near a limit."""
BY_NAME = {each.name: each for each in FIGURES}
COUNTED = range(WARMUP, WARMUP + REQUESTS)
"""The requests of a level that count, by their places in it."""


@dataclass(frozen=True)
class Planted:
    """What answers take at each rate: longer under more load, and for every seventh request longer by 0.8 s.

    A variant takes rate / CROSSOVER times as long as the baseline.
    """

    variant: bool

    def factor(self, rate: float) -> float:
        return rate / CROSSOVER if self.variant else 1.0

    def ttft_s(self, rate: float, slow: bool) -> float:
        return self.factor(rate) * (0.1 * rate + 0.8 * slow)

    def tpot_s(self, rate: float) -> float:
        return self.factor(rate) * 0.03 * rate

    def e2e_s(self, rate: float, slow: bool) -> float:
        return self.ttft_s(rate, slow) + (TOKENS - 1) * self.tpot_s(rate)

    def goodput_per_s(self, rate: float) -> float:
        met = [self.ttft_s(rate, _slow(each)) <= TTFT_LIMIT_S and self.tpot_s(rate) <= TPOT_LIMIT_S for each in COUNTED]
        last_s = max(each / rate + self.e2e_s(rate, _slow(each)) for each in COUNTED)
        return sum(met) / (last_s - COUNTED[0] / rate)

    def answer(self, number: int, active: int) -> Answer:
        """Levels are measured one after the other, the lowest first."""
        level, place = divmod(number, WARMUP + REQUESTS)
        rate = RATES[level]
        return Answer(first_s=self.ttft_s(rate, _slow(place)), gap_s=self.tpot_s(rate))


def _slow(place: int) -> bool:
    """Two of the fourteen requests of a level: p50 is that of the others, and p95 theirs."""
    return place % 7 == 3


@pytest.fixture(scope="module")
def measured(
    sweep_type, tiny, stacks_with: Callable[[str], Stacks], tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, VariantRow]:
    """The rows of the baseline (False) and of the variant (True) after a sweep of both."""
    sweeps, stacks = sweep_type(tmp_path_factory.mktemp("known")), stacks_with("vllm")
    with clock_server(Planted(False).answer) as base, clock_server(Planted(True).answer) as variant:
        serving = {
            "arrival": "constant",
            "rates": list(RATES),
            "prompts": {"text": "demo_prompts", "tokens": "rows"},
            "new_tokens": TOKENS,
            "warmup": WARMUP,
            "requests": REQUESTS,
            "slo": {"ttft": TTFT_LIMIT_S, "tpot": TPOT_LIMIT_S, "attainment": 0.8},
        }
        recipe = {
            "models": [{"id": str(tiny), "dtype": "float32", "label": "tiny"}],
            "engines": ["endpoint"],
            "baseline": {"served": {"url": base.url, "model": MODEL, "label": "baseline"}},
            "methods": [{"served": {"url": variant.url, "model": MODEL, "label": "variant"}}],
            "measure": {"serving": serving},
            "device": "cpu",
            "threads": 1,
        }
        records = sweeps.make(plan(load_recipe(sweeps.recipe(recipe)), stacks=stacks), stacks=stacks)
    asked = [each.prompt for each in base.served]
    assert asked == [each.prompt for each in variant.served]
    assert set(asked) <= {each.strip() for each in rows(resolve(Text(name="demo_prompts"), sweeps.folder))}
    assert len(asked) == len(RATES) * (WARMUP + REQUESTS)
    assert [each.status for each in records] == ["ok"] * len(records), [each.outcome.failure for each in records]
    (table,) = tradeoff(records)
    return {not row.is_baseline: row for row in table.rows}


def values(figure: Figure[Load], row: VariantRow) -> list[float]:
    """A figure at each rate."""
    found = [figure.of(row, each.load) for each in row.served]
    assert all(isinstance(each, Estimate) for each in found), found
    return [each.value for each in found]  # type: ignore[union-attr]


@pytest.mark.parametrize("variant", [False, True])
def test_latencies_are_those_planted(measured: dict[bool, VariantRow], variant: bool) -> None:
    planted, row = Planted(variant), measured[variant]
    assert tuple(each.load.level for each in row.served) == RATES
    for percentile, slow in ((0, False), (1, True)):
        expected = [planted.ttft_s(rate, slow) for rate in RATES]
        assert values(TTFT[percentile], row) == pytest.approx(expected, abs=CLOSE_S)
        expected = [planted.e2e_s(rate, slow) for rate in RATES]
        assert values(E2E[percentile], row) == pytest.approx(expected, abs=CLOSE_S)
        expected = [planted.tpot_s(rate) for rate in RATES]
        assert values(TPOT[percentile], row) == pytest.approx(expected, abs=CLOSE_S / (TOKENS - 1))


@pytest.mark.parametrize(("variant", "held"), [(False, 6.0), (True, 4.0)])
def test_goodput_and_the_largest_load_are_those_planted(
    measured: dict[bool, VariantRow], variant: bool, held: float
) -> None:
    row = measured[variant]
    expected = [Planted(variant).goodput_per_s(rate) for rate in RATES]
    assert values(GOODPUT, row) == pytest.approx(expected, rel=CLOSE_SHARE)
    (ladder,) = row.ladders
    largest = CAPACITY.of(row, ladder.load)
    assert isinstance(largest, Estimate)
    assert largest.value == held


def test_the_crossover_is_the_one_planted(measured: dict[bool, VariantRow]) -> None:
    row = measured[True]
    assert values(BY_NAME["served_ratio"], row) == pytest.approx([CROSSOVER / rate for rate in RATES], rel=CLOSE_SHARE)
    (ladder,) = row.ladders
    assert ladder.crossover is not None
    assert ladder.crossover.slower
    assert ladder.crossover.level == pytest.approx(CROSSOVER, rel=CLOSE_SHARE)
