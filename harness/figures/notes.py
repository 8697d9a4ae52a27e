"""An estimate in words, and the notes below a figure: a comparison's verdict, what the interval does not cover."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from harness.figures.figure import Figure, Note, Place, Value
from harness.figures.formats import significant
from harness.figures.table import Table, VariantRow
from harness.stats.comparison import Comparison
from harness.stats.estimate import Estimate

P = TypeVar("P", bound=Place)
PAIRED = (
    "paired with the baseline, with its 95% interval; the word below holds for all words on perplexity and headline "
    "scores of the table at once"
)


def with_interval(estimate: Estimate, write: Callable[[float], str] = significant, suffix: str = "") -> str:
    """``0.0123 nat [0.011, 0.0136]``; without the interval if there is none, or if it is the value itself."""
    known = estimate.low is not None and estimate.high is not None and estimate.low != estimate.high
    interval = f" [{write(estimate.low or 0)}, {write(estimate.high or 0)}]" if known else ""
    return f"{write(estimate.value)}{suffix}{interval}"


def interval_note(estimate: Estimate | None) -> tuple[Note, ...]:
    """For a figure measured per process: why it has no interval, or that the interval covers one process alone."""
    if estimate is None:
        return ()
    if estimate.low is None or estimate.high is None:
        return (Note(estimate.method),)
    return (Note("one process"),) if estimate.n == 1 else ()


def verdict_note(found: Comparison | None) -> tuple[Note, ...]:
    """The verdict; if it is inconclusive, the detectable difference, times 100."""
    if found is None:
        return ()
    if found.verdict != "inconclusive" or found.detectable is None:
        return (Note(found.verdict, _too_few(found)),)
    return (Note(found.verdict, f"±{significant(found.detectable * 100, 2)} would show"),)


def _too_few(found: Comparison) -> str:
    """Empty unless the test, of whose units there are too few, could find nothing if no other among so many did."""
    if found.verdict != "inconclusive" or found.can_find:
        return ""
    among = "" if found.p is None else f" for {found.tests} comparisons"
    return f"{found.effect.n} {found.units} are too few{among}"


def noise_note(found: Comparison | None) -> tuple[Note, ...]:
    """How a divergence compares with its noise floor."""
    words = {"worse": "above noise", "equivalent": "at noise level", "better": "below noise"}
    return () if found is None else (Note(words.get(found.verdict, found.verdict), _too_few(found)),)


def judgement(
    group: str,
    name: str,
    pick: Callable[[VariantRow, P], Comparison | None],
    places: Callable[[Table], tuple[P, ...]] | None = None,
    column: str | None = None,
) -> tuple[Figure[P], ...]:
    """For programs: verdict, test, p-values, and the detectable difference, in the unit of the comparison."""

    def part(suffix: str, of: Callable[[Comparison], Value]) -> Figure[P]:
        return Figure(
            f"{name}_{suffix}",
            group,
            suffix,
            "",
            lambda row, place: of(found) if (found := pick(row, place)) else None,
            places=places,
            column=f"{column or name}_{suffix}",
            shown=False,
        )

    return (
        part("verdict", lambda found: found.verdict),
        part("test", lambda found: found.test),
        part("p", lambda found: found.p),
        part("p_adjusted", lambda found: found.adjusted_p),
        part("equivalence_p_adjusted", lambda found: found.adjusted_equivalence_p),
        part("detectable", lambda found: found.detectable),
        part("units", lambda found: float(found.effect.n)),
    )
