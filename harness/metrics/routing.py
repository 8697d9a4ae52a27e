"""How far the routers of a variant agree with the baseline's on the same text: shared experts, and KL by block."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
    ``kept`` returns what the baseline's routers did in a window, one row per token read. Clusters are the documents,
    or the windows if there is only one document: the blocks of a window are not independent.
    """

    def __init__(self, windows: Windows, kept: Callable[[int], Mapping[str, Routed]]) -> None:
        self._windows, self._kept = windows, kept
        self._starts = [0]
        for tokens in windows.tokens:
            self._starts.append(self._starts[-1] + len(tokens) - 1)
        self._seen: dict[str, int] = defaultdict(int)
        self._sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
        self._last: tuple[int, Mapping[str, Routed]] = -1, {}

    def see(self, block: str, routed: Routed) -> None:
        """The next tokens of a block; every block reads the windows in order, whole or in parts."""
        begin = self._seen[block]
        end = self._seen[block] = begin + len(routed.chosen)
        for window in range(bisect_right(self._starts, begin) - 1, bisect_left(self._starts, end)):
            start, stop = self._starts[window : window + 2]
            first = max(begin, start + self._windows.firsts[window] - 1)
            last = min(end, stop)
            if first < last:
                theirs = self._of(window)[block]
                self._add(
                    self._sums[window, block],
                    Routed(theirs.scores[first - start : last - start], theirs.chosen[first - start : last - start]),
                    Routed(routed.scores[first - begin : last - begin], routed.chosen[first - begin : last - begin]),
                )

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
        ]

    def _of(self, window: int) -> Mapping[str, Routed]:
        """What the baseline did; one window is kept in memory."""
        if self._last[0] != window:
            self._last = window, self._kept(window)
        return self._last[1]

    def _add(self, sums: list[float], theirs: Routed, own: Routed) -> None:
        from harness.models.routers import log_distribution

        both = (theirs.chosen.unsqueeze(2) == own.chosen.to(theirs.chosen.device).unsqueeze(1)).any(dim=2)
        sums[0] += float(both.double().mean(dim=1).sum())
        sums[1] += float(_divergence(log_distribution(theirs.scores), log_distribution(own.scores)).sum())
        sums[2] += len(own.chosen)


def _divergence(base: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """KL of each row in nats; an expert that the baseline cannot choose adds nothing."""
    terms = base.exp() * (base - own.to(base.device))
    return terms.where(base.exp() > 0, 0.0).sum(dim=-1)
