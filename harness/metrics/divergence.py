"""Divergence of a variant from the unquantized baseline, token by token over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from harness.core.column import ArrayColumn, texts
from harness.core.metric import Chunk, Metric, Windows
from harness.core.record import Measurement
from harness.errors import InvalidRunError
from harness.numerics.prediction import divergences, first_choices, logprobs

if TYPE_CHECKING:
    import torch

VERSION = 2
CHOICES = 5
"""Number of most likely tokens that are compared as a set."""
QUANTITIES: tuple[tuple[str, str, Literal["lower", "higher", "neither"]], ...] = (
    ("kl", "nat", "lower"),
    ("kl_reverse", "nat", "lower"),
    ("top1_agreement", "fraction", "higher"),
    ("top5_agreement", "fraction", "higher"),
    ("delta_p", "probability", "neither"),
    ("baseline_confidence", "probability", "neither"),
)
"""Name, unit and direction, in the order that ``_compare`` returns."""


class DivergenceObserver:
    """Compares a variant's predictions with the baseline's: one value of each quantity per scored token.

    ``kl`` is KL(baseline ‖ variant), ``kl_reverse`` the other direction; ``top5_agreement`` is the fraction that the
    two sets of five most likely tokens share; ``delta_p`` is the variant's probability of the true token minus the
    baseline's; ``baseline_confidence`` is the baseline's highest probability. Clusters are the documents, or the
    windows if there is only one document. With ``name``, only KL is reported, under that name.
    """

    def __init__(self, windows: Windows, name: str | None = None) -> None:
        self._windows = windows
        self._name = name
        self._rows: list[torch.Tensor] = []
        self._places: list[tuple[int, int, int]] = []

    def observe(self, chunk: Chunk) -> None:
        """Raises InvalidRunError, with the window, if a divergence is not finite."""
        rows = _compare(chunk)
        if not bool(rows.isfinite().all()):
            raise InvalidRunError(f"the divergence of window {chunk.window} is not finite")
        self._rows.append(rows)
        self._places.append((chunk.window, chunk.start, len(chunk.targets)))

    def finish(self) -> Sequence[Measurement]:
        import torch

        names = self._windows.clusters
        count = sum(n for _, _, n in self._places)
        items = texts((f"{w}:{place}" for w, start, n in self._places for place in range(start, start + n)), count)
        clusters = texts((names[w] for w, _, n in self._places for _ in range(n)), count)
        quantities = QUANTITIES if self._name is None else ((self._name, *QUANTITIES[0][1:]),)
        columns = torch.cat(self._rows, dim=1).cpu().numpy()
        return [
            Measurement(
                metric=metric,
                version=VERSION,
                unit=unit,
                direction=direction,
                evidence="paired",
                values=ArrayColumn(values),
                item_ids=items,
                cluster_ids=clusters,
                protocol=self._windows.protocol,
            )
            for (metric, unit, direction), values in zip(quantities, columns, strict=False)
        ]


def _compare(chunk: Chunk) -> torch.Tensor:
    """The quantities at each position, (quantities, n) float64."""
    import torch

    base, own = chunk.reference, chunk.prediction
    assert base is not None, "divergence is measured against a reference"
    forward, backward = divergences(base, own)
    theirs, mine = first_choices(base, CHOICES), first_choices(own, CHOICES)
    shared = (theirs.unsqueeze(2) == mine.unsqueeze(1)).sum(dim=(1, 2))
    return torch.stack(
        [
            forward,
            backward,
            (theirs[:, 0] == mine[:, 0]).double(),
            shared.double() / theirs.shape[1],
            logprobs(own, chunk.targets).exp() - logprobs(base, chunk.targets).exp(),
            1 / base.totals,  # the highest weight is 1
        ]
    )


DIVERGENCE = Metric(
    name="divergence",
    version=VERSION,
    kind="observer",
    summary="KL divergence from the unquantized baseline in both directions, agreement of the first choices and Δp",
    make=DivergenceObserver,
)
