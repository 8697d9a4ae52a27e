"""A sweep that is killed again and again ends as one that is not. A failure names its victim and its seed."""

from __future__ import annotations

import pytest
from bench import WHOLE
from kills import Victim, survive
from matrix import KILLS

pytestmark = [pytest.mark.heavy(minutes=1), pytest.mark.thorough]

VICTIMS = [each.name for each in KILLS]


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_kills(victim: Victim, make_bench, undisturbed, count) -> None:
    survive(victim, 3, 0, lambda: make_bench(WHOLE), undisturbed(WHOLE))
    count(f"random-{victim}", 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_many_kills(victim: Victim, seed: int, make_bench, undisturbed, count) -> None:
    survive(victim, 10, seed, lambda: make_bench(WHOLE), undisturbed(WHOLE))
    count(f"many-{victim}", 10)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_as_users_start_it_survives_kills(victim: Victim, make_bench, undisturbed, count) -> None:
    survive(victim, 3, 0, lambda: make_bench(WHOLE), undisturbed(WHOLE), cold=True)
    count(f"cold-{victim}", 3)
