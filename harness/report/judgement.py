"""The word that a comparison ends in, and what stands behind it for machines."""

from __future__ import annotations

from collections.abc import Callable

from harness.figures.formats import significant
from harness.figures.table import VariantRow
from harness.report.column import Column, Value, figure
from harness.stats.comparison import Comparison

PAIRED = "paired with the baseline, with its 95% interval; the word below holds for all words of the table at once"


def words(found: Comparison | None) -> tuple[str, ...]:
    """The verdict; of one that could not be given, the difference that such data mostly show, times 100."""
    if found is None:
        return ()
    if found.verdict != "inconclusive" or found.detectable is None:
        return (found.verdict,)
    return (f"inconclusive (±{significant(found.detectable * 100, 2)} would show)",)


def noise_words(found: Comparison | None) -> tuple[str, ...]:
    """Where a divergence stands beside its noise floor."""
    said = {"worse": "above noise", "equivalent": "at noise level", "better": "below noise"}
    return () if found is None else (said.get(found.verdict, found.verdict),)


def judgement(group: str, name: str, pick: Callable[[VariantRow], Comparison | None]) -> tuple[Column, ...]:
    """Columns of the CSV file: verdict, test, p-values, and what could have been detected, in the metric's unit."""

    def part(suffix: str, of: Callable[[Comparison], Value]) -> Column:
        return figure(group, f"{name}_{suffix}", suffix, lambda row: of(found) if (found := pick(row)) else None)

    return (
        part("verdict", lambda found: found.verdict),
        part("test", lambda found: found.test),
        part("p", lambda found: found.p),
        part("p_adjusted", lambda found: found.adjusted_p),
        part("equivalence_p_adjusted", lambda found: found.adjusted_equivalence_p),
        part("detectable", lambda found: found.detectable),
        part("units", lambda found: float(found.effect.n)),
    )
