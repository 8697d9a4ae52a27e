"""Texts shared by all formats: the verdict in one line, and a finding's figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from harness.analysis.history.series import Series
from harness.analysis.regression.findings import RUNS, UNDECIDED, Change, Finding, Regression, Side, Verdict
from harness.core.variant import shown_variant
from harness.figures.formats import BLANK, signed, significant
from harness.figures.gate import shown
from harness.plugins import gates as gated_figures

WORST_FIRST: tuple[Verdict, ...] = ("regressed", "incomparable", "inconclusive", "improved", "unchanged")


def verdict_line(found: Regression) -> str:
    """``REGRESSED: 2 of 14 gates failed``, followed by other key counts."""
    gated = found.gated
    count = len(gated) + len(found.unmeasured)
    verdicts = Counter(each.verdict for each in gated)
    failed, better = verdicts["regressed"], verdicts["improved"]
    open_ones = sum(verdicts[each] for each in UNDECIDED) + len(found.unmeasured)
    if failed:
        line = f"REGRESSED: {failed} of {_gates(count)} failed"
    elif open_ones or found.missing:
        line = "UNDECIDED: no gate failed"
    else:
        line = f"PASSED: {'all ' if count > 1 else ''}{_gates(count)} hold{'s' if count == 1 else ''}"
    parts = [f"{open_ones} of {_gates(count)} could not be evaluated"] if open_ones else []
    missing = len(found.missing)
    parts += [f"{missing} damaged record{'' if missing == 1 else 's'} left out"] if missing else []
    parts += [f"{better} improved"] if better else []
    return "; ".join([line, *parts])


def counts(found: Regression) -> str:
    """``2 regressed, 9 unchanged``: all findings, gates or not."""
    verdicts = Counter(each.verdict for each in found.findings)
    return ", ".join(f"{verdicts[word]} {word}" for word in WORST_FIRST if verdicts[word])


def worst_first(found: Regression) -> list[Finding]:
    """Gates before the rest, the worst verdicts first in each."""
    return sorted(found.findings, key=lambda each: (not each.gated, WORST_FIRST.index(each.verdict)))


def variant(one: Finding | Series) -> str:
    return shown_variant(one.model, one.method, one.engine)


def subject(finding: Finding) -> str:
    """``decode · batch 1, prompt 128``."""
    return f"{finding.metric} · {finding.where}" if finding.where else finding.metric


def figures(finding: Finding) -> str:
    """``19.4 → 19.6 perplexity``; a dash for runs, whose end is described in words."""
    if finding.metric == RUNS or (finding.base is None and finding.head is None):
        return BLANK
    return f"{_figure(finding.base)} → {_figure(finding.head)} {finding.unit}".rstrip()


def change(finding: Finding) -> str:
    """``+0.61% [+0.4, +0.8]``; a dash if no number says it."""
    if finding.change is None:
        return BLANK
    times, unit = _terms(finding)
    value, low, high = finding.change.value, finding.change.low, finding.change.high
    text = f"{signed(times * value, 2)}{unit}"
    if low is None or high is None or low == high == value:
        return text
    return f"{text} [{signed(times * low, 2)}, {signed(times * high, 2)}]"


def limit(finding: Finding) -> str:
    """The threshold as a user writes it; runs have none."""
    return BLANK if finding.threshold is None else f"±{shown(gated_figures()[finding.metric], finding.threshold)}"


def why(finding: Finding) -> str:
    """The reasons and, for an undecided finding, what would settle it."""
    return "; ".join([*finding.reasons, *_what_would_settle_it(finding)])


def gates(found: Regression) -> str:
    """Which thresholds were in force, and who set them."""
    thresholds = ", ".join(f"{name} {shown(gated_figures()[name], value)}" for name, value in found.gates.items())
    return f"{thresholds} ({found.origin})"


def plain(finding: Finding) -> bool:
    """Whether a short listing can omit it: nothing changed, or it is undecided and not a gate."""
    return finding.verdict == "unchanged" or (not finding.gated and finding.verdict in UNDECIDED)


def side(one: Side) -> str:
    return f"{one.name} ({one.cases} cases; sessions {', '.join(one.sessions)})"


def notes(found: Regression) -> Iterator[str]:
    """Remarks that are neither findings nor changes of the environment."""
    for name in found.unmeasured:
        yield f"gate {name} was not evaluated: neither side measures it"
    for each in found.new:
        yield f"new in HEAD: {each}"
    for one, where in (("BASE", found.base), ("HEAD", found.head)):
        yield from (f"{one}: {each.remark}" for each in where.damaged)
    yield from doubts(found)


def doubts(found: Regression) -> Iterator[str]:
    """The implausible baselines, and why no quality relative to them can be trusted."""
    for one, where in (("BASE", found.base), ("HEAD", found.head)):
        for run, reasons in where.implausible.items():
            yield from (f"{one}: {run}: {each.label.sentence}" for each in reasons)


def environment(entry: Change) -> str:
    where = f" ({', '.join(entry.variants)})" if entry.variants else ""
    return f"{entry.what}: {entry.base} → {entry.head}{where}"


def _what_would_settle_it(finding: Finding) -> Iterator[str]:
    if finding.detectable is not None:
        times, unit = _terms(finding)
        yield f"a change of {significant(times * finding.detectable, 2)}{unit} would be detected in 4 out of 5 cases"
    if finding.needed is not None:
        rounded = float(f"{finding.needed:.2g}")
        unit = "processes a side (repetitions)" if finding.units == "processes" else finding.units
        yield f"about {rounded:,.0f} {unit} would settle it"


def _terms(finding: Finding) -> tuple[float, str]:
    """The factor that makes a change readable, and the unit it then has."""
    if finding.relative:
        return 100, "%"
    points = finding.unit in ("fraction", "score")
    return (100, " points") if points else (1, f" {finding.unit}")


def _figure(value: float | None) -> str:
    if value is None:
        return BLANK
    return f"{value:,.0f}" if abs(value) >= 10_000 else significant(value, 4)


def _gates(count: int) -> str:
    return f"{count} gate{'' if count == 1 else 's'}"
