"""The words for whether several sources agree on a figure that they measured alike."""

from __future__ import annotations

from harness.analysis.pooling import PooledFigure
from harness.figures.formats import significant


def agreement_numbers(figure: PooledFigure) -> str:
    """The test behind ``figure.agreement``, or why there is none; empty where the sources are identical."""
    if figure.test is None:
        return figure.note
    test = figure.test
    numbers = f"I² {100 * test.i_squared:.0f}%, Q {test.q:.2f}, p {test.p:.2g}, tau {significant(test.tau, 3)}"
    return f"{numbers} ({figure.scale})"
