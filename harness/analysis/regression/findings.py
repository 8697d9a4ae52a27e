"""The result of comparing HEAD with BASE: a verdict per case and metric, and one overall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from harness.core.label import FactCode, LabelCode
from harness.core.record import Damaged
from harness.errors import ExitCode
from harness.figures.derived.plausibility import Implausibility
from harness.stats.estimate import Estimate

Verdict = Literal["improved", "regressed", "unchanged", "inconclusive", "incomparable"]
Outcome = Literal["passed", "regressed", "undecided"]
UNDECIDED: frozenset[Verdict] = frozenset({"inconclusive", "incomparable"})
RUNS = "runs"
"""The name of the finding that says whether a run still succeeds; it is always a gate."""


@dataclass(frozen=True)
class Finding:
    """One metric of one case. ``where`` gives the conditions: a task, a protocol, a point of the grid.

    ``base`` and ``head`` are figures as in tables, in ``unit``; None also for a time where half of the processes or
    more answered nothing. ``change`` is HEAD − BASE with its interval: a fraction of BASE's figure if ``relative``,
    otherwise in the unit; None where there is no such fraction, as from or to zero or no answer. ``threshold`` is the
    change that does not matter, in the same terms. ``n`` counts the independent ``units`` behind a test. If undecided,
    ``detectable`` is the smallest true change that would be found in four of five cases, and ``needed`` the units to
    settle it.
    """

    case_id: str
    model: str
    method: str
    engine: str
    metric: str
    where: str
    verdict: Verdict
    gated: bool
    base: float | None = None
    head: float | None = None
    unit: str = ""
    relative: bool = False
    change: Estimate | None = None
    threshold: float | None = None
    test: str = "none"
    p: float | None = None
    n: int | None = None
    units: str = ""
    detectable: float | None = None
    needed: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def variant(self) -> str:
        return f"{self.model} × {self.method} × {self.engine}"


@dataclass(frozen=True)
class Change:
    """A change around the figures; ``variants`` are those in which it occurred, empty means all.

    ``code`` is that of a label or a fact, empty for everything else.
    """

    what: str
    base: str
    head: str
    code: LabelCode | FactCode | Literal[""] = ""
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """BASE or HEAD: the name that the user gave, and what was found there.

    ``damaged`` are attempts that are not as they were written. ``implausible`` holds, by the title of their run, the
    unquantized baselines that make every quality relative to them untrustworthy.
    """

    name: str
    sessions: tuple[str, ...]
    cases: int
    damaged: tuple[Damaged, ...] = ()
    implausible: Mapping[str, tuple[Implausibility, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Regression:
    """HEAD compared with BASE.

    ``gates`` are the thresholds in force and ``origin`` where they come from. ``unmeasured`` are gates that a user
    named and no run measures, ``new`` the runs that only HEAD has.
    """

    base: Side
    head: Side
    findings: tuple[Finding, ...]
    environment: tuple[Change, ...]
    new: tuple[str, ...]
    gates: Mapping[str, float]
    origin: str
    alpha: float
    unmeasured: tuple[str, ...] = ()

    @cached_property
    def gated(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.gated)

    @cached_property
    def outcome(self) -> Outcome:
        """A gate that could not be evaluated is not a pass; a damaged record might have failed one."""
        if any(found.verdict == "regressed" for found in self.gated):
            return "regressed"
        undecided = any(found.verdict in UNDECIDED for found in self.gated) or bool(self.unmeasured)
        return "undecided" if undecided or self.missing else "passed"

    @property
    def missing(self) -> tuple[Damaged, ...]:
        """The records of either side that could not be read."""
        return tuple(each for each in (*self.base.damaged, *self.head.damaged) if not each.log_only)

    @property
    def exit_code(self) -> ExitCode:
        codes: Mapping[Outcome, ExitCode] = {
            "passed": ExitCode.OK,
            "regressed": ExitCode.GATE_FAILED,
            "undecided": ExitCode.INCONCLUSIVE,
        }
        return codes[self.outcome]
