"""The requests of a load: what is asked, and when. They follow from the workload and a seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from harness.core.identity import digest
from harness.core.workload import ServingWorkload
from harness.errors import InvalidRunError
from harness.text.sources import rows, whole

VERSION = 1
"""Increment it when the same workload makes other requests."""
DIGEST_CHARACTERS = 12
FEWEST = 2
"""Requests that count at every level."""


@dataclass(frozen=True)
class PlannedRequest:
    """A request: at most ``new_tokens`` after the prompt, at ``at_s`` of its level; None: as soon as there is room."""

    name: str
    prompt: str
    new_tokens: int
    at_s: float | None


class Prompts:
    """Prompts from a text: pieces of it of so many tokens by the model's ``tokenizer``, or its rows.

    Raises InvalidRunError if the text is too short for them.
    """

    def __init__(self, workload: ServingWorkload, tokenizer: Any) -> None:
        self._length, self._tokenizer = workload.prompt_tokens, tokenizer
        if self._length is None:
            self._rows = [row.strip() for row in rows(workload.text) if row.strip()]
            self._count = len(self._rows)
        else:
            self._ids: list[int] = tokenizer.encode(whole(workload.text), add_special_tokens=False)
            self._count = len(self._ids) - self._length + 1
        if self._count < 1:
            raise InvalidRunError(
                f"{workload.text.id}: has no prompt of {self._length or 'one'} tokens; name a longer text"
            )

    def draw(self, random: Random) -> str:
        place = random.randrange(self._count)
        if self._length is None:
            return self._rows[place]
        return str(self._tokenizer.decode(self._ids[place : place + self._length]))

    def tokens(self, prompt: str) -> int:
        """How many tokens a prompt has."""
        return len(self._tokenizer.encode(prompt))


def requests(workload: ServingWorkload, level: float, seed: int, prompts: Prompts) -> tuple[PlannedRequest, ...]:
    """The requests of one level, those to warm up with first. No two levels share their prompts, but by chance."""
    random = Random(f"{seed} {level!r}")
    return tuple(
        PlannedRequest(f"r{number:05d}", prompts.draw(random), workload.new_tokens, at_s)
        for number, at_s in enumerate(arrivals(workload, level, seed))
    )


def arrivals(workload: ServingWorkload, level: float, seed: int) -> list[float | None]:
    """When each request comes, in seconds. Schedules of all rates are one schedule at different speeds.

    At a low rate a duration is prolonged until two requests have come after those that warm up.
    """
    least = workload.warmup + (workload.requests or FEWEST)
    if workload.arrival == "concurrent":
        return [None] * least
    random, now = Random(seed), 0.0
    found: list[float] = []
    while len(found) < least or (workload.duration_s is not None and now <= workload.duration_s):
        found.append(now)
        now += (random.expovariate(1.0) if workload.arrival == "poisson" else 1.0) / level
    return [*found]


def digest_of(planned: Sequence[PlannedRequest]) -> str:
    """Equal for equal requests at equal times."""
    return digest([[each.prompt, each.new_tokens, each.at_s] for each in planned])[:DIGEST_CHARACTERS]
