"""Figures of a server under load, from when each request was sent and each piece of its answer arrived.

Definitions: TTFT is the time from sending a request to its first token. TPOT is the time per output token without the
first: (end − first token) / (tokens − 1). ITL is the time between two tokens that arrive one by one. A request meets an
SLO if it was answered and meets every limit; goodput counts those requests per second, attainment is their share
(Zhong et al., "DistServe", OSDI 2024, arXiv:2401.09670, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from harness.core.workload import Slo
from harness.stats.estimate import quantile

ITL_SHARE = 0.95
"""The share of a request's gaps between tokens that must be within the limit on ITL."""
BURST_GAP, BURST_SHARE = 0.1, 0.2
"""Tokens arrive in bursts if this share of them, or more, arrive with the one before: in one event with it, or after
less than this part of their request's mean gap."""
LAG_S, LAG_SHARE = 0.1, 0.05
"""The largest lag of a client that drives a schedule, in seconds and as a share of the schedule's length."""
LAGGING = 0.95
"""The share of requests whose lag must be within it."""
SLOT_S = 0.05
"""How long a client that keeps a number of requests open may always take from the end of one to the next; where answers
take long it may take LAG_SHARE of that, and at most LAG_S. A client that has more to read than it can has everything
wait for one round of it, which is about as long as an answer."""


@dataclass(frozen=True)
class Answered:
    """One request as its client saw it.

    ``planned_s`` is when it should have been sent and ``sent_s`` when it was, from the beginning of the load; without a
    schedule there is no plan. ``ttft_s`` and ``e2e_s`` count from sending; ``gaps_s`` are the times between the events
    that brought tokens. A request with an ``error`` has no answer.
    """

    name: str
    sent_s: float
    planned_s: float | None = None
    ttft_s: float = 0.0
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    gaps_s: Sequence[float] = ()
    error: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Seconds per token after the first; None for an answer of one token."""
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def answered(requests: Sequence[Answered]) -> list[Answered]:
    """Those without an error."""
    return [each for each in requests if not each.error]


def in_bursts(requests: Sequence[Answered]) -> bool:
    """Whether many tokens arrive with the one before, so that the gaps between events are not those between tokens."""
    several = [each for each in answered(requests) if each.output_tokens > 1]
    tokens = sum(each.output_tokens - 1 for each in several)
    together = sum(max(each.output_tokens - 1 - len(each.gaps_s), 0) for each in several)
    at_once = sum(
        gap < BURST_GAP * (each.e2e_s - each.ttft_s) / (each.output_tokens - 1)
        for each in several
        for gap in each.gaps_s
    )
    return tokens > 0 and together + at_once >= BURST_SHARE * tokens


def window_s(requests: Sequence[Answered]) -> float:
    """From the first request sent to the end of the last answer. Raises ValueError if there is none."""
    well = answered(requests)
    if not well:
        raise ValueError("no request was answered")
    return max(each.sent_s + each.e2e_s for each in well) - min(each.sent_s for each in requests)


def misses(request: Answered, slo: Slo, bursts: bool) -> tuple[str, ...]:
    """The limits that a request does not meet; ``error`` alone if it was not answered.

    The limit on ITL holds for ITL_SHARE of its gaps, or for TPOT where tokens arrive in bursts.
    """
    if request.error:
        return ("error",)
    gap = request.tpot_s if bursts or not request.gaps_s else quantile(request.gaps_s, ITL_SHARE)
    found = {
        "ttft": (request.ttft_s, slo.ttft_s),
        "tpot": (request.tpot_s, slo.tpot_s),
        "itl": (gap, slo.itl_s),
        "e2e": (request.e2e_s, slo.e2e_s),
    }
    return tuple(
        name for name, (value, limit) in found.items() if value is not None and limit is not None and value > limit
    )


def meets(requests: Sequence[Answered], slo: Slo) -> list[float]:
    """Whether each request of one level of load meets the SLO: 1 or 0."""
    bursts = in_bursts(requests)
    return [float(not misses(each, slo, bursts)) for each in requests]


def lags_s(requests: Sequence[Answered]) -> list[float]:
    """How late the client sent each request of a schedule, against the one that it sent earliest; empty without one."""
    late = [each.sent_s - each.planned_s for each in requests if each.planned_s is not None]
    return [each - min(late) for each in late]


def undriven(requests: Sequence[Answered]) -> str | None:
    """Why the client did not drive the schedule, so that the load was not the one that is named; None if it did."""
    lags = lags_s(requests)
    if not lags:
        return None
    span = max(each.planned_s or 0.0 for each in requests) - min(each.planned_s or 0.0 for each in requests)
    late, most = quantile(lags, LAGGING), min(LAG_S, LAG_SHARE * span) if span else LAG_S
    if late <= most:
        return None
    return f"the client itself sent requests {late:.3g} s late, and at most {most:.3g} s may be: it cannot drive them"


def waits_s(requests: Sequence[Answered], concurrent: int) -> list[float]:
    """How long the client took at least, each time that one of ``concurrent`` requests had ended, to send the next.

    When a request without an answer ended is not known. One that ended later stands in its place, so that the client is
    taken to have been quicker than it was, never slower.
    """
    sent = sorted(each.sent_s for each in requests)[concurrent:]
    ended = sorted(each.sent_s + each.e2e_s for each in answered(requests))
    return [max(begin - end, 0.0) for begin, end in zip(sent, ended, strict=False)]  # after the last ones comes none


def unfilled(requests: Sequence[Answered], concurrent: int) -> str | None:
    """Why the client did not keep as many requests open as it should, so that the times are its own; None if it did.

    ``requests`` are all that it sent, those that warm up included.
    """
    waits = waits_s(requests, concurrent)
    if not waits:
        return None
    wait, answer = median(waits), median(each.e2e_s for each in answered(requests))
    most = min(max(LAG_SHARE * answer, SLOT_S), LAG_S)
    if wait <= most:
        return None
    return (
        f"the client itself took {wait:.3g} s (median) from an answer's end to the next request, and at most "
        f"{most:.3g} s may pass: it cannot keep {concurrent} open"
    )
