"""A sweep that is killed again and again ends as one that is not. A failure names its victim and its seed."""

from __future__ import annotations

import pytest
from bench import WHOLE
from kills import Victim, survive

pytestmark = pytest.mark.heavy(minutes=1)

VICTIMS: tuple[Victim, ...] = ("parent", "worker", "both")


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_kills(victim: Victim, make_bench, undisturbed, count) -> None:
    survive(victim, 7, 0, lambda: make_bench(WHOLE), undisturbed(WHOLE))
    count(f"kill-{victim}", 7)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_survives_many_kills(victim: Victim, seed: int, make_bench, undisturbed, count) -> None:
    survive(victim, 10, seed, lambda: make_bench(WHOLE), undisturbed(WHOLE))
    count(f"kill-{victim}", 10)


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_sweep_as_users_start_it_survives_kills(victim: Victim, make_bench, undisturbed, count) -> None:
    survive(victim, 3, 0, lambda: make_bench(WHOLE), undisturbed(WHOLE), cold=True)
    count(f"kill-{victim}", 3)
