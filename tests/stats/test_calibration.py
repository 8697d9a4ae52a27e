"""The promises of the verdicts, simulated: fixed seeds, a thousand pairs or more of every family.

The whole grids are run by hand: benchmarks/stats_calibration.py and nested_samples.py, of which this is a part.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from modules_by_path import module_at

from harness.stats.bounds import two_sided
from harness.stats.comparison import holm
from harness.stats.paired import pair
from harness.stats.rule import compare
from harness.stats.significance import clustered_t

PAIRS = 1000


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
calibration, nested = module_at(BENCHMARKS / "stats_calibration.py"), module_at(BENCHMARKS / "nested_samples.py")
LIMIT = calibration.allowed(calibration.ALPHA, PAIRS)
NAMES = list(calibration.FAMILIES)


@pytest.mark.parametrize("units", [8, 24])
@pytest.mark.parametrize("name", NAMES)
def test_no_more_false_alarms_than_alpha(name: str, units: int) -> None:
    family = calibration.FAMILIES[name]
    assert calibration.false_alarms(family, units, PAIRS, np.random.default_rng(units)) <= LIMIT


@pytest.mark.parametrize(("units", "pairs"), [(10, PAIRS), (50, 300)])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tied, 9 of 10"])
def test_no_more_false_equivalences_than_alpha(name: str, units: int, pairs: int) -> None:
    family = calibration.FAMILIES[name]
    wrong = calibration.false_equivalences(family, units, pairs, np.random.default_rng(units))
    assert wrong <= calibration.allowed(calibration.ALPHA, pairs)


@pytest.mark.parametrize("zeros", [0.0, *calibration.ZEROS])
@pytest.mark.parametrize("units", [4, 6, 11])
def test_no_more_false_alarms_of_speeds_than_alpha(units: int, zeros: float) -> None:
    """Also of rates of which some or half are zero, by chance, on either side; from 11 on by Welch's test of ranks."""
    assert calibration.speed_alarms(units, PAIRS, np.random.default_rng(units), zeros=zeros) <= LIMIT


@pytest.mark.parametrize("name", list(nested.FAMILIES))
def test_no_more_false_alarms_of_eight_samples_of_a_question_than_alpha(name: str) -> None:
    family, generator = nested.FAMILIES[name], np.random.default_rng(30)
    found = [compare(*family.draw(generator, 30, 8), nested.MARGIN, "higher").different for _ in range(300)]
    assert np.mean(found) <= calibration.allowed(calibration.ALPHA, 300)


@pytest.mark.parametrize("units", [6, 7, 15, 16, 17, 18, 49, 50, 51, 200])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("tied")])
def test_what_is_plain_is_found_at_every_n(name: str, units: int) -> None:
    family = calibration.FAMILIES[name]
    assert calibration.power_on_separated(family, units, 10, np.random.default_rng(units)) == 1


@pytest.mark.parametrize("units", [2, 3, 5])
@pytest.mark.parametrize("name", NAMES)
def test_below_the_least_n_nothing_is_claimed(name: str, units: int) -> None:
    family = calibration.FAMILIES[name]
    found = family.draw(np.random.default_rng(units), units, family.errors(units, calibration.FAR)).compare(1.0)
    assert found.verdict == "inconclusive"
    assert found.units_needed is not None
    assert found.units_needed >= 6


@pytest.mark.parametrize("units", [16, 49])
@pytest.mark.parametrize("name", ["normal", "lognormal", "clustered"])
def test_power_does_not_fall_where_another_test_takes_over(name: str, units: int) -> None:
    family, seeds = calibration.FAMILIES[name], [np.random.default_rng(units) for _ in range(2)]
    before, after = (calibration.power(family, units + more, 200, seed) for more, seed in enumerate(seeds))
    assert after > before - 0.1


def test_a_t_test_over_windows_would_not_keep_its_level() -> None:
    """What the allowance for neighbours is for: without it a quarter of the alarms would be false."""
    family, generator = calibration.FAMILIES["AR(1) windows"], np.random.default_rng(1)
    alarms = []
    for _ in range(300):
        pairs = pair(*family.draw(generator, 50, 0.0).measurements())
        alarms.append(two_sided(clustered_t(pairs.sums, pairs.sizes)) <= 0.05)
    assert np.mean(alarms) > 0.15


def test_items_of_a_cluster_taken_for_independent_would_not_either() -> None:
    family, generator = calibration.FAMILIES["clustered"], np.random.default_rng(1)
    alarms = []
    for _ in range(300):
        draw = family.draw(generator, 30, 0.0)
        difference = draw.variant - draw.baseline
        alarms.append(two_sided(clustered_t(difference, np.ones(len(difference)))) <= 0.05)
    assert np.mean(alarms) > 0.1


def test_among_many_the_chance_of_any_false_alarm_is_alpha() -> None:
    """Eight comparisons together: without Holm a third of such families would hold a false alarm."""
    family, generator = calibration.FAMILIES["normal"], np.random.default_rng(2)
    families = [[family.draw(generator, 20, 0.0).compare(calibration.NO_MARGIN) for _ in range(8)] for _ in range(250)]
    assert np.mean([any(each.different for each in found) for found in families]) > 0.2
    assert np.mean([any(each.different for each in holm(found)) for found in families]) <= calibration.allowed(
        0.05, 250
    )
