"""The load generator against a server whose latencies are known: ``python benchmarks/load_generator.py``.

Needs the stack vllm. The server of the tests (``tests/support/clock_server.py``) keeps when it received each request
and when it sent each token, by the clock that the client reads. Prints how far the client's times are from those of
the server, for a schedule and for requests at the same time, with tokens one by one and in bursts of four, and how late
it sent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from clock_server import MODEL, Answer, Served, clock_server

from harness.core.capability import Endpoint
from harness.core.job import MeasureServing
from harness.execution.load import load_generator_of
from harness.host.machine import cache_folder
from harness.stacks import Stacks
from harness.stats.estimate import quantile
from harness.stats.serving import Answered, in_bursts, lags_s
from harness.text.load import PlannedRequest

REQUESTS, TOKENS, RATE_PER_S, AT_ONCE = 200, 24, 20.0, 8


def main() -> None:
    python = Stacks(cache_folder() / "stacks").find(MeasureServing.stacks[0]).python
    for burst in (1, 4):
        with clock_server(lambda number, active, burst=burst: _answer(number, burst)) as server:  # type: ignore[misc]
            endpoint = Endpoint(server.url, MODEL)
            with load_generator_of(python, endpoint) as generator:
                for at_once in (None, AT_ONCE):
                    planned = [
                        PlannedRequest(
                            f"r{each}", f"request {each}", TOKENS, each / RATE_PER_S if at_once is None else None
                        )
                        for each in range(REQUESTS)
                    ]
                    before = len(server.served)
                    found = generator.drive(endpoint, planned, at_once, natural=False)
                    load = f"{RATE_PER_S:g} requests/s" if at_once is None else f"{at_once} concurrent"
                    print(f"{generator.version}, {load}, tokens {burst} at a time")
                    _print(found, server.served[before:])


def _answer(number: int, burst: int) -> Answer:
    return Answer(first_s=0.02 + 0.01 * (number % 5), gap_s=(0.005 + 0.002 * (number % 3)) * burst, burst=burst)


def _print(answers: Sequence[Answered], served: Sequence[Served]) -> None:
    pairs = [(each, next(own for own in served if own.prompt == f"request {each.name[1:]}")) for each in answers]
    _line("TTFT", (each.ttft_s - (own.sent_s[0] - own.received_s) for each, own in pairs))
    _line("E2E", (each.e2e_s - (own.sent_s[-1] - own.received_s) for each, own in pairs))
    _line("TPOT", ((each.tpot_s or 0) - (own.sent_s[-1] - own.sent_s[0]) / (TOKENS - 1) for each, own in pairs))
    if lags := lags_s(answers):
        _line("lag of sending", lags)
    print(f"  seen as bursts: {in_bursts(answers)}")


def _line(name: str, errors_s: Iterable[float]) -> None:
    errors = [1000 * abs(each) for each in errors_s]
    print(f"  {name}: off by {quantile(errors, 0.5):.2f} ms in the median, {quantile(errors, 0.99):.2f} ms in p99")


if __name__ == "__main__":
    main()
