"""``kill -9`` at random instants: of the sweep, of its worker, of both."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import psutil
from bench import Bench, Ended, Figures, Running

Victim = Literal["parent", "worker", "both"]

LATEST_S = 1.5
"""The latest instant; the first sweep to which nothing happens takes about as long where nothing else runs."""
LATEST_COLD_S = 25.0


def kill(running: Running, victim: Victim, draws: random.Random) -> bool:
    """Kills now. Returns whether the victim was still there."""
    below = [] if victim == "parent" else running.workers()
    if victim == "worker":
        if below:
            _send(draws.choice(below), signal.SIGKILL)  # the worker itself, or its guard
        return bool(below)
    if not running.is_running():
        return False
    for each in below:
        _send(each, signal.SIGSTOP)  # so that none sees another end
    for each in (running.process, *below):
        _send(each, signal.SIGKILL)
    return True


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def survive(
    victim: Victim, kills: int, seed: int, make: Callable[[], Bench], undisturbed: Figures, cold: bool = False
) -> int:
    """Runs and resumes sweeps, each killed at a random instant, until so many kills hit; returns the sweeps finished.

    Raises AssertionError for a sweep that ends other than undisturbed.
    """
    draws = random.Random(f"{victim} {seed}")
    finished, hit = 0, 0
    bench = make()
    while True:
        running = bench.start(cold=cold)
        if hit < kills:
            instant_s = draws.uniform(0, LATEST_COLD_S if cold else LATEST_S)
            time.sleep(instant_s)
            hit += kill(running, victim, draws)
        ended = running.wait()
        _check(bench, ended, victim)
        if ended.code == 0:
            bench.check(undisturbed)
            finished += 1
            if hit == kills:
                return finished
            bench = make()


def _check(bench: Bench, ended: Ended, victim: Victim) -> None:
    """Raises AssertionError for what no kill may leave: a process, a record that is no record, an error of ours."""
    assert "Traceback" not in ended.output, ended.output
    assert ended.code in ((0, 3) if victim == "worker" else (0, -signal.SIGKILL)), ended.output
    assert bench.processes() == []
    succeeded = [record.spec.run_id for record in bench.records() if record.status == "ok"]
    assert len(succeeded) == len(set(succeeded)), "a run is recorded twice"
