"""What a comparison of HEAD with BASE found: a verdict per case and metric, and one for all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.core.label import FactCode, LabelCode
from harness.errors import ExitCode
from harness.figures.derived.plausibility import Implausibility
from harness.stats.estimate import Estimate

Verdict = Literal["improved", "regressed", "unchanged", "inconclusive", "incomparable"]
Outcome = Literal["passed", "regressed", "undecided"]
UNDECIDED: frozenset[Verdict] = frozenset({"inconclusive", "incomparable"})
RUNS = "runs"
"""The name of the finding that says whether a run still ends well; it is always gated."""


@dataclass(frozen=True)
class Finding:
    """One metric of one case. ``where`` says under which conditions: a task, a protocol, a point of the grid.

    ``base`` and ``head`` are figures as tables show them, in ``unit``. ``change`` is HEAD − BASE with its interval:
    a part of BASE's figure where ``relative``, else in the unit. ``threshold`` is the change that does not matter, in
    the same terms. ``n`` counts the independent ``units`` behind a test. Of what was not decided, ``detectable`` is
    the least true change that would be found in four cases of five, and ``needed`` the units to settle it.
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
    """Something around the figures that is not what it was; ``variants`` are those it was seen in, none: all.

    ``code`` is that of a label or of a fact, empty for everything else.
    """

    what: str
    base: str
    head: str
    code: LabelCode | FactCode | Literal[""] = ""
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Side:
    """BASE or HEAD: the words it was named by, and what was found there.

    ``unread`` are records that are not whole. ``implausible`` holds, by the title of their run, the unquantized
    baselines relative to which no quality can be trusted.
    """

    name: str
    sessions: tuple[str, ...]
    cases: int
    unread: tuple[str, ...] = ()
    implausible: Mapping[str, tuple[Implausibility, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Regression:
    """HEAD beside BASE.

    ``gates`` are the thresholds in force and ``origin`` where they come from. ``unmeasured`` are gates that a user
    named and no run measures, ``new`` the runs that HEAD alone has.
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

    @property
    def gated(self) -> tuple[Finding, ...]:
        return tuple(found for found in self.findings if found.gated)

    @property
    def outcome(self) -> Outcome:
        """A gate that could not be evaluated is not a pass."""
        if any(found.verdict == "regressed" for found in self.gated):
            return "regressed"
        undecided = any(found.verdict in UNDECIDED for found in self.gated) or bool(self.unmeasured)
        return "undecided" if undecided else "passed"

    @property
    def exit_code(self) -> ExitCode:
        codes: Mapping[Outcome, ExitCode] = {
            "passed": ExitCode.OK,
            "regressed": ExitCode.GATE_FAILED,
            "undecided": ExitCode.INCONCLUSIVE,
        }
        return codes[self.outcome]
