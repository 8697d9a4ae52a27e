"""Divergence of a variant from the unquantized baseline, token by token over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import Chunk, Metric, Windows
from harness.record import Measurement

VERSION = 1


class Divergence:
    """KL(baseline ‖ variant) in nats (Kullback and Leibler 1951) and top-1 agreement of every scored token."""

    def __init__(self, windows: Windows, metric: str = "kl") -> None:
        self._protocol = windows.protocol
        self._metric = metric
        self._kl: list[float] = []
        self._agrees: list[float] = []
        self._items: list[tuple[int, int]] = []

    def observe(self, chunk: Chunk) -> None:
        base = chunk.reference
        if base is None:
            return
        kl = (base.exp() * (base - chunk.logprobs)).sum(dim=1)
        self._kl += kl.clamp(min=0).tolist()  # float32 rounding can leave a true zero at -1e-8
        self._agrees += (base.argmax(dim=1) == chunk.logprobs.argmax(dim=1)).float().tolist()
        self._items += [(chunk.window, chunk.start + offset) for offset in range(len(chunk.targets))]

    def finish(self) -> Sequence[Measurement]:
        items = tuple(f"{window}:{position}" for window, position in self._items)
        clusters = tuple(str(window) for window, _ in self._items)
        return [
            Measurement(
                metric=name,
                version=VERSION,
                unit=unit,
                direction="lower" if unit == "nat" else "higher",
                evidence="paired",
                values=tuple(values),
                item_ids=items,
                cluster_ids=clusters,
                protocol=self._protocol,
            )
            for name, unit, values in (
                (self._metric, "nat", self._kl),
                (
                    f"{self._metric}_top1_agreement" if self._metric != "kl" else "top1_agreement",
                    "fraction",
                    self._agrees,
                ),
            )
        ]


DIVERGENCE = Metric(
    name="divergence",
    version=VERSION,
    kind="observer",
    summary="KL divergence from the unquantized baseline and top-1 agreement, exact over the vocabulary",
    make=Divergence,
)
