"""The real load generator against a server whose latencies are known: it sees them as they were sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import pytest
from clock_server import MODEL, Answer, Served, clock_server

from harness.core.capability import Endpoint
from harness.execution.load import load_generator_of
from harness.stacks import Stacks
from harness.stats.serving import Answered, in_bursts, lags_s
from harness.text.load import PlannedRequest

pytestmark = pytest.mark.stack

CLOSE_S = 0.15
"""A busy machine delays a process, and half of the times must be closer than this. One that is taken for another is
further away: the last token comes 0.3 s after the first."""


def plan(number: int, active: int) -> Answer:
    """Every seventh request is refused, and every third answered in bursts of four tokens."""
    if number % 7 == 6:
        return Answer(status=503)
    burst = 4 if number % 3 == 2 else 1
    return Answer(first_s=0.05 + 0.02 * (number % 5), gap_s=0.02 * burst, burst=burst)


@pytest.fixture(scope="module")
def seen(stacks_with: Callable[[str], Stacks]) -> dict[str, tuple[list[Answered], list[Served]]]:
    """What the client and the server saw of each load."""
    python = stacks_with("vllm").find("vllm").python
    scheduled = [PlannedRequest(f"r{number}", f"request {number}", 16, number * 0.05) for number in range(30)]
    found = {}
    with clock_server(plan) as server:
        endpoint = Endpoint(server.url, MODEL)
        with load_generator_of(python, endpoint) as generator:
            assert generator.version.startswith("vLLM ")
            for name, requests, at_once in (
                ("scheduled", scheduled, None),
                ("concurrent", [replace(each, at_s=None) for each in scheduled], 3),
            ):
                before = len(server.served)
                answers = generator.drive(endpoint, requests, at_once, natural=False)
                found[name] = answers, server.served[before:]
    return found


@pytest.mark.parametrize("load", ["scheduled", "concurrent"])
def test_times_are_those_of_the_server(seen: dict[str, tuple[list[Answered], list[Served]]], load: str) -> None:
    answers, served = seen[load]
    well = [(each, _of(each, served)) for each in answers if not each.error]
    assert len(answers) == 30
    assert len(well) == 30 - sum(each.number % 7 == 6 for each in served)
    assert {each.output_tokens for each, _ in well} == {16}
    late_s = [each.ttft_s - (own.sent_s[0] - own.received_s) for each, own in well]
    late_s += [each.e2e_s - (own.sent_s[-1] - own.received_s) for each, own in well]
    assert min(late_s) >= 0, "a client asks before the server hears it, and reads after it was sent"
    _close(late_s)
    _close([15 * (each.tpot_s or 0.0) - (own.sent_s[-1] - own.sent_s[0]) for each, own in well])


def test_a_schedule_is_kept_and_so_many_wait_at_a_time(seen: dict[str, tuple[list[Answered], list[Served]]]) -> None:
    _close(lags_s(seen["scheduled"][0]))
    answers = seen["concurrent"][0]
    at_once = [
        sum(other.sent_s <= each.sent_s < other.sent_s + other.e2e_s for other in answers if not other.error)
        for each in answers
    ]
    assert max(at_once) <= 3


def test_bursts_are_told_from_single_tokens(seen: dict[str, tuple[list[Answered], list[Served]]]) -> None:
    answers, served = seen["scheduled"]
    for expected in (False, True):
        assert in_bursts([each for each in answers if (_of(each, served).number % 3 == 2) == expected]) == expected


def test_a_server_that_refuses_all_is_no_fault_of_the_client(stacks_with: Callable[[str], Stacks]) -> None:
    python = stacks_with("vllm").find("vllm").python
    refused = [PlannedRequest(f"r{number}", f"request {number}", 4, None) for number in range(4)]
    with clock_server(lambda number, active: Answer(status=503)) as server:
        endpoint = Endpoint(server.url, MODEL)
        with load_generator_of(python, endpoint) as generator:
            found = generator.drive(endpoint, refused, 2, natural=True)
    assert {each.error for each in found} == {"Service Unavailable"}
    assert (len(server.served), server.reused) == (4, 0)


def test_no_request_is_lost_with_a_connection_that_a_server_ends(stacks_with: Callable[[str], Stacks]) -> None:
    """One at a time, so that a client that kept its connection would send the next request on it."""
    python = stacks_with("vllm").find("vllm").python
    requests = [PlannedRequest(f"r{number}", f"request {number}", 2, None) for number in range(6)]
    with clock_server(lambda number, active: Answer()) as server:
        endpoint = Endpoint(server.url, MODEL)
        with load_generator_of(python, endpoint) as generator:
            found = generator.drive(endpoint, requests, 1, natural=False)
    assert not any(each.error for each in found)
    assert (len(server.served), server.reused) == (6, 0)


def _of(answer: Answered, served: Sequence[Served]) -> Served:
    """What the server saw of a request."""
    number = answer.name.removeprefix("r")
    return next(each for each in served if each.prompt == f"request {number}")


def _close(differences: Sequence[float]) -> None:
    assert median(map(abs, differences)) < CLOSE_S
