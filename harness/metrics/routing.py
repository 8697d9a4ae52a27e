"""How far the routers of a variant agree with the baseline's on the same text: shared experts, and KL by block."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from harness.core.capability import Routed
from harness.core.metric import Windows
from harness.core.record import Measurement

if TYPE_CHECKING:
    import torch

VERSION = 1
OVERLAP, KL = "router_overlap", "router_kl"


class RouterAgreement:
    """Compares routers token by token; one value per window and block, the mean over the window's scored positions.

    ``router_overlap`` is the share of a token's experts that both routers choose. ``router_kl`` is
    KL(baseline ‖ variant) of the routers' distributions over all experts, in nats (``log_distribution`` says which).
    ``kept`` returns what the baseline's router did in a block with the tokens from one to before another, of all that
    the windows read, one after the other. Clusters are the documents, or the windows if there is only one document: the
    blocks of a window are not independent.

    ``infinite`` counts, by block, the tokens of which no KL is known: a router that computes probabilities gives an
    expert exactly 0 where they underflow, and if the baseline's gives it more the divergence is infinite. One such
    token leaves ``router_kl`` out.
    """

    def __init__(self, windows: Windows, kept: Callable[[str, int, int], Routed]) -> None:
        self._windows, self._kept = windows, kept
        self._starts = [0]
        for tokens in windows.tokens:
            self._starts.append(self._starts[-1] + len(tokens) - 1)
        self._seen: dict[str, int] = defaultdict(int)
        self._sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        self.infinite: Counter[str] = Counter()

    def see(self, block: str, routed: Routed) -> None:
        """The next tokens of a block; every block reads the windows in order, whole or in parts."""
        begin = self._seen[block]
        end = self._seen[block] = begin + len(routed.chosen)
        for window in range(bisect_right(self._starts, begin) - 1, bisect_left(self._starts, end)):
            start, stop = self._starts[window : window + 2]
            first = max(begin, start + self._windows.firsts[window] - 1)
            last = min(end, stop)
            if first < last:
                part = slice(first - begin, last - begin)
                own = Routed(routed.scores[part], routed.chosen[part])
                self._add(window, block, self._kept(block, first, last), own)

    def finish(self) -> Sequence[Measurement]:
        sums = dict(sorted(self._sums.items(), key=lambda item: item[0][0]))  # a streamed model reads block by block
        names = self._windows.clusters
        quantities: tuple[tuple[str, str, Literal["lower", "higher"]], ...] = (
            (OVERLAP, "fraction", "higher"),
            (KL, "nat", "lower"),
        )
        return [
            Measurement(
                metric=metric,
                version=VERSION,
                unit=unit,
                direction=direction,
                evidence="paired",
                values=tuple(each[index] / each[2] for each in sums.values()),
                weights=tuple(each[2] for each in sums.values()),
                item_ids=tuple(f"{window}:{block}" for window, block in sums),
                cluster_ids=tuple(names[window] for window, _ in sums),
                protocol=self._windows.protocol,
            )
            for index, (metric, unit, direction) in enumerate(quantities)
            if metric == OVERLAP or not self.infinite
        ]

    def _add(self, window: int, block: str, theirs: Routed, own: Routed) -> None:
        from harness.models.routers import log_distribution

        both = (theirs.chosen.unsqueeze(2) == own.chosen.to(theirs.chosen.device).unsqueeze(1)).any(dim=2)
        nats = _divergence(log_distribution(theirs.scores), log_distribution(own.scores))
        sums = self._sums[window, block]
        sums[0] += float(both.double().mean(dim=1).sum())
        sums[1] += float(nats.sum())
        sums[2] += len(own.chosen)
        if math.isinf(sums[1]):
            self.infinite[block] += int(nats.isinf().sum())


def _divergence(base: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL of each row in nats; an expert that the baseline cannot choose adds nothing."""
    terms = base.exp() * (base - own.to(base.device))
    return terms.where(base.exp() > 0, 0.0).sum(dim=-1)
